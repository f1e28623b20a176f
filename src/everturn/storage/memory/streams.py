"""Streams in one process's memory: the executable specification of the port.

Everything happens between two awaits of one event loop, so every call is atomic by itself and
what stands here can be read as the definition of what the other engines must do. Nothing
survives the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import anyio.lowlevel

from everturn.clock import Clock
from everturn.errors import CursorTrimmed, Fenced, ProtocolError, Unavailable
from everturn.protocol.records import ChannelName, NewRecord, Record, trim_target
from everturn.rules import limits
from everturn.rules.appends import check_append, check_fence, check_parts
from everturn.rules.reads import bounded, clamp_cursor
from everturn.storage.ports.streams import Appended, Bounds


class _Channel:
    """All there is to know of one channel."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.lowest = 0  # seq_num of records[0]: what retention has left
        self.first = 0  # the visible start
        self.fence = 0
        self.timestamp_ms = 0
        self.part_ids: dict[str, int] = {}
        self.lease_parts: dict[int, list[int]] = {}  # fence -> seq_num of part 0, 1, …
        self.trims: list[tuple[int, int]] = []  # (when, visible start), oldest first
        self.waiting: dict[asyncio.Future[None], None] = {}

    @property
    def tail(self) -> int:
        return self.lowest + len(self.records)

    def store(self, new: NewRecord, fence: int, part: int) -> int:
        seq_num = self.tail
        self.records.append(Record(seq_num, self.timestamp_ms, new.headers, new.body, fence, part))
        target = trim_target(new.headers, new.body)
        if target is not None and min(target, seq_num) > self.first:
            self.first = min(target, seq_num)
            self.trims.append((self.timestamp_ms, self.first))
        return seq_num

    def forget(self, trimmed_before_ms: int) -> None:
        """Delete what was trimmed that long ago, and the part ids with it."""
        while self.trims and self.trims[0][0] <= trimmed_before_ms:
            bound = self.trims.pop(0)[1]
            del self.records[: bound - self.lowest]
            self.lowest = bound
            self.part_ids = {p: seq for p, seq in self.part_ids.items() if seq >= bound}

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)


