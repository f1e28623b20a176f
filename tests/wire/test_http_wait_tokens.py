"""Wait tokens over HTTP (wire-protocol §14), in one process."""

from __future__ import annotations

from typing import Any

import pytest
from http_harness import KEY, Http, server

from everturn.protocol.waitpoints import callback_hash
from everturn.rules import limits
from everturn.server.sweeps import timers

pytestmark = pytest.mark.anyio

TOKENS = "/api/v1/waitpoints/tokens"


async def created(http: Http, **body: Any) -> dict[str, Any]:
    reply = await http("POST", TOKENS, body)
    assert reply.status == 200, reply
    made: dict[str, Any] = reply.json
    return made


async def retrieved(http: Http, token: str) -> dict[str, Any]:
    reply = await http("GET", f"{TOKENS}/{token}")
    assert reply.status == 200, reply
    found: dict[str, Any] = reply.json
    return found


def path_of(url: str) -> str:
    return url[url.index("/api/") :]


def test_the_callback_hash_is_the_published_vector() -> None:
    """wire-protocol §23"""
    found = callback_hash("tr_dev_abcdefghijklmnopqrstuvwx", "waitpoint_clwaitpoint0000000000000")

    assert found == "85f4aa01d7ead6cd62764757908139f9391a76e5c150bb886781583bf2ed222b"


async def test_a_token_is_made_completed_once_and_read() -> None:
    # W-140, W-141, W-143
    async with server() as http:
        made = await created(http, tags=["a", "b"], timeout="1h")
        before = await retrieved(http, made["id"])
        first = await http("POST", f"{TOKENS}/{made['id']}/complete", {"data": {"n": 1}})
        again = await http("POST", f"{TOKENS}/{made['id']}/complete", {"data": {"n": 2}})
        after = await retrieved(http, made["id"])

    assert made["isCached"] is False
    assert made["id"].startswith("waitpoint_")
    assert (before["status"], before["tags"]) == ("WAITING", ["a", "b"])
    assert "output" not in before
    assert "timeoutAt" in before
    assert first.json == again.json == {"success": True}
    assert after["status"] == "COMPLETED"
    assert (after["output"], after["outputType"]) == ('{"json":{"n":1}}', "application/super+json")
    assert after["outputIsError"] is False


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({}, None),
        ({"data": None}, ('{"json":null}', "application/super+json")),
        ({"data": "hi"}, ("hi", "text/plain")),
        ({"data": [1]}, ('{"json":[1]}', "application/super+json")),
    ],
)
async def test_the_output_is_a_packet_made_by_the_kind_of_data(
    body: dict[str, Any], output: tuple[str, str] | None
) -> None:
    # W-102, W-143
    async with server() as http:
        made = await created(http)
        await http("POST", f"{TOKENS}/{made['id']}/complete", body)
        found = await retrieved(http, made["id"])

    assert (found.get("output"), found.get("outputType")) == (output or (None, None))


async def test_the_tokens_own_public_token_completes_it_and_nothing_else() -> None:
    # W-28
    async with server() as http:
        reply = await http("POST", TOKENS, {})
        other = await created(http)
        mine = reply.headers["x-trigger-jwt"]
        origin = {"origin": "https://app.example"}
        refused = await http("POST", f"{TOKENS}/{other['id']}/complete", {}, key=mine)
        unknown = await http("POST", f"{TOKENS}/waitpoint_none/complete", {}, key=mine)
        done = await http(
            "POST", f"{TOKENS}/{reply.json['id']}/complete", {"data": 1}, key=mine, headers=origin
        )
        read = await http("GET", f"{TOKENS}/{reply.json['id']}", key=mine)

    assert refused.status == 403
    assert unknown.status == 403, "scope before existence"
    assert (done.status, done.json) == (200, {"success": True})
    assert done.headers["access-control-allow-origin"] == "https://app.example"
    assert read.status == 401
    assert '"scopes":["write:waitpoints:' in reply.headers["x-trigger-jwt-claims"]


async def test_the_callback_url_completes_without_a_credential() -> None:
    # W-142
    async with server() as http:
        made = await created(http)
        url = path_of(made["url"])
        wrong = await http("POST", url[:-1] + ("0" if url[-1] != "0" else "1"), {}, key=None)
        unsized = await http("POST", url, key=None, pieces=[b"{}"])
        done = await http("POST", url, {"approved": True}, key=None)
        found = await retrieved(http, made["id"])
        elsewhere = await http("POST", url.replace(made["id"], "waitpoint_none"), {}, key=None)

    assert wrong.status == 401
    assert unsized.status == 411
    assert (done.status, done.json) == (200, {"success": True})
    assert found["output"] == '{"json":{"approved":true}}'
    assert elsewhere.status == 404


async def test_a_callback_that_is_no_json_completes_with_an_empty_object() -> None:
    # W-142
    async with server() as http:
        made = await created(http)
        done = await http("POST", path_of(made["url"]), raw=b"approved=yes", key=None)
        found = await retrieved(http, made["id"])

    assert done.status == 200
    assert found["output"] == '{"json":{}}'


