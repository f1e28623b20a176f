"""How long a worker may take its runs for its own.

The server renews the lease when it reads a Beat, which is after the worker sent it. Counting from
the time an answered Beat (or the Hello that a Welcome answers) was *sent*, by this process's
monotonic clock, therefore never counts too much. The lease is over a margin before that time is,
and the worker then stops every run it holds: the server may give them away only later.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from everturn.clock import Clock
from everturn.rules import limits


class Lease:
    """The lease of one worker process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lease_s = limits.LEASE_MS / 1000
        self._trusted_until: float | None = None
        self._renewed = anyio.Event()

    @property
    def trusted(self) -> bool:
        """True while the server cannot have given this worker's runs to somebody else."""
        return self._trusted_until is not None and self._clock.monotonic() < self._trusted_until

    def lasts(self, lease_ms: int) -> None:
        """The server says how long one renewal holds."""
        self._lease_s = lease_ms / 1000

    def renew(self, sent_at: float) -> None:
        """What was sent at that moment, by `Clock.monotonic`, was answered."""
        margin_s = min(limits.LEASE_MARGIN_MS / 1000, self._lease_s / 4)
        until = sent_at + self._lease_s - margin_s
        if self._trusted_until is None or until > self._trusted_until:
            self._trusted_until = until
            self._renewed.set()

    async def watch(self, over: Callable[[], None]) -> None:
        """Call `over` each time the lease can no longer be trusted; until cancelled."""
        while True:
            if self._trusted_until is None:
                await self._renewed.wait()
            self._renewed = anyio.Event()
            assert self._trusted_until is not None
            left_s = self._trusted_until - self._clock.monotonic()
            if left_s > 0:
                await self._clock.sleep(left_s)
                continue
            self._trusted_until = None
            self._renewed = anyio.Event()
            over()
