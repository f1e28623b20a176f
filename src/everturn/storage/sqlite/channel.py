"""A channel as the engine holds it in memory.

There are two views of it. What is *visible* (`first`, `tail`, `visible_timestamp_ms`) is durable
and is what readers get. What is *decided* (`next_seq`, `fence`, `next_part`, …) also counts the
commit that is being written. They differ only while that commit is in flight, and there is one
at a time: `publish` makes the decided state the visible one, `roll_back` returns to it.

`records` holds the newest records without a gap, from `base` on; older ones are in segments.
Those from `tail` on are in flight and nobody's business yet. Records not yet compacted are always
in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from everturn.errors import StorageCorrupt
from everturn.protocol.records import ChannelName, Record

#: What a record costs in memory beside its body: the object, its numbers, its encoded form.
RECORD_OVERHEAD = 300


class PartRange(NamedTuple):
    """Parts `first_part …` of a fence got the numbers `first_seq …`, `length` of them."""

    fence: int
    first_part: int
    first_seq: int
    length: int


class Channel:
    """The state of one channel; see above. Changed on the event loop only."""

    __slots__ = (
        "_saved",
        "base",
        "bytes",
        "commit",
        "compacted",
        "decided_first",
        "dirty",
        "fence",
        "first",
        "id",
        "name",
        "next_part",
        "next_seq",
        "records",
        "tail",
        "timestamp_ms",
        "trimmed_at_ms",
        "visible_timestamp_ms",
        "waiting",
    )

    def __init__(
        self,
        name: ChannelName,
        id: int | None = None,
        compacted: int = 0,
        first: int = 0,
        fence: int = 0,
        next_part: int = 0,
        timestamp_ms: int = 0,
    ) -> None:
        self.name = name
        #: Its number in the file; None as long as nothing was stored.
        self.id = id
        self.records: list[Record] = []
        self.base = compacted
        self.compacted = compacted
        self.first = first
        #: The seq_num after the last visible record.
        self.tail = compacted
        self.visible_timestamp_ms = timestamp_ms
        self.next_seq = compacted
        self.decided_first = first
        self.fence = fence
        self.next_part = next_part
        self.timestamp_ms = timestamp_ms
        #: Estimated bytes of `records`.
        self.bytes = 0
        #: Whether the log holds something of it that its row and its segments do not.
        self.dirty = False
        #: When `first` moved since the last compaction, else None.
        self.trimmed_at_ms: int | None = None
        #: Readers to be woken by the next commit that adds records here.
        self.waiting: dict[asyncio.Future[None], None] = {}
        #: The commit that last decided something here.
        self.commit: object = None
        self._saved: tuple[int | None, int, int, int] = (id, 0, 0, 0)

    @property
    def idle(self) -> bool:
        """Whether the file alone would do."""
        return not self.records and not self.waiting and not self.dirty

    def begin(self, commit: object) -> None:
        """Remember what to return to, before the first decision of a commit."""
        self.commit = commit
        self._saved = (self.id, self.fence, self.next_part, self.bytes)

    def take_fence(self, fence: int) -> None:
        """A newer lease begins; its parts are numbered from 0."""
        self.fence = fence
        self.next_part = 0

    def trim(self, target: int, command_seq: int) -> None:
        """A trim command was stored: the start moves, never back, never past the command."""
        self.decided_first = max(self.decided_first, min(target, command_seq))

    def publish(self, now_ms: int | None = None) -> None:
        """The commit is durable: show it.

        `now_ms` is the time a trim is counted from; without it, that of the newest record, which
        may have been dated by a clock that was ahead.
        """
        self.tail = self.next_seq
        self.visible_timestamp_ms = self.timestamp_ms
        if self.decided_first > self.first:
            self.first = self.decided_first
            self.trimmed_at_ms = self.timestamp_ms if now_ms is None else now_ms

    def roll_back(self) -> None:
        """The commit failed: decide anew from what is stored."""
        self.id, self.fence, self.next_part, self.bytes = self._saved
        self.next_seq = self.tail
        self.decided_first = self.first
        self.timestamp_ms = self.visible_timestamp_ms
        del self.records[self.tail - self.base :]

    def wake(self) -> None:
        """Tell all readers that wait. One future each, no task each."""
        if self.waiting:
            waiting, self.waiting = self.waiting, {}
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def fill_parts(self, found: list[int | None], fence: int, first_part: int) -> None:
        """Write the numbers of parts into `found`, as far as their records are in memory."""
        for record in reversed(self.records):
            if record.fence and (
                record.fence < fence or (record.fence == fence and record.part < first_part)
            ):
                return  # leases and their parts only rise
            if record.fence == fence and record.part - first_part < len(found):
                found[record.part - first_part] = record.seq_num

    def check_trimmed(self, seq_num: int, path: Path) -> None:
        """Raise StorageCorrupt for a record that the file lacks, unless it was trimmed before."""
        if seq_num >= self.first:
            place = f"{path}: record {seq_num} of channel {self.id}"
            raise StorageCorrupt(f"{place} is missing", place=place)

    def let_go(self) -> int:
        """Forget the compacted records; the bytes that freed."""
        count = self.compacted - self.base
        if count == len(self.records):
            freed, self.bytes = self.bytes, 0
        else:
            freed = sum(record_cost(record) for record in self.records[:count])
            self.bytes -= freed
        del self.records[:count]
        self.base = self.compacted
        return freed


def record_cost(record: Record) -> int:
    """Estimated bytes of a record in memory, with its encoded form."""
    return RECORD_OVERHEAD + 2 * len(record.body) + headers_cost(record)


def headers_cost(record: Record) -> int:
    """The share of its headers in the above."""
    return 2 * sum(len(name) + len(value) for name, value in record.headers)


def part_ranges(records: Sequence[Record]) -> list[PartRange]:
    """The parts of leases among consecutive records.

    Numbers rise by one per record and parts by at most one, so a whole stretch is one range
    exactly when both rose alike; that is looked at first.
    """
    first, last = records[0], records[-1]
    if first.fence == last.fence != 0 and last.part - first.part == last.seq_num - first.seq_num:
        return [PartRange(first.fence, first.part, first.seq_num, len(records))]
    ranges: list[PartRange] = []
    for record in records:
        if not record.fence:
            continue
        if ranges:
            fence, part, seq_num, length = ranges[-1]
            if (fence, part + length, seq_num + length) == (
                record.fence,
                record.part,
                record.seq_num,
            ):
                ranges[-1] = PartRange(fence, part, seq_num, length + 1)
                continue
        ranges.append(PartRange(record.fence, record.part, record.seq_num, 1))
    return ranges
