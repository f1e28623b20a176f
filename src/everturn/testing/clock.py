"""Virtual time: nothing passes unless a test says so."""

from __future__ import annotations

import heapq
import itertools

import anyio
from anyio.lowlevel import checkpoint

from everturn.testing.quiet import at_rest

#: 2026-01-01T00:00:00Z, so that times in test output are recognisable and the same every time.
EPOCH_MS = 1_767_225_600_000


class VirtualClock:
    """A clock that is moved by hand. Sleepers wake in the order of their deadlines."""

    def __init__(self, now_ms: int = EPOCH_MS) -> None:
        self._start_ms = now_ms
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """Virtual milliseconds since 1970."""
        return self._start_ms + round(self._elapsed * 1000)

    def monotonic(self) -> float:
        """Virtual seconds since this clock was made."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Return when that much virtual time has passed; at once for none."""
        if seconds <= 0:
            await checkpoint()
            return
        event = anyio.Event()
        entry = (self._elapsed + seconds, next(self._order), event)
        heapq.heappush(self._sleepers, entry)
        try:
            await event.wait()
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

    @property
    def sleepers(self) -> int:
        """How many calls of `sleep` are waiting."""
        return len(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let time pass. What each deadline sets off has come to rest before the next one."""
        until = self._elapsed + seconds
        await at_rest()
        while self._sleepers and self._sleepers[0][0] <= until:
            deadline, _, event = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, deadline)
            event.set()
            await at_rest()
        self._elapsed = until
        await at_rest()
