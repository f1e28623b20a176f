"""Moving records from the log into segments, between commits, and what stays in memory.

The log is cheap to write and useless to read: its rows mix all channels. So when enough of it
has gathered, a *round* walks the channels that are in it and writes their records as compressed
segments, then deletes the log rows that were there when the round began. Records live in exactly
one of both, as far as readers can tell: a channel's row says up to where segments hold it
(`compacted`), and it is updated in the transaction that writes the segment. After a crash in the
middle of a round, recovery skips what the log still has below that number.

A round is cut into slices of a few milliseconds, each a transaction of its own, because commits
wait behind them. Slices are built on the event loop while nothing is in flight, from the records
in memory; packing, compressing and writing happen on the writer thread.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from everturn.protocol.records import Record, metered_bytes
from everturn.rules import limits
from everturn.storage.sqlite.channel import Channel, part_ranges
from everturn.storage.sqlite.frames import checksum, encode_segment

#: Work of one slice in microseconds, by the estimates below; measured, it stays under 5 ms.
_SLICE_US: Final = 3_000
_RECORDS_PER_US: Final = 2
_CHANNEL_US: Final = 30
_BYTES_PER_US: Final = 250
#: Bytes of log rows deleted in one transaction.
_DELETE_BYTES: Final = 1 * limits.MIB

_SEGMENT: Final = "INSERT INTO segments VALUES (?, ?, ?, ?, ?)"
_STATE: Final = (
    "UPDATE channels SET compacted = ?, first = ?, fence = ?, next_part = ?, timestamp_ms = ?"
    " WHERE id = ?"
)
_RANGE: Final = "INSERT OR REPLACE INTO part_ranges VALUES (?, ?, ?, ?, ?)"
_TRIM: Final = "INSERT OR REPLACE INTO trims VALUES (?, ?, ?)"
_DELETE: Final = "DELETE FROM log WHERE id <= ?"


class _Piece(NamedTuple):
    """One channel's part of a slice, with its state at that moment."""

    channel: Channel
    id: int
    records: list[Record]
    compacted: int
    state: tuple[int, int, int, int]
    trim: tuple[int, int] | None


class Slice:
    """A few channels' records, to be written as segments in one transaction."""

    def __init__(self) -> None:
        self.pieces: list[_Piece] = []
        self.work_us = 0

    def add(self, channel: Channel) -> bool:
        """Take one segment's worth of a channel; whether that was all of it."""
        assert channel.id is not None, "a channel in the log has its number"
        start = channel.compacted - channel.base
        records, size = _segment(channel.records, start)
        compacted = channel.compacted + len(records)
        trimmed = channel.trimmed_at_ms
        self.pieces.append(
            _Piece(
                channel,
                channel.id,
                records,
                compacted,
                (channel.first, channel.fence, channel.next_part, channel.timestamp_ms),
                None if trimmed is None else (trimmed, channel.first),
            )
        )
        self.work_us += _CHANNEL_US + len(records) // _RECORDS_PER_US + size // _BYTES_PER_US
        return compacted == channel.tail

    def write(self, connection: sqlite3.Connection) -> None:
        """Runs on the writer thread."""
        bodies = [encode_segment(p.records) if p.records else b"" for p in self.pieces]
        pieces = list(zip(self.pieces, bodies, strict=True))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            _SEGMENT,
            [
                (p.id, p.records[0].seq_num, len(p.records), checksum(body), body)
                for p, body in pieces
                if p.records
            ],
        )
        connection.executemany(_STATE, [(p.compacted, *p.state, p.id) for p in self.pieces])
        connection.executemany(
            _RANGE, [(p.id, *r) for p in self.pieces if p.records for r in part_ranges(p.records)]
        )
        connection.executemany(_TRIM, [(p.trim[0], p.id, p.trim[1]) for p in self.pieces if p.trim])
        connection.execute("COMMIT")


class DeleteRows(NamedTuple):
    """Log rows up to an id, no longer needed."""

    upto: int
    rows: int

    def write(self, connection: sqlite3.Connection) -> None:
        connection.execute(_DELETE, (self.upto,))


Step: TypeAlias = Slice | DeleteRows


