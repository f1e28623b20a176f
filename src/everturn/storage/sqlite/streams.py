"""Streams in one SQLite file, with one writer.

How an append becomes durable. `append` checks the records, queues a request and waits. At the
end of the loop's turn (or at once, when many have gathered) everything queued is decided in one
go: fences, repeated parts, numbers (`commit.py`). The result is one row of the `log` table for
all channels together, written by the one writer thread in one transaction that is synced when it
returns. There is no timer: while a commit is on its way the next one gathers, so the busier the
store, the larger its commits. When it is durable, its records become visible, the next commit is
sent off, and only then readers are woken, and after them writers answered.

Everything but reading and writing the file happens on the event loop. That is what makes the
decisions simple (one commit in flight, nobody beside it) and it is also faster than deciding on
the writer thread, which would fight the loop for the interpreter lock.

If a commit fails (disk full, read-only, I/O) all its appends get Unavailable, what was decided is
undone, and the next append tries again. Readers never notice.

Reads are served from the tails in memory; what lies below them comes from segments, a page at a
time (`reader.py`). How records get there, and what memory holds, is told in `compaction.py`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from everturn.clock import Clock
from everturn.errors import CursorTrimmed, Unavailable
from everturn.protocol.records import ChannelName, NewRecord, Record
from everturn.rules import limits
from everturn.rules.appends import check_append, check_fence, check_parts
from everturn.rules.reads import Page
from everturn.storage.ports.streams import Appended, Bounds
from everturn.storage.sqlite.channel import Channel
from everturn.storage.sqlite.commit import Commit, CommitRow, Request
from everturn.storage.sqlite.compaction import Compactor, Step
from everturn.storage.sqlite.forgetting import Forgets
from everturn.storage.sqlite.lookups import Lookups
from everturn.storage.sqlite.opening import Opened, open_file, shut
from everturn.storage.sqlite.reader import Reader
from everturn.storage.sqlite.retention import Retention
from everturn.storage.sqlite.subscription import Place
from everturn.storage.sqlite.warming import Warming
from everturn.storage.sqlite.writer import Writer

#: Requests that are sent off at once instead of at the end of the loop's turn, so that with very
#: many appenders the disk works while the loop serves the rest of them.
_EARLY_REQUESTS: Final = 256
#: After a failed step of compaction.
_RETRY_S: Final = 1.0
#: How long before the newest record a channel counts as recently written.
_RECENT_MS: Final = 10 * 60 * 1000


class SqliteStreams(Forgets):
    """`storage.ports.streams.StreamStore` in one SQLite file. Made by `open`."""

    @classmethod
    async def open(
        cls,
        path: Path | str,
        clock: Clock,
        *,
        retention_ms: int = limits.RETENTION_MS,
        tail_bytes_max: int = limits.STREAM_TAIL_BYTES_MAX,
        compact_records: int = limits.STREAM_COMPACT_RECORDS,
        waiting_bytes_max: int = limits.STREAM_WAITING_BYTES_MAX,
        sync: bool = True,
    ) -> SqliteStreams:
        """Lock the file, create it if need be, and recover what its log holds.

        Args:
            path: the database file; its folder must exist. `<path>.lock` is created beside it.
            clock: where timestamps come from.
            retention_ms: how long trimmed records stay readable with `include_trimmed`.
            tail_bytes_max: memory for records, by estimate.
            compact_records: records in the log that start a round of compaction.
            waiting_bytes_max: bytes of appends that may wait for a commit; past it `append` waits.
            sync: whether a commit is on disk before it is acknowledged. False is for measurements:
                what was acknowledged may be lost at power loss.

        Raises:
            ConfigurationError: another process has the file, or it is no stream store of ours.
            StorageCorrupt: names the file and the row whose bytes fail their check.
            Unavailable: the file cannot be opened now.
        """
        opened = await anyio.to_thread.run_sync(open_file, Path(path), sync)
        return cls(
            opened,
            clock,
            Retention(retention_ms),
            Compactor(tail_bytes_max, compact_records),
            waiting_bytes_max,
        )

    def __init__(
        self,
        opened: Opened,
        clock: Clock,
        retention: Retention,
        compactor: Compactor,
        waiting_bytes_max: int,
    ) -> None:
        self._opened = opened
        self._path = opened.path
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lookups = Lookups(opened.path)
        self._reader = Reader(opened.path)
        self._writer = Writer(opened.path, opened.connection, self._loop)
        self._retention = retention
        self._lookups.leaving = retention.leaving
        self._compactor = compactor
        self._waiting_bytes_max = waiting_bytes_max
        recovered = opened.recovered
        self._channels = {channel.name: channel for channel in recovered.channels.values()}
        self._next_channel_id = recovered.next_channel_id
        self._next_row_id = recovered.rows[-1][0] + 1 if recovered.rows else 1
        self._recovered = tuple(self._channels)
        for row in recovered.rows:
            compactor.stored(*row)
        for channel in self._channels.values():
            compactor.grew((channel,), len(channel.records), channel.bytes)

        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._turn = asyncio.Lock()
        self._waiting_for_room = 0
        self._room: asyncio.Future[None] | None = None
        self._in_flight = False
        self._current: Commit | None = None
        self._commit_was_last = False
        self._pump_is_due = False
        self._shed_at = limits.STREAM_CHANNELS_MAX
        self._compact_at = 0.0
        #: Why the last step of compaction failed; None when it did not.
        self._compaction_error: Exception | None = None
        self._closing = False
        self._closed = False
        self._idle = asyncio.Event()
        self._warming = Warming(self._loop.time())
        self._loop.call_later(self._warming.after_s, self._pump)
        compactor.check()
        self._pump_soon()

    # --- writing ---------------------------------------------------------------------------

    async def append(
        self,
        channel: ChannelName,
        records: Sequence[NewRecord],
        *,
        fence: int | None = None,
        first_part: int | None = None,
    ) -> Appended:
        """See the port. A cancelled append may be stored all the same."""
        size = check_append(records, fence, first_part)
        if self._closing:
            raise _closed()
        if self._waiting_for_room or self._is_full():
            await self._wait_for_room()
        return await self._enqueue(channel, records, fence, first_part, size)

    async def raise_fence(self, channel: ChannelName, fence: int) -> None:
        """See the port."""
        check_fence(fence)
        if self._closing:
            raise _closed()
        await self._enqueue(channel, (), fence, None, 0)

    def _enqueue(
        self,
        channel: ChannelName,
        records: Sequence[NewRecord],
        fence: int | None,
        first_part: int | None,
        size: int,
    ) -> asyncio.Future[Appended]:
        # A bad name or an unreadable file is found here: it is this caller's trouble alone.
        place = self._channels.get(channel) or self.find(channel)
        answer: asyncio.Future[Appended] = self._loop.create_future()
        queue = self._queue
        queue.append((place, records, fence, first_part, size, answer))
        self._queued_bytes += size
        if not self._in_flight:
            if len(queue) >= _EARLY_REQUESTS:
                self._pump()
            elif not self._pump_is_due:
                self._pump_soon()
        return answer

    def _is_full(self) -> bool:
        return self._queued_bytes >= self._waiting_bytes_max or self._compactor.is_full

    async def _wait_for_room(self) -> None:
        # First come, first served: the lock is fair, and its holder alone watches for room.
        self._waiting_for_room += 1
        try:
            async with self._turn:
                while self._is_full() and not self._closing:
                    self._check_compactor()
                    self._room = self._loop.create_future()
                    await self._room
        finally:
            self._waiting_for_room -= 1
        if self._closing:
            raise _closed()

    def _check_compactor(self) -> None:
        """Raise Unavailable when room has to be made that cannot be made now.

        A full disk may stay full for hours: who appends is told, and does not wait for that long.
        """
        error = self._compaction_error
        if error is not None and self._compactor.is_full:
            raise Unavailable(f"{self._path}: the log cannot be compacted: {error}") from error

    def _give_room(self) -> None:
        room = self._room
        done = self._closing or self._compaction_error is not None or not self._is_full()
        if done and room is not None and not room.done():
            room.set_result(None)

    def _pump_soon(self) -> None:
        self._pump_is_due = True
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give the writer its next job, if it has none: a commit and a step of upkeep in turn."""
        self._pump_is_due = False
        while not self._in_flight:
            upkeep_is_next = self._commit_was_last
            if upkeep_is_next and self._upkeep():
                return
            if self._queue:
                self._commit_was_last = True
                if self._commit():
                    return
            elif upkeep_is_next or not self._upkeep():
                if self._closing:
                    self._idle.set()
                return

    def _commit(self) -> bool:
        """Decide what is queued and send it off; False when there was nothing to write."""
        commit = Commit(self._lookups, self._next_channel_id, self._clock.now_ms())
        commit.admit(self._queue)
        self._queued_bytes -= commit.bytes
        if commit.is_empty:
            commit.answer()
            self._give_room()
            return False
        row = commit.row(self._next_row_id)
        self._in_flight = True
        self._current = commit
        self._writer.submit(row.write, lambda _, error: self._committed(commit, row, error))
        return True

    def _committed(self, commit: Commit, row: CommitRow, error: Exception | None) -> None:
        self._in_flight = False
        self._current = None
        if error is not None:
            commit.fail(error)
            self._pump()
        else:
            self._publish(commit, row)
            # The next commit sets out before anybody is told of this one: the disk works while
            # the loop answers. Readers go first by a turn of the loop, because a person waits
            # for what they carry, while what a writer does next is to thank its client.
            self._pump()
            commit.wake_readers()
            self._loop.call_soon(commit.answer)
        self._give_room()

    def _publish(self, commit: Commit, row: CommitRow) -> None:
        self._next_row_id = row.id + 1
        self._next_channel_id = commit.next_channel_id
        compactor = self._compactor
        compactor.stored(row.id, len(row.body))
        compactor.grew(commit.channels, commit.records, commit.cost)
        commit.publish()
        compactor.check()

    def _upkeep(self) -> bool:
        """Send off one step of compaction or of retention; False when there is none."""
        if self._closing:
            return False  # what is not compacted is found again in the log
        if self._compactor.active and self._loop.time() >= self._compact_at:
            step = self._compactor.next()
            if step is not None:
                self._in_flight = True
                self._writer.submit(step.write, lambda _, error: self._compacted(step, error))
                return True
        now_ms = self._clock.now_ms()
        if self._retention.due(now_ms):
            self._in_flight = True
            look = self._retention.step(now_ms)
            self._writer.submit(look.write, lambda more, _: self._looked(bool(more)))
            return True
        if not self._queue and self._warming.due(self._loop.time()):
            self._in_flight = True
            self._writer.submit(self._warming.write, lambda _, error: self._warmed(error))
            return True
        return False

    def _compacted(self, step: Step, error: Exception | None) -> None:
        self._in_flight = False
        self._commit_was_last = False
        self._compaction_error = error
        if error is None:
            self._compactor.done(step)
        else:
            # Nothing is lost: the log still holds it. A full disk is tried again in a while.
            self._compact_at = self._loop.time() + _RETRY_S
            self._loop.call_later(_RETRY_S, self._pump)
        self._pump()
        self._give_room()

    def _looked(self, more: bool) -> None:
        # A look that failed is repeated by the next one: what it deletes is only deleted late.
        self._in_flight = False
        self._commit_was_last = False
        self._retention.done(more)
        self._pump()

    def _warmed(self, error: Exception | None) -> None:
        self._in_flight = False
        self._commit_was_last = False
        self._warming.done(error)
        self._pump()

    # --- reading ---------------------------------------------------------------------------

    async def part_seqs(
        self, channel: ChannelName, fence: int, first_part: int, count: int
    ) -> list[int | None]:
        """See the port."""
        check_parts(fence, first_part, count)
        place = self.look(channel)
        found = self._lookups.part_seqs(place, fence, first_part, count)
        return [seq if seq is not None and seq < place.tail else None for seq in found]

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
        place = self.look(channel)
        page = Page(records_max, bytes_max)
        start = 0 if after is None else after + 1
        if include_trimmed:
            start = max(start, self._lookups.lowest(place))
        elif after is not None and start < place.first:
            raise CursorTrimmed(place.first)
        else:
            start = max(start, place.first)
        await self.collect(channel, start, page)
        return page.records

    async def collect(self, name: ChannelName, start: int, page: Page) -> None:
        """Fill a page with stored records from `start` on: segments first, then memory."""
        while True:
            channel = self.look(name)
            if start >= channel.base:
                begin = start - channel.base
                end = min(begin + page.records_left, channel.tail - channel.base)
                page.take(channel.records[begin:end])
                return
            assert channel.id is not None, "what is not in memory is in the file"
            stored = await self._reader.from_seq(channel.id, start)
            if not stored or stored[0].seq_num != start:
                self.look(name).check_trimmed(start, self._path)
            if stored and stored[0].seq_num < channel.base:
                page.take(stored)
                if page.full:
                    return
                start = stored[-1].seq_num + 1
            else:
                start = channel.base  # retention deleted the rest

    async def read_back(
        self, channel: ChannelName, *, before: int | None, records_max: int
    ) -> Sequence[Record]:
        """See the port."""
        page = Page(records_max, limits.READ_BYTES_MAX)
        place = self.look(channel)
        first = place.first
        end = place.tail if before is None else min(before, place.tail)
        while end > first and page.records_left and not page.full:
            place = self.look(channel)
            if end > place.base:
                low = max(first, place.base, end - page.records_left)
                page.take(reversed(place.records[low - place.base : end - place.base]))
                end = low
            else:
                assert place.id is not None, "what is not in memory is in the file"
                stored = await self._reader.before_seq(place.id, end)
                if not stored or stored[-1].seq_num != end - 1:
                    self.look(channel).check_trimmed(end - 1, self._path)
                page.take(record for record in reversed(stored) if record.seq_num >= first)
                end = stored[0].seq_num if stored else first
        return page.records

    async def bounds(self, channel: ChannelName) -> Bounds:
        """See the port."""
        place = self.look(channel)
        return Bounds(place.first, place.tail, place.visible_timestamp_ms)

    def subscribe(self, channel: ChannelName, after: int | None) -> Place:
        """See the port."""
        return Place(self, channel, after)

    async def recent_channels(self) -> Iterable[ChannelName]:
        """Channels in the log, those recovered from it, and those compacted lately."""
        if self._closed:
            raise _closed()
        found = dict.fromkeys(self._recovered)
        found.update((channel.name, None) for channel in self._channels.values() if channel.dirty)
        found.update(dict.fromkeys(await self._reader.recent(self._clock.now_ms(), _RECENT_MS)))
        return list(found)

    def look(self, name: ChannelName) -> Channel:
        """The channel of a name, for now; an unknown one is not remembered by asking."""
        if self._closed:
            raise _closed()
        channel = self._channels.get(name)
        if channel is None:
            stored = self._lookups.channel(name)
            channel = Channel(name) if stored is None else self._remember(stored)
        return channel

    def find(self, name: ChannelName) -> Channel:
        """The channel of a name, to be written or waited at; a new one if it has none."""
        if self._closed:
            raise _closed()
        channel = self._channels.get(name)
        if channel is None:
            channel = self._remember(self._lookups.channel(name) or Channel(name))
        return channel

    def _remember(self, channel: Channel) -> Channel:
        self._channels[channel.name] = channel
        if len(self._channels) >= self._shed_at:
            self._shed_at = sys.maxsize  # not again before this one has run
            self._loop.call_soon(self._shed)
        return channel

    def _shed(self) -> None:
        """Let go of channels that the file knows, longest known first."""
        busy = {request[0].name for request in self._queue}
        if self._current is not None:
            busy.update(channel.name for channel in self._current.channels)
        excess = len(self._channels) - limits.STREAM_CHANNELS_MAX * 9 // 10
        for channel in list(self._channels.values()):
            if excess <= 0:
                break
            if channel.name in busy or channel.waiting:
                continue
            self._compactor.forget_tail(channel)
            if channel.idle:
                del self._channels[channel.name]
                excess -= 1
        # What could not be let go of now is asked again when a tenth more has come.
        more = limits.STREAM_CHANNELS_MAX // 10
        self._shed_at = max(limits.STREAM_CHANNELS_MAX, len(self._channels) + more)

    # --- ending ----------------------------------------------------------------------------

    async def close(self) -> None:
        """See the port. Readers that wait get Unavailable. Idempotent."""
        self._closing = True
        # Shielded: an engine left half closed would keep its lock and its threads.
        with anyio.CancelScope(shield=True):
            self._give_room()
            self._pump_soon()
            await self._idle.wait()
            if self._closed:
                return
            self._closed = True
            for channel in self._channels.values():
                channel.wake()
            await self._reader.close()
            self._lookups.close()
            await anyio.to_thread.run_sync(shut, self._writer, self._opened)


def _closed() -> Unavailable:
    return Unavailable("the stream store is closed")
