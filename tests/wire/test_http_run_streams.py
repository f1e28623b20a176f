"""Streams of a run over HTTP (wire-protocol §13), in one process."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from http_harness import Http, Stream, server

from everturn.protocol.records import open_envelope
from everturn.rules import limits

pytestmark = pytest.mark.anyio

S = "/realtime/v1/streams"


async def triggered(http: Http, **options: Any) -> str:
    body = {"payload": {}, "options": options}
    run: str = (await http("POST", "/api/v1/tasks/job/trigger", body)).json["id"]
    return run


def values(stream: Stream) -> list[Any]:
    opened = [open_envelope(record.body) for record in stream.records]
    return [None if one is None else one[0] for one in opened]


async def sent(http: Http, path: str, *lines: Any, **headers: str) -> int:
    text = b"\n".join(msgspec.json.encode(line) for line in lines)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await http("POST", path, pieces=[text], headers=named)).status


async def test_values_are_stored_in_order_once_and_followed_from_any_place() -> None:
    # W-135, W-136, W-137
    async with server() as http:
        run = await triggered(http)
        path = f"{S}/{run}/self/a%2Fb"
        begun = await http("PUT", path)
        assert await sent(http, path, {"n": 0}, "one", x_client_id="c") == 200
        assert await sent(http, path, {"n": 0}, "one", [2], x_client_id="c") == 200
        await http("POST", f"{path}/append", raw=b"plain", headers={"x-part-id": "p"})
        await http("POST", f"{path}/append", raw=b"plain", headers={"x-part-id": "p"})
        async with http.follow(f"{S}/{run}/a%2Fb") as stream:
            await stream.wait(lambda: len(stream.records) == 4)
        async with http.follow(f"{S}/{run}/a%2Fb", headers={"last-event-id": "1"}) as rest:
            await rest.wait(lambda: len(rest.records) == 2)

    assert (begun.status, begun.json) == (202, {"version": "v1"})
    assert values(stream) == [{"n": 0}, "one", [2], "plain"]
    assert stream.headers["x-stream-version"] == "v2"
    assert values(rest) == [[2], "plain"]


async def test_a_child_writes_to_its_parent_and_root() -> None:
    # W-135
    async with server() as http:
        root = await triggered(http)
        parent = await triggered(http, parentRunId=root)
        child = await triggered(http, parentRunId=parent)
        assert await sent(http, f"{S}/{child}/parent/s", "up") == 200
        assert await sent(http, f"{S}/{child}/root/s", "top") == 200
        none = await sent(http, f"{S}/{root}/parent/s", "nowhere")
        other = await sent(http, f"{S}/{root}/uncle/s", "nowhere")
        seen = []
        for run in (parent, root):
            async with http.follow(f"{S}/{run}/s") as stream:
                await stream.wait(lambda stream=stream: stream.records)
                seen.append(values(stream))

    assert seen == [["up"], ["top"]]
    assert (none, other) == (404, 400)


async def test_a_run_that_has_ended_is_read_and_not_written() -> None:
    # W-139
    async with server() as http:
        run = await triggered(http)
        await sent(http, f"{S}/{run}/self/s", 1)
        await http("POST", f"/api/v2/runs/{run}/cancel")
        late = await http("POST", f"{S}/{run}/self/s/append", raw=b"late")
        put = await http("PUT", f"{S}/{run}/self/s")
        poked = await http("POST", f"{S}/{run}/input/s", {"data": 1})
        async with http.follow(f"{S}/{run}/s") as stream:
            await stream.wait(lambda: stream.records)

    assert (late.status, put.status, poked.status) == (400, 400, 400)
    assert put.text == "Cannot append to a stream of a run that has ended"
    assert values(stream) == [1]


async def test_input_streams_take_values_under_a_runs_own_token() -> None:
    # W-138
    async with server() as http:
        run = await triggered(http)
        token = http.token(f"write:inputStreams:{run}", f"read:runs:{run}")
        done = await http("POST", f"{S}/{run}/input/keys", {"data": {"k": 1}}, key=token)
        refused = await http("POST", f"{S}/{run}/self/keys/append", raw=b"x", key=token)
        async with http.follow(f"{S}/{run}/input/keys", key=token) as stream:
            await stream.wait(lambda: stream.records)
        nobody = http.token("read:runs:run_x")
        hidden = await http("GET", f"{S}/{run}/keys", key=nobody)
        poked = await http("POST", f"{S}/{run}/input/keys", {"data": 1}, key=nobody)

    assert (done.status, done.json) == (200, {"ok": True})
    assert values(stream) == ['{"k":1}']
    assert (refused.status, hidden.status, poked.status) == (403, 403, 403)


async def test_what_is_written_is_bounded() -> None:
    async with server() as http:
        run = await triggered(http)
        path = f"{S}/{run}/self/s"
        text = b"x" * limits.RUN_STREAM_APPEND_BYTES_MAX
        fits = await http("POST", f"{path}/append", raw=text)
        over = await http("POST", f"{path}/append", raw=text + b"x")
        line = b'"' + b"x" * (limits.CHUNK_BYTES_MAX - 2) + b'"'
        long = await http("POST", path, pieces=[line])
        longer = await http("POST", path, pieces=[line + b" "])
        broken = await http("POST", path, pieces=[b"{"])
        name = await http("PUT", f"{S}/{run}/self/{'n' * 129}")
        unknown = await http("PUT", f"{S}/run_none/self/s")

    assert (fits.status, over.status) == (200, 413)
    assert (long.status, longer.status) == (200, 413)
    assert (broken.status, name.status, unknown.status) == (400, 400, 404)