class Compactor:
    """What is in the log and not in segments, and how it gets there. Used on the event loop."""

    def __init__(self, tail_bytes_max: int, compact_records: int) -> None:
        self._tail_bytes_max = tail_bytes_max
        self._compact_records = compact_records
        self._dirty: list[Channel] = []
        self._rows: deque[tuple[int, int]] = deque()  # (id, bytes) of log rows, oldest first
        self._records = 0
        self._bytes = 0
        self._tail_bytes = 0
        #: Channels with compacted records in memory, the longest compacted first.
        self._compacted: OrderedDict[int, Channel] = OrderedDict()
        self._round: deque[Channel] = deque()
        self._round_upto = -1
        self._round_size = (0, 0)
        self.active = False

    @property
    def is_full(self) -> bool:
        """Whether appends have to wait until some more is compacted."""
        return self._bytes > limits.STREAM_UNCOMPACTED_BYTES_MAX

    def stored(self, row_id: int, row_bytes: int) -> None:
        """A log row was written (or found at open)."""
        self._rows.append((row_id, row_bytes))

    def grew(self, channels: Iterable[Channel], records: int, size: int) -> None:
        """The log holds so much more of these channels, and memory does too."""
        for channel in channels:
            if not channel.dirty and channel.id is not None:
                channel.dirty = True
                self._dirty.append(channel)
        self._records += records
        self._bytes += size
        self._tail_bytes += size

    def check(self) -> None:
        """Begin a round when enough has gathered; let go of what memory must not hold."""
        if not self.active and (
            self._records >= self._compact_records or self._bytes >= limits.STREAM_COMPACT_BYTES
        ):
            self._begin()
        while self._tail_bytes > self._tail_bytes_max and self._compacted:
            _, channel = self._compacted.popitem(last=False)
            self._tail_bytes -= channel.let_go()

    @property
    def oldest_row_id(self) -> int | None:
        """Of the log rows that are not deleted; None when there are none."""
        return self._rows[0][0] if self._rows else None

    def begin(self) -> None:
        """Begin a round although little has gathered, unless one is under way."""
        if not self.active and self._rows:
            self._begin()

    def forget_tail(self, channel: Channel) -> None:
        """Let go of one channel's compacted records."""
        if channel.id is not None and self._compacted.pop(channel.id, None) is not None:
            self._tail_bytes -= channel.let_go()

    def _begin(self) -> None:
        self.active = True
        self._round = deque(self._dirty)
        self._dirty = []
        self._round_upto = self._rows[-1][0] if self._rows else -1
        self._round_size = (self._records, self._bytes)

    def next(self) -> Step | None:
        """The next step of a round; None when it has ended. Nothing may be in flight."""
        if self._round:
            piece = Slice()
            for channel in self._round:
                whole = piece.add(channel)
                if not whole or piece.work_us >= _SLICE_US:
                    break
            return piece
        size, upto, rows = 0, -1, 0
        for row_id, row_bytes in self._rows:
            if row_id > self._round_upto or size >= _DELETE_BYTES:
                break
            size, upto, rows = size + row_bytes, row_id, rows + 1
        if rows:
            return DeleteRows(upto, rows)
        self.active = False
        self._records -= self._round_size[0]
        self._bytes -= self._round_size[1]
        self.check()
        return self.next() if self.active else None

    def done(self, step: Step) -> None:
        """A step is durable."""
        if isinstance(step, DeleteRows):
            for _ in range(step.rows):
                self._rows.popleft()
            return
        for piece in step.pieces:
            channel = piece.channel
            channel.compacted = piece.compacted
            channel.trimmed_at_ms = None
            self._compacted[piece.id] = channel
            self._compacted.move_to_end(piece.id)
            if channel.compacted == channel.tail:
                channel.dirty = False
                self._round.popleft()
        self.check()


def _segment(records: list[Record], start: int) -> tuple[list[Record], int]:
    """One segment's worth of records, and its bytes. Looks at no more than it takes."""
    size, end = 0, start
    for record in islice(records, start, None):
        more = len(record.body)
        if record.headers:
            more = metered_bytes(record.headers, record.body)
        if end > start and size + more > limits.STREAM_SEGMENT_BYTES:
            break
        size, end = size + more, end + 1
    return records[start:end], size
