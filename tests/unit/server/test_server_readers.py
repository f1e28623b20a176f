"""A reader of a channel, looked at closely: interruptions, slow clients, broken stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from everturn.ids import RandomIds
from everturn.protocol.records import Record
from everturn.server.routes.reading import Reader, Readers

pytestmark = pytest.mark.anyio


class StillClock:
    now = 0.0

    def now_ms(self) -> int:
        return round(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep_forever()


class Feed:
    """A subscription that hands out what the test puts in."""

    def __init__(self) -> None:
        self.waiting: list[Record] = []
        self.changed = anyio.Event()
        self.cursor: int | None = None

    @property
    def caught_up(self) -> bool:
        return not self.waiting

    def put(self, record: Record) -> None:
        self.waiting.append(record)
        self.changed.set()

    async def next(self, *, records_max: int = 1000, bytes_max: int = 1 << 20) -> Sequence[Record]:
        while not self.waiting:
            self.changed = anyio.Event()
            await self.changed.wait()
        found, self.waiting = self.waiting, []
        return found

    def close(self) -> None:
        pass


class Client:
    """Takes what is sent, when it is let."""

    def __init__(self) -> None:
        self.taken = b""
        self.open = anyio.Event()
        self.open.set()
        self.asked = anyio.Event()

    async def send(self, message: Any) -> None:
        self.asked.set()
        await self.open.wait()
        self.taken += message["body"]


async def settle() -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_records_that_meet_an_interruption_are_delivered_all_the_same() -> None:
    clock, feed, client = StillClock(), Feed(), Client()
    readers = Readers(clock, RandomIds(1), readers_max=10)
    reader = Reader(client.send, feed, clock, timeout_s=60.0)
    readers.admit(reader)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.pump)
        await settle()
        # In one and the same turn of the loop: a record, and the time to ping.
        feed.put(Record(0, 1, (), b"x"))
        clock.now = 20.0
        readers.tick()
        await settle()
        if not client.taken:
            tasks.start_soon(reader.pump)
            await settle()
        tasks.cancel_scope.cancel()
    assert b'"seq_num":0' in client.taken


async def test_a_client_that_does_not_read_is_never_interrupted_in_a_write() -> None:
    clock, feed, client = StillClock(), Feed(), Client()
    readers = Readers(clock, RandomIds(1), readers_max=10)
    reader = Reader(client.send, feed, clock, timeout_s=60.0)
    readers.admit(reader)
    client.open = anyio.Event()
    feed.put(Record(0, 1, (), b"x"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.pump)
        await client.asked.wait()
        for _ in range(20):
            clock.now += 10.0
            readers.tick()
            await settle()
        # One batch is in its hands; what comes meanwhile stays with the store.
        feed.put(Record(1, 1, (), b"y"))
        await settle()
        assert feed.waiting
        client.open.set()
        await settle()
        tasks.cancel_scope.cancel()
    assert b'"seq_num":0' in client.taken
    assert b'"seq_num":1' in client.taken


async def test_dismissed_readers_leave_nothing_behind() -> None:
    clock = StillClock()
    readers = Readers(clock, RandomIds(1), readers_max=10)
    for _ in range(10):
        reader = Reader(Client().send, Feed(), clock, timeout_s=600.0)
        readers.admit(reader)
        readers.dismiss(reader)
    clock.now = 30.0
    readers.tick()
    assert (readers.count, readers.held) == (0, 0)
