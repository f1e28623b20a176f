"""Batches and packets over HTTP (wire-protocol §10, §11), in one process."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from http_harness import Http, server

from everturn.rules import limits
from everturn.server.services.claims import run_info

pytestmark = pytest.mark.anyio

ELEVEN_TAGS = msgspec.json.encode(
    {"index": 0, "task": "job", "options": {"tags": [str(number) for number in range(11)]}}
)
NDJSON = {"content-type": "application/x-ndjson"}


async def created(http: Http, count: int = 2, **body: Any) -> dict[str, Any]:
    reply = await http("POST", "/api/v3/batches", {"runCount": count, **body})
    assert reply.status == 202, reply
    made: dict[str, Any] = reply.json
    return made


def lines(*items: Any) -> bytes:
    return b"\n".join(
        msgspec.json.encode({"index": index, "task": "job", "payload": {"n": index}} | item)
        for index, item in enumerate(items)
    )


async def sent(http: Http, batch: str, text: bytes, **options: Any) -> Any:
    headers = NDJSON | options.pop("headers", {})
    path = f"/api/v3/batches/{batch}/items"
    return await http("POST", path, pieces=[text], headers=headers, **options)


async def view(http: Http, batch: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http("GET", f"/api/v2/batches/{batch}")).json
    return found


class TestBatches:
    async def test_items_become_runs_and_the_last_one_seals(self) -> None:
        # W-121
        async with server() as http:
            made = await created(http, 3)
            first = await sent(http, made["id"], lines({}, {}))
            half = await view(http, made["id"])
            again = await sent(http, made["id"], lines({}, {}, {}))
            whole = await view(http, made["id"])
            runs = [(await http("GET", f"/api/v3/runs/{run}")).json for run in whole["runs"]]
            listed = (await http("GET", f"/api/v1/runs?filter[batch]={made['id']}")).json

        assert first.json == {
            "id": made["id"],
            "itemsAccepted": 2,
            "itemsDeduplicated": 0,
            "sealed": False,
            "enqueuedCount": 2,
            "expectedCount": 3,
            "runCount": 3,
        }
        assert half["status"] == "PENDING"
        assert (again.json["itemsAccepted"], again.json["itemsDeduplicated"]) == (1, 2)
        assert again.json["sealed"] is True
        assert whole["status"] == "PROCESSING"
        assert whole["processing"]["errors"] == []
        assert [run["payload"] for run in runs] == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert {run["triggerFunction"] for run in runs} == {"batchTrigger"}
        assert {run["batchId"] for run in runs} == {made["id"]}
        assert {item["id"] for item in listed["data"]} == set(whole["runs"])

    async def test_a_batch_is_completed_when_all_its_runs_are_final(self) -> None:
        # W-123
        async with server() as http:
            made = await created(http, 1)
            await sent(http, made["id"], lines({}))
            run = (await view(http, made["id"]))["runs"][0]
            early = (await http("GET", f"/api/v1/batches/{made['id']}/results")).json
            await http("POST", f"/api/v2/runs/{run}/cancel")
            found = await view(http, made["id"])
            late = (await http("GET", f"/api/v1/batches/{made['id']}/results")).json

        assert found["status"] == "COMPLETED"
        assert early == {"id": made["id"], "items": []}
        assert [(item["id"], item["ok"]) for item in late["items"]] == [(run, False)]

    async def test_lines_may_be_cut_anywhere(self) -> None:
        # W-121
        async with server() as http:
            made = await created(http)
            text = lines({}, {})
            path = f"/api/v3/batches/{made['id']}/items"
            pieces = [text[:7], text[7:60], text[60:], b"\n\n"]
            reply = await http("POST", path, pieces=pieces, headers=NDJSON)

        assert reply.json["sealed"] is True

    @pytest.mark.parametrize(
        ("text", "status"),
        [
            (b"{not json", 400),
            (b'{"index":0}', 422),
            (b'{"index":2,"task":"job"}', 422),
            (b'{"index":-1,"task":"job"}', 422),
            (b'{"index":0,"task":"nobody"}', 404),
            (ELEVEN_TAGS, 422),
        ],
    )
    async def test_a_bad_item_refuses_its_request_and_keeps_the_ones_before(
        self, text: bytes, status: int
    ) -> None:
        # W-122
        async with server() as http:
            made = await created(http)
            good = lines({}, {}).splitlines()[1]
            reply = await sent(http, made["id"], good + b"\n" + text)
            kept = (await view(http, made["id"]))["runs"]

        assert reply.status == status
        assert len(kept) <= 1
        assert reply.json["error"]

    async def test_a_line_may_be_as_long_as_its_limit_and_no_longer(self) -> None:
        # W-122
        async with server() as http:
            made = await created(http, 2)
            room = limits.BATCH_LINE_BYTES_MAX - len(lines({"payload": ""}))
            over = await sent(http, made["id"], lines({"payload": "x" * (room + 1)}))
            fits = await sent(http, made["id"], lines({"payload": "x" * room}))

        assert over.status == 413
        assert fits.json["itemsAccepted"] == 1

    @pytest.mark.parametrize(("count", "status"), [(1, 202), (1000, 202), (0, 400), (1001, 400)])
    async def test_a_batch_has_between_one_and_a_thousand_items(
        self, count: int, status: int
    ) -> None:
        # W-120
        async with server() as http:
            assert (await http("POST", "/api/v3/batches", {"runCount": count})).status == status

    async def test_the_body_of_a_creation_is_bounded(self) -> None:
        async with server() as http:
            text = b'{"runCount":1}' + b" " * limits.BATCH_BODY_BYTES_MAX
            over = await http("POST", "/api/v3/batches", raw=text)
            fits = await http("POST", "/api/v3/batches", raw=text[: limits.BATCH_BODY_BYTES_MAX])

        assert (over.status, fits.status) == (413, 202)

    async def test_items_of_another_type_are_refused(self) -> None:
        # W-122
        async with server() as http:
            made = await created(http)
            reply = await sent(
                http, made["id"], lines({}), headers={"content-type": "application/json"}
            )
            unknown = await sent(http, "batch_none", lines({}))

        assert reply.status == 415
        assert unknown.status == 404

    async def test_a_key_or_a_repeated_request_finds_the_batch(self) -> None:
        async with server() as http:
            keyed = await created(http, idempotencyKey="k")
            again = await created(http, idempotencyKey="k")
            retry = {"x-trigger-request-idempotency-key": "r"}
            one = await http("POST", "/api/v3/batches", {"runCount": 1}, headers=retry)
            two = await http("POST", "/api/v3/batches", {"runCount": 1}, headers=retry)

        assert again == keyed | {"isCached": True}
        assert keyed["idempotencyKey"] == "k"
        assert one.json["id"] == two.json["id"]

    async def test_children_of_a_batch_know_their_parent(self) -> None:
        async with server() as http:
            parent = (await http("POST", "/api/v1/tasks/job/trigger", {"payload": {}})).json["id"]
            made = await created(http, 1, parentRunId=parent, resumeParentOnCompletion=True)
            await sent(http, made["id"], lines({}))
            child = (await view(http, made["id"]))["runs"][0]
            run = (await http("GET", f"/api/v3/runs/{child}")).json
            family = (await http("GET", f"/api/v3/runs/{parent}")).json["relatedRuns"]
            orphan = await http(
                "POST", "/api/v3/batches", {"runCount": 1, "parentRunId": "run_none"}
            )

        assert run["triggerFunction"] == "batchTriggerAndWait"
        assert run["relatedRuns"]["parent"]["id"] == run["relatedRuns"]["root"]["id"] == parent
        assert [one["id"] for one in family["children"]] == [child]
        assert orphan.status == 400

    async def test_scopes_decide_who_begins_fills_and_reads(self) -> None:
        # W-120
        async with server() as http:
            made = await created(http, 1)
            one_task = http.token("batchTrigger:tasks:job")
            reader = http.token(f"read:batch:{made['id']}")
            writer = http.token(f"write:batch:{made['id']}")
            nobody = http.token("read:runs:run_x")
            begun = await http("POST", "/api/v3/batches", {"runCount": 1}, key=one_task)
            refused = await http("POST", "/api/v3/batches", {"runCount": 1}, key=nobody)
            other = await sent(http, made["id"], lines({"task": "agent"}), key=one_task)
            no_scope = await sent(http, made["id"], lines({}), key=nobody)
            filled = await sent(http, made["id"], lines({}), key=writer)
            read = await http("GET", f"/api/v2/batches/{made['id']}", key=reader)
            hidden = await http("GET", f"/api/v2/batches/{made['id']}", key=nobody)
            run = await http("GET", f"/api/v3/runs/{read.json['runs'][0]}", key=reader)

        assert begun.status == 202
        assert refused.status == other.status == no_scope.status == hidden.status == 403
        assert filled.json["sealed"] is True
        assert (read.status, run.status) == (200, 200)

    async def test_both_headers_let_any_client_read_the_batch(self) -> None:
        # W-28, W-120
        async with server() as http:
            reply = await http(
                "POST",
                "/api/v3/batches",
                {"runCount": 1},
                headers={"x-trigger-client": "browser"},
            )
            token = reply.headers["x-trigger-jwt"]
            filled = await sent(http, reply.json["id"], lines({}), key=token)

        assert msgspec.json.decode(reply.headers["x-trigger-jwt-claims"]).keys() == {"sub", "pub"}
        assert filled.status == 200


class TestPackets:
    async def linked(self, http: Http, name: str = "a%2Fb.json") -> tuple[str, str, str]:
        put = (await http("PUT", f"/api/v2/packets/{name}")).json
        get = (await http("GET", f"/api/v1/packets/{name}")).json
        strip = len(http.system.services.base_url)
        return put["presignedUrl"][strip:], get["presignedUrl"][strip:], put["storagePath"]

    async def test_a_packet_is_stored_and_read_under_its_own_type(self) -> None:
        # W-126, W-127
        async with server() as http:
            put, get, name = await self.linked(http)
            kind = {"content-type": "application/super+json"}
            missing = await http("GET", get, key=None)
            stored = await http("PUT", put, raw=b'{"json":1}', key=None, headers=kind)
            read = await http("GET", get, key=None)
            swapped = await http("PUT", get, raw=b"x", key=None)
            forged = await http("GET", get[:-1] + "z", key=None)
            await http.clock.jump(3601)
            expired = await http("GET", get, key=None)

        assert name == "a/b.json"
        assert missing.status == 404
        assert stored.status == 200
        assert (read.body, read.headers["content-type"]) == (
            b'{"json":1}',
            "application/super+json",
        )
        assert swapped.status == forged.status == expired.status == 403

    async def test_a_packet_may_be_as_large_as_its_limit_and_no_larger(self) -> None:
        # W-125
        async with server() as http:
            put, _, _ = await self.linked(http)
            fits = await http("PUT", put, raw=b"x" * limits.PACKET_BYTES_MAX, key=None)
            over = await http("PUT", put, raw=b"x" * (limits.PACKET_BYTES_MAX + 1), key=None)
            long = await http("PUT", f"/api/v2/packets/{'n' * 513}")

        assert (fits.status, over.status, long.status) == (200, 413, 400)

    async def test_uploads_need_the_secret_key_and_downloads_any_credential(self) -> None:
        # W-125, W-126
        async with server() as http:
            token = http.token("read:runs:run_x")
            up = await http("PUT", "/api/v2/packets/a.json", key=token)
            down = await http("GET", "/api/v1/packets/a.json", key=token)
            nobody = await http("GET", "/api/v1/packets/a.json", key=None)

        assert (up.status, down.status, nobody.status) == (401, 200, 401)

    async def test_a_run_gets_the_packet_its_payload_names(self) -> None:
        # W-102
        async with server() as http:
            put, _, name = await self.linked(http)
            kind = {"content-type": "application/json"}
            await http("PUT", put, raw=b'{"big":true}', key=None, headers=kind)
            stored = {"payload": name, "options": {"payloadType": "application/store"}}
            run_id = (await http("POST", "/api/v1/tasks/job/trigger", stored)).json["id"]
            shown = (await http("GET", f"/api/v3/runs/{run_id}")).json
            services = http.system.services
            run = await services.state.run(None, run_id)
            assert run is not None
            info = await run_info(services, http.system.environment, run, None)
            unnamed = {"payload": "", "options": {"payloadType": "application/store"}}
            refused = await http("POST", "/api/v1/tasks/job/trigger", unnamed)

        assert (info.payload, info.payload_type) == (b'{"big":true}', "application/json")
        assert "payload" not in shown
        assert "/api/v1/packet-data/" in shown["payloadPresignedUrl"]
        assert refused.status == 400
