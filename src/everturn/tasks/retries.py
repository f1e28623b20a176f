"""Retry policies, as authors write them, and `retry.on_raise` for a block inside a run.

Whether a run gets another attempt is decided by the server, from the policy a task declares and
what its worker reports; here is the vocabulary (tasks-and-runs §7).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from everturn.errors import AbortTaskRunError, ConfigurationError
from everturn.ids import Ids
from everturn.rules import limits
from everturn.rules.durations import Duration, parse
from everturn.tasks import runtime as runtimes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and after how long a failed attempt is repeated.

    Attributes:
        max_attempts: in total, the first one included; 1 to limits.ATTEMPTS_MAX.
        factor: each delay is this many times the one before.
        min_delay: before the second attempt; seconds or any duration.
        max_delay: no delay is longer.
        jitter: multiply each delay by a random number in [1, 2).
        out_of_memory: machine preset for the attempt after one that ran out of memory.
    """

    max_attempts: int = 3
    factor: float = 2.0
    min_delay: Duration = 1.0
    max_delay: Duration = 60.0
    jitter: bool = True
    out_of_memory: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= limits.ATTEMPTS_MAX:
            raise ConfigurationError(
                f"max_attempts is {self.max_attempts}, between 1 and {limits.ATTEMPTS_MAX}"
            )
        parse(self.min_delay)
        parse(self.max_delay)

    def delay_s(self, failed_attempt: int, ids: Ids) -> float | None:
        """Seconds to wait after that attempt failed; None when it was the last one."""
        if failed_attempt >= self.max_attempts:
            return None
        spread = ids.uniform(1.0, 2.0) if self.jitter else 1.0
        delay = spread * parse(self.min_delay) * self.factor ** (failed_attempt - 1)
        return round(min(parse(self.max_delay), delay) * 1000) / 1000

    def wire(self) -> dict[str, Any]:
        """As a task declares it to the server (camelCase, milliseconds)."""
        wire: dict[str, Any] = {
            "maxAttempts": self.max_attempts,
            "factor": self.factor,
            "minTimeoutInMs": round(parse(self.min_delay) * 1000),
            "maxTimeoutInMs": round(parse(self.max_delay) * 1000),
            "randomize": self.jitter,
        }
        if self.out_of_memory is not None:
            wire["outOfMemory"] = {"machine": self.out_of_memory}
        return wire


@dataclass(frozen=True, kw_only=True)
class CatchErrorResult:
    """What a `catch_error` hook decides. The first result that is set wins, the task's first.

    Attributes:
        skip_retrying: fail now.
        retry_at: repeat at this instant.
        retry_delay: repeat after this long.
        retry: compute the delay with this policy, this once.
        error: report this error instead.
    """

    skip_retrying: bool = False
    retry_at: datetime | None = None
    retry_delay: Duration | None = None
    retry: RetryPolicy | None = None
    error: BaseException | None = field(default=None)


async def on_raise(fn: Callable[[int], Awaitable[T]], **policy: Any) -> T:
    """Call `fn(attempt)` until it returns, with the delays of a RetryPolicy between.

    Long delays suspend the run, as any wait over five seconds does. AbortTaskRunError passes
    through at once; the last attempt's exception is raised as it is.
    """
    from everturn.tasks import waits

    rules = RetryPolicy(**policy)
    attempt = 1
    while True:
        try:
            return await fn(attempt)
        except AbortTaskRunError:
            raise
        except Exception:  # the author's own block, whatever it raises
            delay_s = rules.delay_s(attempt, runtimes.current().ids)
            if delay_s is None:
                raise
        await waits.for_(seconds=delay_s)
        attempt += 1
