"""Replays: pages of segments, read on one thread beside the writer.

Every page costs the interpreter lock for as long as it takes to decode it, so pages are small
and there is one thread: two busy ones would cut the writer's rate to a third.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from everturn.errors import StorageCorrupt
from everturn.protocol.records import ChannelName, Record
from everturn.rules import limits
from everturn.storage.sqlite.frames import decode_segment
from everturn.storage.sqlite.schema import connect, translated

T = TypeVar("T")

_COLUMNS: Final = "SELECT first, count, crc, body FROM segments WHERE channel = ?"
_AT_OR_BELOW: Final = f"{_COLUMNS} AND first <= ? ORDER BY first DESC LIMIT 1"
_ABOVE: Final = f"{_COLUMNS} AND first > ? ORDER BY first LIMIT 1"
_RECENT: Final = (
    "SELECT environment, session, io FROM channels"
    " WHERE timestamp_ms >= min((SELECT max(timestamp_ms) FROM channels), ?) - ?"
)


class _Page(NamedTuple):
    channel: int
    first: int
    records: list[Record]
    bytes: int

    @property
    def end(self) -> int:
        return self.first + len(self.records)


class Reader:
    """Reads segments of one file. Pages read lately are kept, so that many readers share them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = connect(path, writer=False)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="everturn-replay")
        # Touched on the reader thread only.
        self._pages: OrderedDict[tuple[int, int], _Page] = OrderedDict()
        #: Where the kept pages of a channel begin: there may be tens of thousands of small ones.
        self._begins: dict[int, set[int]] = {}
        self._pages_bytes = 0

    async def from_seq(self, channel: int, seq_num: int) -> list[Record]:
        """Stored records from `seq_num`, or from the next one that is left; one page at most."""
        return await self._run(lambda: self._from_seq(channel, seq_num))

    async def before_seq(self, channel: int, seq_num: int) -> list[Record]:
        """Stored records below `seq_num`, oldest first, the end of one page."""
        return await self._run(lambda: self._before_seq(channel, seq_num))

    async def recent(self, now_ms: int, within_ms: int) -> list[ChannelName]:
        """Names of compacted channels whose newest record is among the newest of all.

        A record that is dated later than now was written before the clock was set back: the
        others are not old beside it.
        """
        asked = (now_ms, within_ms)
        rows = await self._run(lambda: self._connection.execute(_RECENT, asked).fetchall())
        return [ChannelName(*row) for row in rows]

    async def close(self) -> None:
        """End the thread, after what it is doing."""
        await self._run(self._connection.close)
        self._thread.shutdown(wait=True)

    async def _run(self, job: Callable[[], T]) -> T:
        with translated(self._path):
            return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _from_seq(self, channel: int, seq_num: int) -> list[Record]:
        page = self._load(_AT_OR_BELOW, channel, seq_num)
        if page is None or page.end <= seq_num:
            page = self._load(_ABOVE, channel, seq_num)
        return page.records[max(seq_num - page.first, 0) :] if page else []

    def _before_seq(self, channel: int, seq_num: int) -> list[Record]:
        page = self._load(_AT_OR_BELOW, channel, seq_num - 1)
        return page.records[: seq_num - page.first] if page else []

    def _load(self, query: str, channel: int, seq_num: int) -> _Page | None:
        cached = self._cached(channel, seq_num)
        if cached is not None:
            return cached
        row = self._connection.execute(query, (channel, seq_num)).fetchone()
        if row is None:
            return None
        first, count, crc, body = row
        place = f"{self._path}: segment {first} of channel {channel}"
        records = decode_segment(body, crc, place)
        if len(records) != count or records[0].seq_num != first:
            raise StorageCorrupt(f"{place}: holds other records than its row says", place=place)
        page = _Page(channel, first, records, sum(len(r.body) + 300 for r in records))
        self._keep(page)
        return page

    def _cached(self, channel: int, seq_num: int) -> _Page | None:
        for first in self._begins.get(channel, ()):
            page = self._pages[channel, first]
            if first <= seq_num < page.end:
                self._pages.move_to_end((channel, first))
                return page
        return None

    def _keep(self, page: _Page) -> None:
        replaced = self._pages.pop((page.channel, page.first), None)
        self._pages_bytes += page.bytes - (replaced.bytes if replaced else 0)
        self._pages[page.channel, page.first] = page
        self._begins.setdefault(page.channel, set()).add(page.first)
        while self._pages_bytes > limits.STREAM_PAGES_BYTES_MAX and len(self._pages) > 1:
            (channel, first), gone = self._pages.popitem(last=False)
            self._pages_bytes -= gone.bytes
            self._begins[channel].discard(first)
            if not self._begins[channel]:
                del self._begins[channel]
