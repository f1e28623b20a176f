"""`RunRuntime` over the memory engines: what a run sees, without server, link or network.

`World` is what outlives a run: the streams, the snapshot, the clock. `MemoryRuntime` is one
attempt in it. Appends keep the order of their calls through one writer task, and their fence is
checked by the store as in production, so a run that was superseded finds out in the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from everturn.clock import Clock
from everturn.errors import EverturnError, Fenced
from everturn.ids import Ids, RandomIds
from everturn.protocol import history
from everturn.protocol.records import (
    CONTROL_HEADER,
    ChannelName,
    InputCursor,
    Io,
    NewRecord,
    Record,
    input_body,
)
from everturn.protocol.runs import RunInfo, RunResult, TokenResult
from everturn.rules import limits
from everturn.storage.memory.objects import MemoryObjects
from everturn.storage.memory.streams import MemoryStreams
from everturn.storage.ports.streams import Subscription
from everturn.tasks.channels import within
from everturn.tasks.runtime import StoredSnapshot, TailReader, Woken
from everturn.tasks.signals import Signal
from everturn.testing.clock import VirtualClock
from everturn.testing.nearby import Nearby

ENVIRONMENT = "env_test"
SNAPSHOT = "snapshot"


class World:
    """One session and what is stored of it."""

    def __init__(self, session: str, *, clock: Clock | None = None, ids: Ids | None = None) -> None:
        """`session` is the session key. The clock is virtual unless one is given."""
        self.clock = clock if clock is not None else VirtualClock()
        self.ids = ids if ids is not None else RandomIds(1)
        self.session = session
        self.streams = MemoryStreams(self.clock)
        self.objects = MemoryObjects()
        #: Wait tokens, and the tasks that code in this world may start.
        self.nearby = Nearby(self)
        #: Runs a function beside the session; what is started with it ends with the world.
        self.spawn: Callable[..., object] | None = None
        self.consumed: int | None = None
        self.fence = 0
        #: Reasons of end-and-continue calls, in order.
        self.continued: list[str] = []
        #: `(after, until_ms)` of every suspension.
        self.waits: list[tuple[int | None, int | None]] = []
        #: Names of the reads a run made: "snapshot", "in", "out".
        self.reads: list[str] = []
        self.snapshot_writes = 0
        #: Told of each control record and snapshot (`SN`) as it is stored.
        self.stored: Callable[[str], None] = lambda what: None
        #: Raised by the next calls of that name ("load_snapshot", "save_snapshot", "read", …).
        self.faults: dict[str, list[EverturnError]] = {}

    def channel(self, io: Io) -> ChannelName:
        return ChannelName(ENVIRONMENT, self.session, io)

    async def post(self, text: str, *, part_id: str | None = None) -> int:
        """Append one record to `.in` as a client does; its seq_num."""
        part = part_id if part_id is not None else self.ids.part()
        record = NewRecord(body=input_body(text, part), part_id=part)
        return (await self.streams.append(self.channel("in"), [record])).seq_nums[0]

    async def read_all(self, io: Io, *, after: int | None = None) -> list[Record]:
        """Every record after a cursor, trimmed ones included."""
        found: list[Record] = []
        while True:
            page = await self.streams.read(self.channel(io), after=after, include_trimmed=True)
            if not page:
                return found
            found.extend(page)
            after = page[-1].seq_num

    async def next_fence(self) -> int:
        """Raise the fence for a new attempt: the one before it writes no more."""
        self.fence += 1
        await self.streams.raise_fence(self.channel("out"), self.fence)
        return self.fence

    def fail(self, call: str) -> None:
        """Raise what a test planned for this call."""
        planned = self.faults.get(call)
        if planned:
            raise planned.pop(0)


class _Receipt:
    """The answer of an append: awaited, or not."""

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._seqs: Sequence[int] = ()
        self._error: BaseException | None = None

    def settle(self, seqs: Sequence[int], error: BaseException | None = None) -> None:
        self._seqs, self._error = seqs, error
        self._done.set()

    def __await__(self) -> Generator[Any, Any, Sequence[int]]:
        yield from self._done.wait().__await__()
        if self._error is not None:
            raise self._error
        return self._seqs


class _Tail:
    """A TailReader over a subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def next(self) -> Sequence[Record]:
        return await self._subscription.next()

    def close(self) -> None:
        self._subscription.close()


