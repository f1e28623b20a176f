"""The worker's end of the link: errors, reconnecting, leases, slices."""

from __future__ import annotations

import logging
import socket
from typing import Any

import anyio
import msgspec
import pytest

from everturn.errors import ConfigurationError, NotAuthenticated, ProtocolError
from everturn.protocol import link as frames
from everturn.protocol.records import NewRecord
from everturn.rules import limits
from everturn.tasks import runtime as runtimes
from everturn.tasks import waits
from everturn.tasks.definition import task
from everturn.worker.calls import error_of
from everturn.worker.link import link_address
from everturn.worker.loading import App
from everturn.worker.worker import Worker

pytestmark = pytest.mark.anyio


def worker_for(server: Any, registry: Any, key: str = "tr_dev_test") -> Worker:
    return Worker(App("test", msgspec, registry), server.url, key, version="v1")


async def test_a_refused_key_ends_the_worker_with_one_clear_error(
    server: Any, registry: Any
) -> None:
    with pytest.raises(NotAuthenticated, match="does not accept this secret key"):
        await worker_for(server, registry, "tr_dev_wrong").run()


async def test_a_server_of_another_protocol_version_ends_the_worker(registry: Any) -> None:
    from websockets.asyncio.server import serve

    async def handle(connection: Any) -> None:
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        worker = Worker(
            App("test", msgspec, registry), f"http://127.0.0.1:{port}", "k", version="v1"
        )
        with pytest.raises(ProtocolError, match=r"everturn\.link\.v1"):
            await worker.run()


async def test_an_unreachable_server_is_tried_again_with_one_log_line(
    registry: Any, caplog: Any
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        worker = Worker(App("test", msgspec, registry), url, "k", version="v1")
        with caplog.at_level(logging.WARNING), anyio.move_on_after(0.5):
            await worker.run()

    assert sum("no connection to" in record.getMessage() for record in caplog.records) == 1


async def test_unacknowledged_appends_are_sent_again_after_a_reconnect(
    server: Any, work: Any
) -> None:
    # L-6
    server.acknowledge = False

    @task(id="t")
    async def t(payload: Any) -> list[int]:
        runtime = runtimes.current()
        runtime.append([NewRecord(body=b"a")])
        return list(await runtime.append([NewRecord(body=b"b")]))

    async with work():
        await server.claim(session_id="session_c1", session_key="k")
        await server.next(frames.Append)
        await server.next(frames.Append)
        server.acknowledge = True
        await server.cut()
        again = [await server.next(frames.Append) for _ in range(2)]
        outcome = await server.outcome()

    assert [(f.first_part, f.records[0].body) for f in again] == [(0, b"a"), (1, b"b")]
    assert outcome["output"] == b"[1]"
    assert server.connections == 2


async def test_an_open_call_is_sent_again_with_the_same_id(server: Any, work: Any) -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        await runtimes.current().add_tags(["a"])

    async with work():
        await server.claim()
        first = await server.call("tags")
        await server.cut()
        again = await server.call("tags")
        await server.answer(again, {})
        await server.outcome()

    assert again.id == first.id


async def test_what_was_started_is_said_again_after_a_reconnect_and_what_is_parked_is_not(
    server: Any, work: Any
) -> None:
    """However long the connection was away: the server may not have seen the first Started."""
    go_on = anyio.Event()

    @task(id="runs")
    async def runs(payload: Any) -> None:
        await go_on.wait()

    @task(id="parks")
    async def parks(payload: Any) -> None:
        await waits.for_(seconds=60)

    async with work() as worker:
        await server.claim(run_id="run_c1", task_id="runs")
        await server.claim(run_id="run_c2", task_id="parks")
        await server.call("suspend")
        await server.until(lambda: len(worker.parking) == 1)
        server.frames.clear()
        await server.cut()
        await server.next(frames.Started, lambda frame: frame.run_id == "run_c1")
        await server.next(frames.Credit)
        go_on.set()
        await server.outcome()
        again = [frame for frame in server.frames if isinstance(frame, frames.Started)]

    assert again == []


async def test_a_reconnecting_worker_names_its_runs_and_drops_the_lost(
    server: Any, work: Any
) -> None:
    ended = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            await waits.for_(seconds=60)
        finally:
            ended.set()

    async with work() as worker:
        info = await server.claim(fence=4)
        await server.call("suspend")
        await server.next(frames.Hello)
        server.lost = [info.run_id]
        await server.cut()
        hello = await server.next(frames.Hello)
        with anyio.fail_after(5):
            await ended.wait()
        await server.until(lambda: not worker._attempts)

    assert hello.held == [frames.HeldRun(info.run_id, 4)]
    assert not [f for f in server.frames if isinstance(f, frames.Call) and f.method == "finish"]


async def test_runs_are_stopped_before_the_lease_could_be_given_away(
    server: Any, work: Any
) -> None:
    """The last answered beat counts from when it was sent, less a margin."""
    # L-5
    server.lease_ms, server.heartbeat_ms = 1000, 300
    server.answer_beats = False
    ended = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with work() as worker:
        greeted = worker.clock.monotonic()
        await server.claim()
        with anyio.fail_after(5):
            await ended.wait()
        stopped_after_s = worker.clock.monotonic() - greeted

    assert 0.3 < stopped_after_s < 1.0
    assert not [f for f in server.frames if isinstance(f, frames.Call)]


async def test_a_worker_stalled_past_its_lease_ends_a_connection_that_still_stands(
    server: Any, work: Any
) -> None:
    """P-3: its runs are stopped, and only the Hello of a new connection tells the server so.

    No beat is due in this test, so nothing else finds fault with the connection.
    """
    # L-5
    server.lease_ms, server.heartbeat_ms = 400, 60_000
    ended = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with work():
        await server.next(frames.Hello)
        server.lease_ms = limits.LEASE_MS
        await server.claim()
        with anyio.fail_after(5):
            await ended.wait()
        hello = await server.next(frames.Hello)

    assert hello.held == []
    assert server.connections == 2


async def test_answered_beats_keep_runs_alive(server: Any, work: Any) -> None:
    server.lease_ms, server.heartbeat_ms = 400, 50

    @task(id="t")
    async def t(payload: Any) -> str:
        await anyio.sleep(1.0)
        return "alive"

    async with work():
        await server.claim()
        outcome = await server.outcome()

    assert outcome["output"] == b'"alive"'


async def test_a_large_record_travels_in_slices(server: Any, work: Any) -> None:
    body = bytes(range(256)) * 2000

    @task(id="t")
    async def t(payload: Any) -> list[int]:
        return list(await runtimes.current().append([NewRecord(body=body)]))

    async with work():
        await server.claim(session_id="session_c1", session_key="k")
        frame = await server.next(frames.Append)
        await server.outcome()

    assert len(body) > limits.LINK_SLICE_BYTES_MAX
    assert frame.records[0].body == body


async def test_addresses_and_errors_are_translated() -> None:
    assert link_address("https://host:1/base/") == "wss://host:1/base/link/v1"
    with pytest.raises(ConfigurationError):
        link_address("host")
    assert type(error_of({"code": "fenced", "message": "m"})).__name__ == "Fenced"
    assert error_of({"code": "cursor_trimmed", "details": {"first_seq_num": 7}}).message