async def test_a_callback_takes_what_fits_and_refuses_one_byte_more() -> None:
    async with server() as http:
        made = await created(http)
        text = b'"' + b"x" * (limits.TOKEN_DATA_BYTES_MAX - 1) + b'"'
        over = await http("POST", path_of(made["url"]), raw=text, key=None)
        fits = await http("POST", path_of(made["url"]), raw=text[1:], key=None)

    assert over.status == 413
    assert fits.status == 200


async def test_a_completion_takes_what_fits_and_refuses_one_byte_more() -> None:
    async with server() as http:
        made = await created(http)
        path = f"{TOKENS}/{made['id']}/complete"
        room = limits.TOKEN_DATA_BYTES_MAX - len(b'{"data":""}')
        over = await http("POST", path, {"data": "x" * (room + 1)})
        fits = await http("POST", path, {"data": "x" * room})

    assert over.status == 413
    assert fits.status == 200


async def test_a_token_times_out_by_the_clock() -> None:
    # W-144
    async with server() as http:
        made = await created(http, timeout="10s")
        await http.clock.jump(9)
        await timers.due(http.system.services)
        before = await retrieved(http, made["id"])
        await http.clock.jump(2)
        await timers.due(http.system.services)
        late = await http("POST", f"{TOKENS}/{made['id']}/complete", {"data": 1})
        after = await retrieved(http, made["id"])

    assert before["status"] == "WAITING"
    assert after["status"] == "TIMED_OUT"
    assert after["outputIsError"] is True
    assert '"code":"TRIGGER_WAITPOINT_TIMEOUT"' in after["output"]
    assert late.json == {"success": True}


async def test_a_timeout_is_a_duration_or_a_date_and_a_past_date_is_none() -> None:
    # W-140
    async with server() as http:
        past = await created(http, timeout="2020-01-01T00:00:00.000Z")
        future = await created(http, timeout="2099-01-01T00:00:00.000Z")
        nonsense = await http("POST", TOKENS, {"timeout": "soon"})

        assert "timeoutAt" not in await retrieved(http, past["id"])
        assert (await retrieved(http, future["id"]))["timeoutAt"] == "2099-01-01T00:00:00.000Z"
        assert nonsense.status == 422


async def test_an_idempotency_key_and_a_repeated_request_find_the_token() -> None:
    async with server() as http:
        keyed = await created(http, idempotencyKey="k", idempotencyKeyTTL="1h")
        again = await created(http, idempotencyKey="k")
        retry = {"x-trigger-request-idempotency-key": "r1"}
        one = await http("POST", TOKENS, {}, headers=retry)
        two = await http("POST", TOKENS, {}, headers=retry)
        await http.clock.jump(3600)
        later = await created(http, idempotencyKey="k")

    assert (again["id"], again["isCached"]) == (keyed["id"], True)
    assert one.json["id"] == two.json["id"]
    assert later["id"] != keyed["id"]


async def test_lists_are_filtered_paged_and_without_outputs() -> None:
    async with server() as http:
        ids = [(await created(http, tags=[f"t{number}"]))["id"] for number in range(3)]
        await http("POST", f"{TOKENS}/{ids[0]}/complete", {"data": 1})

        page = (await http("GET", f"{TOKENS}?page[size]=2")).json
        rest = (
            await http("GET", f"{TOKENS}?page[size]=2&page[after]={page['pagination']['next']}")
        ).json
        done = (await http("GET", f"{TOKENS}?filter[status]=COMPLETED")).json
        tagged = (await http("GET", f"{TOKENS}?filter[tags]=t1,t2")).json
        bad = await http("GET", f"{TOKENS}?filter[status]=GONE")
        misspelled = await http("GET", f"{TOKENS}?filter[tag]=t1")

    assert [row["id"] for row in page["data"]] == [ids[2], ids[1]]
    assert [row["id"] for row in rest["data"]] == [ids[0]]
    assert rest["pagination"].keys() == {"previous"}
    assert [row["id"] for row in done["data"]] == [ids[0]]
    assert "output" not in done["data"][0]
    assert [row["id"] for row in tagged["data"]] == [ids[2], ids[1]]
    assert bad.status == misspelled.status == 400


async def test_what_a_token_may_be_made_with_is_bounded() -> None:
    async with server() as http:
        ten = await http("POST", TOKENS, {"tags": [f"t{n}" for n in range(10)]})
        eleven = await http("POST", TOKENS, {"tags": [f"t{n}" for n in range(11)]})
        long = await http("POST", TOKENS, {"tags": "x" * 129})
        key = await http("POST", TOKENS, {"idempotencyKey": "k" * 2049})
        big = await http("POST", TOKENS, raw=b" " * (limits.WAIT_BODY_BYTES_MAX + 1))
        empty = await http("POST", TOKENS, raw=b"")

    assert ten.status == empty.status == 200
    assert eleven.status == long.status == key.status == 400
    assert big.status == 413


async def test_tokens_are_made_and_listed_with_the_secret_key_only() -> None:
    async with server() as http:
        public = (await http("POST", TOKENS, {})).headers["x-trigger-jwt"]

        assert (await http("POST", TOKENS, {}, key=public)).status == 401
        assert (await http("GET", TOKENS, key=public)).status == 401
        assert (await http("GET", f"{TOKENS}/waitpoint_none", key=KEY)).status == 404
        assert (await http("POST", f"{TOKENS}/waitpoint_none/complete", {})).status == 404
