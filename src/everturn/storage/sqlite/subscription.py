"""A reader's place in a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from everturn.protocol.records import ChannelName, Record
from everturn.rules import limits
from everturn.rules.reads import Page, clamp_cursor
from everturn.storage.sqlite.channel import Channel


class Source(Protocol):
    """What a subscription needs of its engine."""

    def look(self, name: ChannelName) -> Channel:
        """The channel of a name, for now. Raises Unavailable when the engine is closed."""
        ...

    def find(self, name: ChannelName) -> Channel:
        """The channel of a name, to wait at."""
        ...

    async def collect(self, name: ChannelName, start: int, page: Page) -> None:
        """Fill a page with stored records from a seq_num on."""
        ...


class Place:
    """A cursor and the name of a channel, so that thousands of places cost next to nothing.

    The channel is found anew by each call, since the engine may let go of an idle one between.
    """

    __slots__ = ("_cursor", "_name", "_source")

    def __init__(self, source: Source, name: ChannelName, after: int | None) -> None:
        self._source = source
        self._name = name
        channel = source.look(name)
        self._cursor = clamp_cursor(after, channel.first, channel.tail)

    @property
    def cursor(self) -> int | None:
        """The seq_num of the last record handed out."""
        return self._cursor

    @property
    def caught_up(self) -> bool:
        """True when nothing visible lies after the cursor right now."""
        channel = self._source.look(self._name)
        return self._start(channel) >= channel.tail

    async def next(
        self,
        *,
        records_max: int = limits.READ_RECORDS_MAX,
        bytes_max: int = limits.READ_BYTES_MAX,
    ) -> Sequence[Record]:
        """See the port. The cursor moves as the records are handed out, with no await between."""
        page = Page(records_max, bytes_max)
        while not page.records:
            channel = self._source.find(self._name)
            start = self._start(channel)
            if start >= channel.tail:
                await self._wait(channel)
            elif start >= channel.base:  # all of it is in memory
                begin = start - channel.base
                page.take(
                    channel.records[begin : min(begin + records_max, channel.tail - channel.base)]
                )
            else:  # may find nothing, when what is there is trimmed and deleted meanwhile
                await self._source.collect(self._name, start, page)
        self._cursor = page.records[-1].seq_num
        return page.records

    def _start(self, channel: Channel) -> int:
        after = -1 if self._cursor is None else self._cursor
        return max(after + 1, channel.first)

    @staticmethod
    async def _wait(channel: Channel) -> None:
        # A future of its own, because cancelling this reader cancels what it waits for.
        future = asyncio.get_running_loop().create_future()
        channel.waiting[future] = None
        try:
            await future
        finally:
            channel.waiting.pop(future, None)

    def close(self) -> None:
        """Nothing is held between two calls of `next`, so there is nothing to let go of."""
