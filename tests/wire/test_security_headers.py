"""Headers of answers: nothing that a caller chose can end one or begin another."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from http_harness import KEY, Http, server, session_body

from everturn.protocol import paths

pytestmark = pytest.mark.anyio

#: What a header may hold (RFC 9110 §5.5), without what only old parsers understand.
PLAIN = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?|")
EVIL = [
    "a\r\nx-evil: 1",
    "b\n\nbody",
    "c\0d",
    "é🙂\u2028",
    "\x85next",
    "x" * 256,
    " ",
    '"><script>',
]


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        await opened.create()
        yield opened


def checked(headers: dict[str, str], what: str) -> None:
    for name, value in headers.items():
        assert PLAIN.fullmatch(value), f"{what}: {name}: {value!r}"
        assert re.fullmatch(r"[a-z0-9-]+", name), name
    assert "x-evil" not in headers


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
async def test_no_answer_about_a_thing_repeats_its_name_in_a_header_as_it_is(
    http: Http, evil: str
) -> None:
    body = session_body(evil) | {"tags": [evil[:100]], "metadata": {evil: evil}}
    created = await http("POST", paths.SESSIONS, body)
    checked(created.headers, "created")
    segment = quote(evil, safe="")
    base = f"/realtime/v1/sessions/{segment}"
    run = (
        await http("POST", "/api/v1/tasks/job/trigger", {"options": {"tags": [evil[:100]]}})
    ).json
    for method, path in (
        ("GET", f"/api/v1/sessions/{segment}"),
        ("PUT", f"/api/v1/sessions/{segment}/snapshot-url"),
        ("GET", f"{base}/in/records"),
        ("HEAD", f"{base}/out"),
        ("PUT", f"{base}/in"),
        ("PUT", f"{base}/out"),
        ("POST", f"{base}/in/append"),
        ("GET", f"/api/v1/runs?filter[tag]={segment}"),
        ("GET", f"/api/v1/sessions?page[after]={segment}"),
        ("GET", f"/realtime/v1/runs?tags={segment}"),
        ("PUT", f"/api/v1/packets/{segment}"),
        ("POST", f"/api/v1/tasks/{segment}/trigger"),
        ("GET", f"/realtime/v1/streams/{run.get('id', 'run_x')}/{segment}/nothing"),
        ("GET", f"/api/v1/waitpoints/tokens/{segment}"),
    ):
        reply = await http(method, path, {} if method in ("POST", "PUT") else None)
        checked(reply.headers, f"{method} {path}")


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
async def test_no_header_of_a_request_comes_back_in_one_of_the_answer_as_it_is(
    http: Http, evil: str
) -> None:
    """Only the origin does: a page asks for it, and its browser has made it."""
    text = evil.encode("utf-8").decode("latin-1")
    for name in (
        "last-event-id",
        "x-part-id",
        "x-client-id",
        "accept",
        "content-type",
        "traceparent",
    ):
        headers = {name: text, "authorization": f"Bearer {KEY}"}
        reply = await http("GET", "/realtime/v1/sessions/chat-1/in/records", headers=headers)
        checked(reply.headers, name)
        reply = await http(
            "POST", "/realtime/v1/sessions/chat-1/in/append", raw=b"a", headers=headers
        )
        checked(reply.headers, name)


async def test_a_packets_type_is_stored_and_given_back_without_ending_its_header(
    http: Http,
) -> None:
    for kind in ("text/plain\r\nx-evil: 1", "a/b\nc", "\0", "é/🙂", "a" * 5000):
        link = (await http("PUT", "/api/v1/packets/mine")).json["presignedUrl"]
        header = {"content-type": kind.encode().decode("latin-1")}
        url = "/" + link.split("/", 3)[3]
        stored = await http("PUT", url, raw=b"data", key=None, headers=header)
        checked(stored.headers, "stored")
        found = (await http("GET", "/api/v1/packets/mine")).json["presignedUrl"]
        reply = await http("GET", "/" + found.split("/", 3)[3], key=None)
        if reply.status == 200:
            checked(reply.headers, repr(kind))


@pytest.mark.parametrize("host", [*EVIL, "a b", "a/../b?c#d", "user@host", "[::1]:80", "name:8080"])
async def test_where_to_write_is_where_the_caller_reached_us_and_nothing_else(
    http: Http, host: str
) -> None:
    """The one header of a request that an answer repeats in another (W §7)."""
    header = {"host": host.encode().decode("latin-1")}
    reply = await http("PUT", "/realtime/v1/sessions/chat-1/in", headers=header)
    checked(reply.headers, "initialized")
    good = re.fullmatch(r"[\w.:\[\]-]{1,255}", host, re.ASCII) is not None
    assert (host in reply.headers["x-s2-endpoint"]) is good