class MemoryRuntime:
    """One attempt of a run in a `World`."""

    def __init__(self, world: World, info: RunInfo, tasks: TaskGroup) -> None:
        """`tasks` runs the writer; cancelling it is the death of the process."""
        self.world = world
        self._info = info
        self._cancelled = Signal()
        self._draining = Signal()
        self._queue: deque[tuple[Sequence[NewRecord], int, _Receipt]] = deque()
        self._more = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._next_part = 0
        self._error: BaseException | None = None
        self.suspended = False
        self.cursor = InputCursor()
        self.turns = 0
        self.tags: list[str] = []
        self.journal: list[tuple[int, str, bytes]] = []
        tasks.start_soon(self._write)

    @property
    def info(self) -> RunInfo:
        return self._info

    @property
    def clock(self) -> Clock:
        return self.world.clock

    @property
    def ids(self) -> Ids:
        return self.world.ids

    @property
    def cancelled(self) -> Signal:
        return self._cancelled

    @property
    def draining(self) -> Signal:
        return self._draining

    # --- channels ------------------------------------------------------------------------------

    def append(self, records: Sequence[NewRecord]) -> Awaitable[Sequence[int]]:
        receipt = _Receipt()
        if self._error is not None:
            receipt.settle((), self._error)
            return receipt
        self._queue.append((records, self._next_part, receipt))
        self._next_part += len(records)
        if self._idle.is_set():
            self._idle = anyio.Event()
        self._more.set()
        return receipt

    async def _write(self) -> None:
        channel = self.world.channel("out")
        while True:
            while not self._queue:
                self._idle.set()
                self._more = anyio.Event()
                await self._more.wait()
            records, first_part, receipt = self._queue[0]
            try:
                if self._error is not None:
                    raise self._error
                stored = await self.world.streams.append(
                    channel, records, fence=self._info.fence, first_part=first_part
                )
                for record in records:
                    control = dict(record.headers).get(CONTROL_HEADER)
                    if control is not None:
                        self.world.stored(control)
                receipt.settle(stored.seq_nums)
            except EverturnError as error:
                if isinstance(error, Fenced):
                    self._error = error
                receipt.settle((), error)
            self._queue.popleft()

    async def room(self) -> None:
        await checkpoint()
        if len(self._queue) > limits.BATCH_RECORDS_MAX:
            await self._idle.wait()

    async def flush(self) -> None:
        await self._idle.wait()
        if self._error is not None:
            raise self._error

    def part_id(self) -> str:
        return f"{self._info.fence}-{self._next_part}"

    async def read(
        self, io: Io, *, after: int | None = None, before: int | None = None, limit: int = 1000
    ) -> Sequence[Record]:
        self.world.reads.append(io)
        self.world.fail(f"read_{io}")
        channel = self.world.channel(io)
        if before is not None:
            return await self.world.streams.read_back(channel, before=before, records_max=limit)
        return await self.world.streams.read(channel, after=after, records_max=limit)

    def tail(self, io: Io, after: int | None) -> TailReader:
        return _Tail(self.world.streams.subscribe(self.world.channel(io), after))

    # --- waiting -------------------------------------------------------------------------------

    async def suspend_on_input(self, after: int | None, *, until_ms: int | None) -> Woken:
        self.world.waits.append((after, until_ms))
        await self.flush()
        subscription = self.world.streams.subscribe(self.world.channel("in"), after)
        found: list[Record] = []

        async def first() -> None:
            found.extend(await subscription.next())

        try:
            woken = await self._parked(until_ms, first)
        finally:
            subscription.close()
        return Woken(records=tuple(found)) if woken else Woken(timed_out=True)

    async def suspend_until(self, until_ms: int) -> Woken:
        await self._parked(until_ms, anyio.sleep_forever)
        return Woken(timed_out=True)

    async def suspend_on_run(self, run_id: str, *, until_ms: int | None = None) -> Woken:
        await self.flush()
        woken = await self._parked(until_ms, lambda: self.world.nearby.run_finished(run_id))
        return Woken(timed_out=not woken, result=self.world.nearby.run_result(run_id))

    async def suspend_on_token(self, token_id: str) -> Woken:
        await self.flush()
        await self._parked(None, lambda: self.world.nearby.token_settled(token_id))
        return Woken()

    async def _parked(self, until_ms: int | None, wait: Any) -> bool:
        left_s = None if until_ms is None else (until_ms - self.clock.now_ms()) / 1000
        self.suspended = True
        try:
            return await within(self.clock, left_s, wait)
        finally:
            self.suspended = False

    # --- everything else -----------------------------------------------------------------------

    async def load_snapshot(self) -> StoredSnapshot:
        self.world.reads.append("snapshot")
        self.world.fail("load_snapshot")
        return StoredSnapshot(await self.world.objects.get(SNAPSHOT))

    async def patch_snapshot(self, data: bytes) -> None:
        """The same to a test as a whole snapshot: it finds the document either way."""
        self.world.fail("save_snapshot")
        document = history.compose(await self.world.objects.get(SNAPSHOT), [data])
        assert document is not None
        await self._store_snapshot(document)

    async def save_snapshot(self, data: bytes) -> None:
        self.world.fail("save_snapshot")
        await self._store_snapshot(data)

    async def _store_snapshot(self, data: bytes) -> None:
        self.world.snapshot_writes += 1
        await self.world.objects.put(SNAPSHOT, data)
        self.world.stored("SN")

    async def mint_token(self, scopes: Sequence[str], ttl_s: int) -> str:
        self.world.fail("mint_token")
        return f"token-{self._info.run_id}"

    async def end_and_continue(self, reason: str) -> bool:
        self.world.fail("end_and_continue")
        self.world.continued.append(reason)
        return True

    async def trigger(
        self, task_id: str, payload: bytes, payload_type: str, options: Mapping[str, Any]
    ) -> tuple[str, bool]:
        return self.world.nearby.start(task_id, payload, payload_type, options)

    async def run_result(self, run_id: str) -> RunResult | None:
        return self.world.nearby.run_result(run_id)

    async def cancel_run(self, run_id: str) -> None:
        self.world.nearby.cancel(run_id)

    async def token_result(self, token_id: str) -> TokenResult:
        return self.world.nearby.token_result(token_id)

    async def change_metadata(
        self, operations: Sequence[Mapping[str, Any]], key: str | None = None
    ) -> None:
        pass

    async def add_tags(self, tags: Sequence[str]) -> None:
        self.tags.extend(tags)

    async def set_consumed(self, seq_num: int) -> None:
        self.world.consumed = seq_num

    def report(self, *, cursor: InputCursor | None = None, turns: int | None = None) -> None:
        self.cursor = cursor if cursor is not None else self.cursor
        self.turns = turns if turns is not None else self.turns

    async def journal_put(self, position: int, key: str, result: bytes) -> None:
        self.journal.append((position, key, result))
