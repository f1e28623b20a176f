"""Chunks of ours between two steps of a model run, each in its place.

What runs before a request to the model (taking in waiting messages, compacting) has to tell the
client about it: after the last chunk of the step before, ahead of the first one of the step that
follows, and at once, since a summary may take a minute to write. But it runs inside the model run,
whose events reach whoever reads the stream through a queue.

So the reader asks `Between` for its events. At the moment a hook calls `put`, everything earlier
was either read or is about to be: the reader is at its last event, or waits for the next. In the
first case it finds our chunks when it asks again; in the second its wait is ended for them. An
event that arrived in that very moment is delivered first: a wait that has its event cannot be
cancelled any more.

The hook finds its stream through the context: a model run is started by the first read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Any

import anyio

Chunk = dict[str, Any]


class OurChunks:
    """An event of ours among the library's."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks


class Between(AsyncIterator[Any]):
    """The events of one model run, with chunks of ours where they belong. Read by one reader."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        #: At most a few per step: a hook puts them, and the next read takes them.
        self._ours: deque[OurChunks] = deque()
        self._waiting: anyio.CancelScope | None = None

    def put(self, *chunks: Chunk) -> None:
        """Show these next. For code that runs before a request to the model, and only there."""
        self._ours.append(OurChunks(chunks))
        if self._waiting is not None:
            self._waiting.cancel()

    async def __anext__(self) -> Any:
        while not self._ours:
            with anyio.CancelScope() as self._waiting:
                token = _current.set(self)
                try:
                    return await anext(self._events)
                finally:
                    _current.reset(token)
                    self._waiting = None
        return self._ours.popleft()

    async def aclose(self) -> None:
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


_current: ContextVar[Between | None] = ContextVar("everturn.chat.between", default=None)


def current() -> Between | None:
    """The stream that the calling code's model run is read through; None when nobody reads it."""
    return _current.get()
