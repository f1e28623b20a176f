"""One group commit: the decisions about the appends in it, then its rows.

A `Commit` is made on the event loop when nothing is in flight, so it sees all that is stored and
nobody else decides beside it: this is the single writer that checks fences and leaves out what
is known (P-4, P-5). Its answers, refusals included, are given when it is durable, since they may
rest on what an earlier append of the same commit did.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from everturn.errors import EverturnError, Fenced, ProtocolError, Unavailable
from everturn.protocol.records import NewRecord, Record, trim_target
from everturn.rules import limits
from everturn.storage.ports.streams import Appended
from everturn.storage.sqlite.channel import RECORD_OVERHEAD, Channel, headers_cost
from everturn.storage.sqlite.frames import FenceFrame, LogFrame, checksum, encode_log_row
from everturn.storage.sqlite.lookups import Lookups

_LOG = "INSERT INTO log (id, crc, body) VALUES (?, ?, ?)"
_CHANNELS = "INSERT INTO channels VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0)"
_PART_IDS = "INSERT INTO part_ids VALUES (?, ?, ?)"

_RAISED = Appended((), 0, 0)


#: An append that waits for its commit: channel, records, fence, first part, metered bytes, and
#: where to answer. Without records it asks for a fence to be raised. A bare tuple, because one is
#: made per append.
Request: TypeAlias = tuple[
    Channel, Sequence[NewRecord], int | None, int | None, int, "asyncio.Future[Appended]"
]


class Commit:
    """Appends that become durable together.

    Args:
        lookups: what the file knows.
        next_channel_id: the number of the next channel stored for the first time.
        now_ms: the time of all its records, unless a channel is already later.
    """

    def __init__(self, lookups: Lookups, next_channel_id: int, now_ms: int) -> None:
        #: Metered bytes of the appends in it.
        self.bytes = 0
        #: Estimated bytes of its records in memory.
        self.cost = 0
        self.next_channel_id = next_channel_id
        self.channels: list[Channel] = []
        self._lookups = lookups
        self._now_ms = now_ms
        self._frames: list[LogFrame] = []
        self._fences: list[FenceFrame] = []
        self._new_channels: list[tuple[int, str, str, str]] = []
        self._part_ids: dict[tuple[int, str], int] = {}
        self._answers: list[tuple[asyncio.Future[Appended], Appended]] = []
        self._refusals: list[tuple[asyncio.Future[Appended], EverturnError]] = []

    @property
    def is_empty(self) -> bool:
        """Whether all its appends were refused or known: there is nothing to write."""
        return not self._frames and not self._fences

    @property
    def records(self) -> int:
        """How many records it stores."""
        return len(self._frames)

    def admit(self, queue: deque[Request]) -> None:
        """Decide queued appends, first come first served, until the commit is large enough.

        Each is numbered, or left out, or refused. One loop and not a call per append, because
        this is the path of every token.
        """
        size_max = limits.STREAM_COMMIT_BYTES_MAX
        channels, answers = self.channels, self._answers
        while queue and self.bytes < size_max:
            channel, records, fence, first_part, size, answer = queue.popleft()
            self.bytes += size
            if channel.commit is not self:
                channel.begin(self)
                channels.append(channel)
            if first_part == channel.next_part and fence == channel.fence:
                # A lease holder's next part: what nearly every append is.
                answers.append((answer, self._store(channel, records, fence, first_part)))
                channel.next_part = first_part + len(records)
                continue
            try:
                answers.append((answer, self._admit_rest(channel, records, fence, first_part)))
            except EverturnError as error:
                self._refusals.append((answer, error))

    def _admit_rest(
        self,
        channel: Channel,
        records: Sequence[NewRecord],
        fence: int | None,
        first_part: int | None,
    ) -> Appended:
        if fence is None:
            return self._admit_guest(channel, records)
        if first_part is None:
            return self._admit_fence(channel, fence)
        return self._admit_parts(channel, records, fence, first_part)

    def _admit_parts(
        self, channel: Channel, records: Sequence[NewRecord], fence: int, first_part: int
    ) -> Appended:
        if fence < channel.fence:
            raise Fenced(f"fence {fence} is below {channel.fence}", fence=fence, at=channel.fence)
        next_part = channel.next_part if fence == channel.fence else 0
        known = min(next_part - first_part, len(records))
        if known < 0:
            raise ProtocolError(
                f"part {first_part} leaves a gap: the next of fence {fence} is {next_part}"
            )
        seq_nums: list[int] = []
        if known:
            before = self._lookups.part_seqs(channel, fence, first_part, known)
            seq_nums = [seq for seq in before if seq is not None]
            if len(seq_nums) < known:
                raise ProtocolError(f"parts from {first_part} of fence {fence} are not kept")
        fresh = records[known:]
        if fresh:
            if fence > channel.fence:
                channel.take_fence(fence)
            seq_nums.extend(self._store(channel, fresh, fence, first_part + known).seq_nums)
            channel.next_part = first_part + len(records)
        return Appended(tuple(seq_nums), len(fresh), channel.timestamp_ms)

    def _admit_guest(self, channel: Channel, records: Sequence[NewRecord]) -> Appended:
        if all(record.part_id is None for record in records):
            return self._store(channel, records, 0, -1)
        # All look-ups come first: they may fail, and then nothing must have been decided.
        known = [self._seq_of(channel, record.part_id) for record in records]
        seq_nums: list[int] = []
        new = 0
        for record, seq_num in zip(records, known, strict=True):
            part_id = record.part_id
            if seq_num is None and part_id is not None and channel.id is not None:
                # The same id may stand twice in one batch.
                seq_num = self._part_ids.get((channel.id, part_id))
            if seq_num is None:
                new += 1
                (seq_num,) = self._store(channel, (record,), 0, -1).seq_nums
                if part_id is not None:
                    assert channel.id is not None, "a channel is numbered by its first record"
                    self._part_ids[channel.id, part_id] = seq_num
            seq_nums.append(seq_num)
        return Appended(tuple(seq_nums), new, channel.timestamp_ms)

    def _seq_of(self, channel: Channel, part_id: str | None) -> int | None:
        if part_id is None or channel.id is None:
            return None
        known = self._part_ids.get((channel.id, part_id))
        return self._lookups.part_id(channel.id, part_id) if known is None else known

    def _admit_fence(self, channel: Channel, fence: int) -> Appended:
        if fence > channel.fence:
            channel.take_fence(fence)
            self._fences.append((self._number(channel), fence))
        return _RAISED

    def _store(
        self, channel: Channel, records: Sequence[NewRecord], fence: int, first_part: int
    ) -> Appended:
        """Give numbers to new records. The path of every token: little is done per record."""
        number = channel.id
        if number is None:
            number = self._number(channel)
        timestamp_ms = self._now_ms
        if timestamp_ms < channel.timestamp_ms:
            timestamp_ms = channel.timestamp_ms  # the clock went back
        else:
            channel.timestamp_ms = timestamp_ms
        first = seq_num = channel.next_seq
        part = first_part
        step = 1 if fence else 0  # guests' records are no parts
        frames, kept = self._frames, channel.records
        cost = RECORD_OVERHEAD * len(records)
        for new in records:
            headers, body = new.headers, new.body
            frames.append((number, seq_num, timestamp_ms, fence, part, headers, body))
            record = Record(seq_num, timestamp_ms, headers, body, fence, part)
            kept.append(record)
            cost += 2 * len(body)
            if headers:
                cost += headers_cost(record)
                target = trim_target(headers, body)
                if target is not None:
                    channel.trim(target, seq_num)
            seq_num += 1
            part += step
        channel.next_seq = seq_num
        channel.bytes += cost
        self.cost += cost
        seq_nums = (first,) if len(records) == 1 else tuple(range(first, seq_num))
        return Appended(seq_nums, seq_num - first, timestamp_ms)

    def _number(self, channel: Channel) -> int:
        if channel.id is None:
            channel.id = self.next_channel_id
            self.next_channel_id += 1
            self._new_channels.append((channel.id, *channel.name))
        return channel.id

    def row(self, row_id: int) -> CommitRow:
        """What the writer thread has to store."""
        body = encode_log_row(self._frames, self._fences)
        # The checksum is made here, because on the writer thread each call that lets go of the
        # interpreter lock has to wait for it again, beside a busy loop for up to 5 ms.
        part_ids = [(channel, part, seq) for (channel, part), seq in self._part_ids.items()]
        return CommitRow(row_id, checksum(body), body, self._new_channels, part_ids)

    def publish(self) -> None:
        """It is durable: show its records. Its answers are still to be given."""
        for channel in self.channels:
            channel.publish(self._now_ms)
        for key, seq_num in self._part_ids.items():
            self._lookups.remember(key, seq_num)

    def wake_readers(self) -> None:
        """Tell those who wait at its channels."""
        for channel in self.channels:
            if channel.waiting:
                channel.wake()

    def answer(self) -> None:
        """Tell the writers how their appends ended."""
        # A future that is done was cancelled by its caller; the records are stored all the same.
        for future, appended in self._answers:
            if not future.done():
                future.set_result(appended)
        for future, error in self._refusals:
            if not future.done():
                future.set_exception(error)

    def fail(self, error: Exception) -> None:
        """It was not written: return to what is stored, and tell everybody in it."""
        for channel in self.channels:
            channel.roll_back()
        for future, _ in [*self._answers, *self._refusals]:
            if not future.done():
                future.set_exception(_copy(error))


class CommitRow(NamedTuple):
    """The rows of one commit, ready to be written."""

    id: int
    crc: int
    body: bytes
    new_channels: list[tuple[int, str, str, str]]
    part_ids: list[tuple[int, str, int]]

    def write(self, connection: sqlite3.Connection) -> None:
        """Durable when it returns. One statement when that is enough: each is a hand-over."""
        row = (self.id, self.crc, self.body)
        if not self.new_channels and not self.part_ids:
            connection.execute(_LOG, row)
            return
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_CHANNELS, self.new_channels)
        connection.execute(_LOG, row)
        connection.executemany(_PART_IDS, self.part_ids)
        connection.execute("COMMIT")


def _copy(error: Exception) -> Exception:
    # An exception raised in many tasks would grow one shared traceback.
    if isinstance(error, Unavailable):
        copy = Unavailable(error.message, **error.details)
        copy.__cause__ = error.__cause__
        return copy
    return error
