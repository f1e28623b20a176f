"""Rate limits of requests under `/api` (wire-protocol §17.6); realtime routes are never limited.

A secret key has a token bucket, a public token a fixed window of one minute. The tables are
bounded: the credential that was quiet longest is forgotten first, which gives it a full bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from everturn.protocol.problems import RateLimited

if TYPE_CHECKING:
    from everturn.clock import Clock
    from everturn.rules.access import Caller
    from everturn.server.settings import Settings

CALLERS_MAX: Final = 50_000
REFILL_S: Final = 10.0
WINDOW_S: Final = 60.0

Headers = tuple[tuple[bytes, bytes], ...]


class Rates:
    """Counts requests per credential."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        #: caller -> (tokens left, when that was true); of a public token: (requests made, since)
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: Caller) -> Headers:
        """Count one request; the `x-ratelimit-*` headers of its answer. Raises RateLimited."""
        limit, remaining, wait_s = self._secret(caller) if caller.is_secret else self._token(caller)
        reset_ms = self._clock.now_ms() + round(wait_s * 1000)
        if remaining < 0:
            raise RateLimited(
                "Rate limit exceeded",
                retry_after_s=wait_s,
                limit=limit,
                remaining=0,
                reset_ms=reset_ms,
            )
        return headers(limit, remaining, reset_ms)

    def _secret(self, caller: Caller) -> tuple[int, int, float]:
        """`(limit, left or -1, seconds until one more)` of a token bucket."""
        now = self._clock.monotonic()
        capacity, per_s = self._settings.rate_capacity, self._settings.rate_refill / REFILL_S
        left, at = self._counts.get(caller.rate_key, (float(capacity), now))
        left = min(float(capacity), left + (now - at) * per_s)
        if left < 1:
            self._keep(caller.rate_key, left, now)
            return capacity, -1, (1 - left) / per_s
        self._keep(caller.rate_key, left - 1, now)
        return capacity, int(left - 1), (capacity - left + 1) / per_s

    def _token(self, caller: Caller) -> tuple[int, int, float]:
        """`(limit, left or -1, seconds until the window ends)` of a fixed window."""
        now = self._clock.monotonic()
        made, since = self._counts.get(caller.rate_key, (0.0, now))
        if now - since >= WINDOW_S:
            made, since = 0.0, now
        self._keep(caller.rate_key, made + 1, since)
        left = self._settings.public_rate - int(made) - 1
        return self._settings.public_rate, max(-1, left), WINDOW_S - (now - since)

    def _keep(self, name: str, count: float, at: float) -> None:
        self._counts[name] = (count, at)
        self._counts.move_to_end(name)
        while len(self._counts) > CALLERS_MAX:
            self._counts.popitem(last=False)


def headers(limit: int, remaining: int, reset_ms: int) -> Headers:
    """The headers a client reads its allowance from; `reset` is epoch ms."""
    return (
        (b"x-ratelimit-limit", b"%d" % limit),
        (b"x-ratelimit-remaining", b"%d" % max(0, remaining)),
        (b"x-ratelimit-reset", b"%d" % reset_ms),
    )
