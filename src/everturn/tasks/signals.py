"""Signals: something that may be aborted once, with a reason (chat-agent §8.1); and notices."""

from __future__ import annotations

from collections.abc import Callable

import anyio


class Stopped(Exception):
    """Raised by `raise_if_aborted` of a stop signal."""


class Notice:
    """An event that costs nothing until somebody waits for it.

    What waits for its next message holds several that nobody looks at, and there are many of
    those; an anyio.Event is a kilobyte each.
    """

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake everybody who waits, now and later."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Return once it is set."""
        if not self._is_set:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()


class Signal:
    """Told once that something should stop. Waiting, polling and callbacks all work."""

    __slots__ = ("_callbacks", "_event", "_reason", "_sources")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._reason: str | None = None
        #: Made when first needed, as the event is: a parked run holds signals nobody looks at.
        self._callbacks: dict[object, Callable[[str], object]] | None = None
        self._sources: tuple[Signal, ...] = ()

    @property
    def aborted(self) -> bool:
        """Whether it was aborted; stays true."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why; None while not aborted."""
        return self._reason

    def abort(self, reason: str = "stopped") -> None:
        """Abort; the first reason stays. Callbacks run at once, in the order they were added."""
        if self._reason is not None:
            return
        self._reason = reason
        if self._event is not None:
            self._event.set()
        callbacks, self._callbacks = self._callbacks, None
        for callback in (callbacks or {}).values():
            callback(reason)

    async def wait(self) -> str:
        """Return the reason once aborted."""
        if self._reason is None:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        assert self._reason is not None
        return self._reason

    def raise_if_aborted(self) -> None:
        """Raises Stopped, carrying the reason, when aborted."""
        if self._reason is not None:
            raise Stopped(self._reason)

    def on_abort(self, callback: Callable[[str], object]) -> Callable[[], None]:
        """Call `callback(reason)` on abort (at once if it has happened). Returns how to undo it."""
        if self._reason is not None:
            callback(self._reason)
            return lambda: None
        if self._callbacks is None:
            self._callbacks = {}
        key = object()
        self._callbacks[key] = callback

        def undo() -> None:
            if self._callbacks is not None:
                self._callbacks.pop(key, None)
                self._callbacks = self._callbacks or None

        return undo

    @classmethod
    def any(cls, *sources: Signal) -> Signal:
        """A signal that is aborted as soon as one of `sources` is."""
        combined = cls()
        combined._sources = sources
        for source in sources:
            source.on_abort(combined.abort)
        return combined
