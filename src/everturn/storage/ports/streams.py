"""The port of streams: append-only records, one stream per channel.

Promises every engine keeps, and the contract suite checks:

* `append` returns after the records are durable, all of them or none (P-1). What readers see is
  durable: nothing is visible before it is acknowledged.
* `seq_num` rises strictly for the life of the channel, also after trims and restarts (P-2). On
  the engines here it rises by one; no caller may rely on more than rising.
* A repeated part adds nothing and returns the first answer, also after a restart (P-5).
* A write below the fence is refused, by the same single writer that stores it (P-4).
* Any call may raise Unavailable; then nobody knows whether the write happened: call again with
  the same parts.

A trim is a record like any other (`records.trim_record`): the engine recognises it as it stores
it and moves the visible start to its target, never backwards and never past the command itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from everturn.protocol.records import ChannelName, NewRecord, Record


class Appended(msgspec.Struct, frozen=True, gc=False):
    """What an append answered.

    `seq_nums[i]` belongs to `records[i]`, whether it was stored now or by an earlier call;
    `new` counts those stored now. `timestamp_ms` is the time of the channel's newest record as
    the answer was made, which is that of the new records if there are any.
    """

    seq_nums: tuple[int, ...]
    new: int
    timestamp_ms: int


class Bounds(NamedTuple):
    """`first`: lowest visible seq_num. `tail`: the seq_num the next record will get.

    An empty or unknown channel is `(0, 0, 0)`; a channel trimmed empty has `first == tail`.
    """

    first: int
    tail: int
    timestamp_ms: int


class Subscription(Protocol):
    """A reader's place in a channel. One task at a time may use it."""

    @property
    def cursor(self) -> int | None:
        """The seq_num of the last record handed out."""
        ...

    @property
    def caught_up(self) -> bool:
        """True when nothing visible lies after the cursor right now."""
        ...

    async def next(self, *, records_max: int = 1000, bytes_max: int = 1 << 20) -> Sequence[Record]:
        """The next records after the cursor, at least one; waits until there is one.

        Records trimmed before they were handed out are skipped silently: the reader continues at
        the first visible one. Cancelling the wait loses nothing.
        """
        ...

    def close(self) -> None:
        """Forget this place. A waiting `next` is not ended by it: cancel that first."""
        ...


class StreamStore(Protocol):
    """Append-only record streams, one per channel."""

    async def append(
        self,
        channel: ChannelName,
        records: Sequence[NewRecord],
        *,
        fence: int | None = None,
        first_part: int | None = None,
    ) -> Appended:
        """Add records at the tail, all new ones or none; return once they are durable.

        A guest passes neither `fence` nor `first_part`; its records are deduplicated by their
        `part_id` (records without one are always new). A lease holder passes both: record *i* is
        part `first_part + i` of that fence, and `part_id` is ignored. A batch that mixes known
        and new parts stores the new ones and answers for all.

        Args:
            records: 1 to limits.BATCH_RECORDS_MAX, each at most limits.RECORD_BYTES_MAX metered.
            fence: the writer's lease fence, >= 1. One above the channel's fence raises it.
            first_part: number of the first record under that fence, from 0. A lease holder sends
                its parts in order; a part that leaves a gap raises ProtocolError.

        Raises:
            Fenced: the channel's fence is higher than `fence`. The caller must stop.
            TooLarge: names the record and its size in bytes. Nothing was stored.
        """
        ...

    async def raise_fence(self, channel: ChannelName, fence: int) -> None:
        """Refuse appends below `fence` from now on; durable before it returns. Never lowers it."""
        ...

    async def part_seqs(
        self, channel: ChannelName, fence: int, first_part: int, count: int
    ) -> list[int | None]:
        """The seq_nums of parts of a fence; None for those not stored. For resending links."""
        ...

    async def read(
        self,
        channel: ChannelName,
        *,
        after: int | None,
        records_max: int = 1000,
        bytes_max: int = 1 << 20,
        include_trimmed: bool = False,
    ) -> Sequence[Record]:
        """Stored records after a cursor, oldest first, without waiting; empty when caught up.

        Returns at least one record when there is one, then stops at either bound.

        Args:
            after: the last seq_num already seen; None for the oldest visible record.
            include_trimmed: also what lies below the visible start and is still retained.

        Raises:
            CursorTrimmed: `after + 1` lies below the visible start (not with include_trimmed).
        """
        ...

    async def read_back(
        self, channel: ChannelName, *, before: int | None, records_max: int
    ) -> Sequence[Record]:
        """The newest visible records with `seq_num < before` (None: from the tail), newest first.

        At most `records_max` and limits.READ_BYTES_MAX bytes, at least one if there is one.
        """
        ...

    async def bounds(self, channel: ChannelName) -> Bounds:
        """Where the channel starts and ends right now."""
        ...

    def subscribe(self, channel: ChannelName, after: int | None) -> Subscription:
        """A place to read on from, waiting for new records.

        The cursor is clamped: past the tail means "from the tail as it is now" (wire-protocol
        §5.3), below the visible start means the first visible record. The channel need not exist.
        """
        ...

    async def forget(self, channels: Sequence[ChannelName]) -> frozenset[ChannelName]:
        """Delete channels, with everything there is of them; those of which nothing is left.

        For channels whose names are never used again. One that is being written, or waited at, is
        left as it is, and one that could not be deleted in a few seconds may be deleted later:
        call again, it is harmless. While a channel is being deleted, other calls that name it
        may raise Unavailable; afterwards it is unknown, as if it had never been.
        """
        ...

    async def recent_channels(self) -> Iterable[ChannelName]:
        """Channels that may have been written shortly before a crash: what a sweep looks at."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then stop. Later calls raise Unavailable."""
        ...