class MemoryStreams:
    """`storage.ports.streams.StreamStore` in memory.

    Args:
        clock: where timestamps come from.
        retention_ms: how long trimmed records stay readable with `include_trimmed`.
    """

    def __init__(self, clock: Clock, *, retention_ms: int = limits.RETENTION_MS) -> None:
        self._clock = clock
        self._retention_ms = retention_ms
        self._channels: dict[ChannelName, _Channel] = {}
        self._closed = False

    async def append(
        self,
        channel: ChannelName,
        records: Sequence[NewRecord],
        *,
        fence: int | None = None,
        first_part: int | None = None,
    ) -> Appended:
        """See the port. The fence is checked first, then what is already known is left out."""
        await self._checkpoint()
        check_append(records, fence, first_part)
        place = self._channels.get(channel) or _Channel()
        tail = place.tail
        now = self._clock.now_ms()
        if fence is None or first_part is None:
            seq_nums = self._append_guest(place, records, now)
        else:
            seq_nums = self._append_parts(place, records, fence, first_part, now)
        self._channels[channel] = place
        if place.tail > tail:
            place.wake()
        new = place.tail - tail
        place.forget(now - self._retention_ms)
        return Appended(tuple(seq_nums), new, place.timestamp_ms)

    @staticmethod
    def _append_guest(place: _Channel, records: Sequence[NewRecord], now: int) -> list[int]:
        seq_nums = []
        for new in records:
            known = None if new.part_id is None else place.part_ids.get(new.part_id)
            if known is None:
                place.timestamp_ms = max(place.timestamp_ms, now)
                known = place.store(new, fence=0, part=-1)
                if new.part_id is not None:
                    place.part_ids[new.part_id] = known
            seq_nums.append(known)
        return seq_nums

    @staticmethod
    def _append_parts(
        place: _Channel, records: Sequence[NewRecord], fence: int, first_part: int, now: int
    ) -> list[int]:
        if fence < place.fence:
            raise Fenced(f"fence {fence} is below {place.fence}", fence=fence, at=place.fence)
        stored = place.lease_parts.get(fence, [])
        if first_part > len(stored):
            raise ProtocolError(
                f"part {first_part} leaves a gap: the next of fence {fence} is {len(stored)}"
            )
        place.fence = fence
        place.lease_parts[fence] = stored
        for new in records[len(stored) - first_part :]:
            place.timestamp_ms = max(place.timestamp_ms, now)
            stored.append(place.store(new, fence, part=len(stored)))
        return stored[first_part : first_part + len(records)]

    async def raise_fence(self, channel: ChannelName, fence: int) -> None:
        """See the port."""
        await self._checkpoint()
        check_fence(fence)
        place = self._channels.setdefault(channel, _Channel())
        place.fence = max(place.fence, fence)

    async def part_seqs(
        self, channel: ChannelName, fence: int, first_part: int, count: int
    ) -> list[int | None]:
        """See the port."""
        await self._checkpoint()
        check_parts(fence, first_part, count)
        place = self._channels.get(channel)
        stored = place.lease_parts.get(fence, []) if place else []
        return [
            stored[p] if p < len(stored) else None for p in range(first_part, first_part + count)
        ]

    async def read(
        self,
        channel: ChannelName,
        *,
        after: int | None,
        records_max: int = limits.READ_RECORDS_MAX,
        bytes_max: int = limits.READ_BYTES_MAX,
        include_trimmed: bool = False,
    ) -> Sequence[Record]:
        """See the port."""
        await self._checkpoint()
        place = self._channels.get(channel)
        if place is None:
            return []
        if not include_trimmed and after is not None and after + 1 < place.first:
            raise CursorTrimmed(place.first)
        start = 0 if after is None else after + 1
        start = max(start, place.lowest if include_trimmed else place.first)
        return bounded(place.records[start - place.lowest :], records_max, bytes_max)

    async def read_back(
        self, channel: ChannelName, *, before: int | None, records_max: int
    ) -> Sequence[Record]:
        """See the port."""
        await self._checkpoint()
        place = self._channels.get(channel)
        if place is None:
            return []
        end = place.tail if before is None else min(before, place.tail)
        visible = place.records[place.first - place.lowest : max(end - place.lowest, 0)]
        return bounded(visible[::-1], records_max, limits.READ_BYTES_MAX)

    async def bounds(self, channel: ChannelName) -> Bounds:
        """See the port."""
        await self._checkpoint()
        place = self._channels.get(channel)
        return Bounds(place.first, place.tail, place.timestamp_ms) if place else Bounds(0, 0, 0)

    def subscribe(self, channel: ChannelName, after: int | None) -> MemorySubscription:
        """See the port."""
        self._check_open()
        place = self._channels.setdefault(channel, _Channel())
        return MemorySubscription(place, after, self._check_open)

    async def forget(self, channels: Sequence[ChannelName]) -> frozenset[ChannelName]:
        """See the port."""
        await self._checkpoint()
        waited_at = {name for name, place in self._channels.items() if place.waiting}
        gone = frozenset(channels) - waited_at
        for name in gone:
            self._channels.pop(name, None)
        return gone

    async def recent_channels(self) -> Iterable[ChannelName]:
        """All channels: with this engine, a crash leaves none."""
        await self._checkpoint()
        return [name for name, place in self._channels.items() if place.tail]

    async def close(self) -> None:
        """See the port. Readers that wait are told."""
        self._closed = True
        for place in self._channels.values():
            place.wake()

    async def _checkpoint(self) -> None:
        # Other tasks get their turn before a call takes effect, as with an engine that waits.
        await anyio.lowlevel.checkpoint()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the stream store is closed")


class MemorySubscription:
    """A reader's place in a channel."""

    def __init__(self, place: _Channel, after: int | None, check_open: Callable[[], None]) -> None:
        self._place = place
        self._check_open = check_open
        self._cursor = clamp_cursor(after, place.first, place.tail)

    @property
    def cursor(self) -> int | None:
        """The seq_num of the last record handed out."""
        return self._cursor

    @property
    def caught_up(self) -> bool:
        """True when nothing visible lies after the cursor right now."""
        return self._next_seq_num() >= self._place.tail

    async def next(
        self,
        *,
        records_max: int = limits.READ_RECORDS_MAX,
        bytes_max: int = limits.READ_BYTES_MAX,
    ) -> Sequence[Record]:
        """See the port."""
        await anyio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if not self.caught_up:
                break
            await self._wait()
        start = self._next_seq_num() - self._place.lowest
        found = bounded(self._place.records[start:], records_max, bytes_max)
        self._cursor = found[-1].seq_num
        return found

    async def _wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._place.waiting[future] = None
        try:
            await future
        finally:
            self._place.waiting.pop(future, None)

    def _next_seq_num(self) -> int:
        after = -1 if self._cursor is None else self._cursor
        return max(after + 1, self._place.first)

    def close(self) -> None:
        """Nothing is held between two calls of `next`, so there is nothing to let go of."""
