"""The only door to time.

Code that reads a clock or sleeps takes a `Clock`, so that tests and simulations can move time by
hand. Wall time (`now_ms`) is what is stored and compared between processes; `monotonic` measures
durations inside one process and is what leases are trusted by.
"""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Wall time, a monotonic stopwatch, and sleep."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after at least `seconds` of this clock's time."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
