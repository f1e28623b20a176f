"""JSON that nests without end: refused where it comes in, so that nothing that reads it breaks.

What one caller stored at the edge of what the server could still read, a list, a worker or a
client could not: a list with such a session in it answered 500 to everybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from http_harness import Http, server, session_body

from everturn.protocol import nesting, paths

pytestmark = pytest.mark.anyio

APPEND = "/realtime/v1/sessions/chat-1/in/append"
RECORDS = "/realtime/v1/sessions/chat-1/out/records"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        await opened.create()
        yield opened


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def edges(frame: bytes, levels: int) -> tuple[bytes, bytes]:
    """A body at the bound and one past it; `frame` nests `levels` deep around its `%b`."""
    room = nesting.DEPTH_MAX - levels
    return frame % nested(room), frame % nested(room + 1)


SESSION = msgspec.json.encode(session_body("deep"))[:-1] + b',"metadata":%b}'
BODIES = [
    ("POST", paths.SESSIONS, SESSION, 1),
    ("PATCH", "/api/v1/sessions/chat-1", b'{"metadata":%b}', 1),
    ("POST", "/api/v1/tasks/job/trigger", b'{"payload":%b}', 1),
    ("POST", "/api/v1/tasks/job/trigger", b'{"options":{"metadata":%b}}', 2),
    ("PUT", "/api/v1/runs/RUN/metadata", b'{"metadata":%b}', 1),
    ("POST", APPEND, b'{"kind":"message","payload":%b}', 1),
    ("POST", RECORDS, b'{"records":[{"data":%b}]}', 3),
    ("POST", "/realtime/v1/streams/RUN/self/s", b"%b", 0),
    ("POST", "/realtime/v1/streams/RUN/input/s", b'{"data":%b}', 1),
    ("POST", "/api/v1/waitpoints/tokens/TOKEN/complete", b'{"data":%b}', 1),
]


@pytest.mark.parametrize(
    ("method", "path", "frame", "levels"), BODIES, ids=[f"{b[1]} {b[2][-14:]!r}" for b in BODIES]
)
async def test_at_the_bound_it_is_taken_and_one_deeper_is_refused_and_leaves_nothing(
    http: Http, method: str, path: str, frame: bytes, levels: int
) -> None:
    run = await http("POST", "/api/v1/tasks/job/trigger", {"payload": {}})
    token = await http("POST", paths.WAIT_TOKENS, {})
    path = path.replace("RUN", run.json["id"]).replace("TOKEN", token.json["id"])
    at, past = edges(frame, levels)
    before = await http.stored()
    refused = await http(method, path, raw=past)
    assert refused.status == 400, refused
    assert nesting.TOO_DEEP in refused.text
    assert await http.stored() == before
    taken = await http(method, path, raw=at)
    assert taken.status in (200, 201), taken


async def test_a_text_that_is_no_chunk_may_hold_any_brackets(http: Http) -> None:
    """What a raw task reads is its own business."""
    assert (await http("POST", APPEND, raw=b"[" * 500)).status == 200


async def test_whatever_was_taken_every_list_and_every_reader_still_answers(http: Http) -> None:
    """W-10: up to where a parser of Python gives up: one such session broke every list."""
    for depth in (*range(100, 140, 7), *range(900, 1000)):
        body = SESSION.replace(b'"deep"', b'"deep-%d"' % depth) % nested(depth)
        created = await http("POST", paths.SESSIONS, raw=body)
        assert created.status == (201 if depth < nesting.DEPTH_MAX else 400)
        triggered = await http(
            "POST", "/api/v1/tasks/job/trigger", raw=b'{"payload":%b}' % nested(depth)
        )
        assert triggered.status == (200 if depth < nesting.DEPTH_MAX else 400)
        if triggered.status == 200:
            found = await http("GET", f"/api/v3/runs/{triggered.json['id']}")
            assert found.status == 200
    for path in (paths.SESSIONS, paths.RUNS):
        assert (await http("GET", f"{path}?page[size]=100")).status == 200


async def test_operations_cannot_build_what_could_not_be_sent(http: Http) -> None:
    """A key that walks down, and values put under each other, make metadata deeper than any body."""
    run = (await http("POST", "/api/v1/tasks/job/trigger", {"payload": {}})).json["id"]
    path = f"/api/v1/runs/{run}/metadata"

    def operation(key: str, value: Any = 1) -> dict[str, Any]:
        return {"operations": [{"type": "set", "key": key, "value": value}]}

    for steps in (nesting.DEPTH_MAX, nesting.DEPTH_MAX + 1, 5000):
        reply = await http("PUT", path, operation("$." + ".".join("a" * steps)))
        assert reply.status == (200 if steps == nesting.DEPTH_MAX else 400), reply
    value = msgspec.json.decode(nested(100))
    assert (await http("PUT", path, operation("$.b.c", value))).status == 200
    refused = await http("PUT", path, operation("$." + ".".join("d" * 60), value))
    assert refused.status == 400
    found = await http("GET", path)
    assert found.status == 200
    assert set(found.json["metadata"]) == {"a", "b"}


async def test_metadata_that_is_no_json_is_refused_and_does_not_break_its_run(http: Http) -> None:
    """Packet text was stored as it came, and the run could not be read any more."""
    for text in ("{", "nothing", "", "\ud83d".encode("utf-8", "replace").decode(), "[" * 500):
        options = {"metadata": text, "metadataType": "application/json"}
        reply = await http("POST", "/api/v1/tasks/job/trigger", {"options": options})
        assert reply.status == 400, reply
        assert "metadata" in reply.text
    options = {"metadata": '{"a":1}', "metadataType": "application/json"}
    run = (await http("POST", "/api/v1/tasks/job/trigger", {"options": options})).json["id"]
    found = await http("GET", f"/api/v1/runs/{run}/metadata")
    assert found.json["metadata"] == {"a": 1}


async def test_a_third_party_that_calls_back_with_such_a_thing_completes_the_token_without_it(
    http: Http,
) -> None:
    made = (await http("POST", paths.WAIT_TOKENS, {})).json
    url = "/" + made["url"].split("/", 3)[3]
    raw = nested(500)
    reply = await http("POST", url, raw=raw, key=None, headers={"content-length": str(len(raw))})
    assert reply.status == 200, reply
    found = await http("GET", f"/api/v1/waitpoints/tokens/{made['id']}")
    assert found.json["status"] == "COMPLETED"
    assert found.json["output"] == '{"json":{}}'
