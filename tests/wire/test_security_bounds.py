"""Load and its bounds (design §8): many readers, readers that never read, bursts, the clock.

In one process, where memory can be measured; each is short. `test_cli_full_disk.py` has what
needs a real disk.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from http_harness import KEY, Http, scope_of, server, session_body, settle

from everturn.errors import Unavailable
from everturn.protocol import paths
from everturn.protocol.records import NewRecord, data_body
from everturn.rules import limits

pytestmark = pytest.mark.anyio

OUT = "/realtime/v1/sessions/chat-1/out"
READERS = 1_000
SESSIONS = 2_000


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        await opened.create()
        yield opened


async def write(http: Http, count: int, size: int, start: int = 0) -> None:
    for n in range(start, start + count):
        body = data_body(b'"' + b"x" * size + b'"', f"p{n}")
        await http.system.services.streams.append(http.channel(), [NewRecord(body, (), f"p{n}")])


class Reader:
    """Counts what it is sent; `stuck` never takes anything after the headers."""

    def __init__(self, stuck: bool = False) -> None:
        self.status = 0
        self.events = 0
        self.bytes = 0
        self.left = anyio.Event()
        self._stuck = stuck

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.bytes += len(message["body"])
        self.events += message["body"].count(b"event: batch")
        if self._stuck:
            await self.left.wait()

    async def follow(self, http: Http) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        await http.system.app(scope_of("GET", OUT, headers), self.receive, self.send)


async def until(condition: Any) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_a_thousand_readers_of_one_channel_all_get_every_record(http: Http) -> None:
    readers = [Reader() for _ in range(READERS)]
    async with anyio.create_task_group() as tasks:
        for reader in readers:
            tasks.start_soon(reader.follow, http)
        await until(lambda: all(reader.status == 200 for reader in readers))
        assert http.system.app.readers.count == READERS
        for n in range(5):
            await write(http, 1, 100, start=n)
            await until(lambda n=n: all(reader.events > n for reader in readers))
        for reader in readers:
            reader.left.set()
    assert http.system.app.readers.count == 0
    assert len({reader.bytes for reader in readers}) == 1


async def test_a_reader_that_never_reads_holds_no_more_than_one_page(http: Http) -> None:
    """16 MiB are written past ten readers whose connections take nothing."""
    readers = [Reader(stuck=True) for _ in range(10)]
    async with anyio.create_task_group() as tasks:
        for reader in readers:
            tasks.start_soon(reader.follow, http)
        await until(lambda: all(reader.status == 200 for reader in readers))
        await write(http, 1, 1000)
        await until(lambda: all(reader.bytes for reader in readers))
        gc.collect()
        tracemalloc.start()
        try:
            await write(http, 64, 256 * limits.KIB, start=1)
            await settle()
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for reader in readers:
            assert reader.bytes < 2 * limits.READ_BYTES_MAX
            reader.left.set()
    # What is written is held once, by the engine in memory, and not once per reader.
    assert held < (64 * 256 * limits.KIB) * 2 + 10 * limits.READ_BYTES_MAX


async def test_one_reader_too_many_is_told_to_come_back_later() -> None:
    async with server(readers_max=3) as http:
        await http.create()
        readers = [Reader() for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(reader.follow, http)
            await until(lambda: all(reader.status == 200 for reader in readers))
            refused = await http("GET", OUT)
            assert refused.status == 503
            assert "retry-after" in refused.headers
            readers[0].left.set()
            await until(lambda: http.system.app.readers.count == 2)
            readers[0] = Reader()
            tasks.start_soon(readers[0].follow, http)
            await until(lambda: readers[0].status == 200)
            for reader in readers:
                reader.left.set()


async def test_a_burst_of_two_thousand_sessions_is_two_thousand_sessions_and_runs(
    http: Http,
) -> None:
    """A hundred callers at once, each external id asked for twice."""
    found: dict[str, set[tuple[str, str]]] = {}
    waiting = [f"burst-{n // 2}" for n in range(SESSIONS * 2)]

    async def caller() -> None:
        while waiting:
            key = waiting.pop()
            reply = await http("POST", paths.SESSIONS, session_body(key))
            assert reply.status in (200, 201), reply
            found.setdefault(key, set()).add((reply.json["id"], reply.json["runId"]))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(caller)
    assert len(found) == SESSIONS
    assert all(len(ids) == 1 for ids in found.values())
    assert len({next(iter(ids)) for ids in found.values()}) == SESSIONS


async def test_a_record_at_the_limit_reaches_its_reader_whole(http: Http) -> None:
    room = limits.RECORD_BYTES_MAX - 8 - len(data_body(b'""', "p0"))
    await write(http, 1, room)
    async with http.follow(OUT) as stream:
        await stream.wait(lambda: stream.records)
        (record,) = stream.records
    assert len(record.body) == room + len(data_body(b'""', "p0"))


async def test_a_clock_that_jumps_back_an_hour_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records go on rising, readers go on reading, tokens made before are good, none lives on."""
    async with server() as http:
        await http.create()
        clock = http.clock
        token = http.token("write:sessions:chat-1", "read:sessions:chat-1")
        append = "/realtime/v1/sessions/chat-1/in/append"
        async with http.follow("/realtime/v1/sessions/chat-1/in") as stream:
            assert (await http("POST", append, raw=b"before", key=token)).status == 200
            await stream.wait(lambda: len(stream.records) == 1)
            now_ms = clock.now_ms
            monkeypatch.setattr(clock, "now_ms", lambda: now_ms() - 3_600_000)
            await clock.advance(3)
            assert (await http("POST", append, raw=b"after", key=token)).status == 200
            await stream.wait(lambda: len(stream.records) == 2)
        first, second = stream.records
        assert second.seq_num == first.seq_num + 1
        assert second.timestamp_ms >= first.timestamp_ms
        created = await http("POST", paths.SESSIONS, session_body("chat-2"))
        assert created.status == 201
        page = await http("GET", paths.SESSIONS)
        assert {row["externalId"] for row in page.json["data"]} == {"chat-1", "chat-2"}


async def test_write_sessions_are_bounded(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    from everturn.server.services import direct

    monkeypatch.setattr(direct, "SESSIONS_MAX", 1)
    with http.system.services.direct.session(), pytest.raises(Unavailable):
        http.system.services.direct.session().__enter__()
