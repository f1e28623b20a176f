"""Deleting channels whole, row and all, when their names will never be used again.

A trim leaves a channel's row, because its numbers go on. A stream of a run that is forgotten has
nothing to go on with, and a row for each run there ever was would add up. What stands in the way
is the log: a frame in it that names a channel without a row is damage to whoever opens the file
next. So the log is compacted past everything it may hold of the channel, and only then, unless
somebody wrote there meanwhile, the writer deletes it. Until it has, nobody gets at the channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Final

import anyio

from everturn.protocol.records import ChannelName
from everturn.storage.sqlite.channel import Channel
from everturn.storage.sqlite.commit import Commit, Request
from everturn.storage.sqlite.compaction import Compactor
from everturn.storage.sqlite.retention import Retention

#: How long one call waits for compaction and deletion; what is left then is left to the next call.
_PATIENCE_S: Final = 5.0
#: Both take milliseconds, and happen every few minutes: looking again is cheaper than being told.
_LOOK_AGAIN_S: Final = 0.01


class Forgets(ABC):
    """The part of `SqliteStreams` that forgets. Everything happens on the event loop."""

    _channels: dict[ChannelName, Channel]
    _compactor: Compactor
    _current: Commit | None
    _next_row_id: int
    _queue: deque[Request]
    _retention: Retention

    @abstractmethod
    def look(self, name: ChannelName) -> Channel:
        """The channel of a name, for now."""

    @abstractmethod
    def _pump_soon(self) -> None:
        """Have the writer take what is due."""

    async def forget(self, channels: Sequence[ChannelName]) -> frozenset[ChannelName]:
        """See the port."""
        waiting = self._retention.leaving
        places = [self.look(name) for name in channels if name not in waiting]
        before = {place.name: _state(place) for place in places if place.id is not None}
        with anyio.move_on_after(_PATIENCE_S):
            await self._compact_past(self._next_row_id - (self._current is None))
            self._let_go(before)
            while not waiting.keys().isdisjoint(channels):
                self._pump_soon()
                await anyio.sleep(_LOOK_AGAIN_S)
        return frozenset(
            name for name in channels if name not in waiting and self.look(name).id is None
        )

    async def _compact_past(self, row_id: int) -> None:
        """Return when the log holds no row up to this one, a commit on its way included."""
        while self._oldest_row_id() <= row_id:
            self._compactor.begin()
            self._pump_soon()
            await anyio.sleep(_LOOK_AGAIN_S)

    def _oldest_row_id(self) -> int:
        oldest = self._compactor.oldest_row_id
        return self._next_row_id if oldest is None else oldest

    def _let_go(self, before: dict[ChannelName, tuple[object, ...]]) -> None:
        """Hand to the writer what is as it was: all of it is in segments now."""
        busy = {request[0].name for request in self._queue}
        for name, state in before.items():
            place = self.look(name)
            if name in busy or place.waiting or place.dirty or _state(place) != state:
                continue
            assert place.id is not None, "its state has not changed"
            self._compactor.forget_tail(place)
            self._channels.pop(name, None)
            self._retention.leave(name, place.id)


def _state(channel: Channel) -> tuple[object, ...]:
    """What every write to a channel changes."""
    return channel.id, channel.next_seq, channel.fence
