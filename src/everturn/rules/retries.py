"""Is there another attempt after the author's code failed, and after how long.

Spec: tasks-and-runs §7. Interruptions (a dead process, a drain, a lost lease) are not failures
and never come here: `rules/recovery.py` decides about those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from everturn.protocol.runs import RunOutcome
from everturn.rules import limits
from everturn.rules.durations import DURATION_S_MAX

#: No attempt waits longer, whatever a policy says (`inf` included): its time has to be stored.
DELAY_MS_MAX: Final = DURATION_S_MAX * 1000
#: Error codes of the platform that another attempt may cure (tasks-and-runs §7.2). Errors of
#: the author's code carry no code and are always retryable.
RETRYABLE_CODES: Final = frozenset(
    {
        "TASK_RUN_STALLED_EXECUTING",
        "TASK_RUN_STALLED_EXECUTING_WITH_WAITPOINTS",
        "GRACEFUL_EXIT_TIMEOUT",
        "HANDLE_ERROR_ERROR",
        "TASK_INPUT_ERROR",
        "TASK_OUTPUT_ERROR",
        "TASK_MIDDLEWARE_ERROR",
        "POD_EVICTED",
        "POD_UNKNOWN_ERROR",
        "TASK_EXECUTION_ABORTED",
        "TASK_EXECUTION_FAILED",
        "TASK_RUN_CRASHED",
        "TASK_RUN_UNCAUGHT_EXCEPTION",
        "TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE",
        "TASK_PROCESS_SIGTERM",
        "TASK_PROCESS_SIGSEGV",
    }
)
OUT_OF_MEMORY_CODES: Final = frozenset({"TASK_PROCESS_OOM_KILLED", "TASK_PROCESS_MAYBE_OOM_KILLED"})


class OutOfMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run goes on that ran out of memory."""

    machine: str | None = None


class RetryPolicy(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The retry policy of a task, in its wire form."""

    max_attempts: int = 3
    factor: float = 2.0
    min_timeout_in_ms: float = 1_000
    max_timeout_in_ms: float = 60_000
    randomize: bool = True
    out_of_memory: OutOfMemory = OutOfMemory()

    @classmethod
    def of(cls, config: Mapping[str, Any], *, default_attempts: int) -> RetryPolicy:
        """The policy a declaration carries; a malformed one counts as absent."""
        retry = config.get("retry")
        if isinstance(retry, Mapping):
            try:
                return msgspec.convert({"maxAttempts": default_attempts, **retry}, cls)
            except msgspec.ValidationError:
                pass
        return cls(max_attempts=default_attempts)


class Retry(msgspec.Struct, frozen=True):
    """Another attempt is due, not before `delay_ms` from now, perhaps on another machine."""

    delay_ms: int
    machine: str | None = None


def delay_ms(policy: RetryPolicy, failures: int, uniform: Callable[[float, float], float]) -> int:
    """Milliseconds to wait after failure number `failures` (from 1).

    `round(min(maxTimeout, r * minTimeout * factor^(n-1)))` with r in [1, 2) when randomised.
    """
    spread = uniform(1.0, 2.0) if policy.randomize else 1.0
    try:
        grown = policy.min_timeout_in_ms * spread * policy.factor ** (failures - 1)
    except OverflowError:
        grown = policy.max_timeout_in_ms
    bounded = min(grown, policy.max_timeout_in_ms, DELAY_MS_MAX)
    return round(bounded) if bounded > 0 else 0  # what is no number is not waited for


def error_code(outcome: RunOutcome) -> str | None:
    """The platform's code of an error, None for errors of the author's code."""
    code = (outcome.error or {}).get("code")
    return code if isinstance(code, str) else None


def decide(
    outcome: RunOutcome,
    policy: RetryPolicy,
    *,
    failures: int,
    attempt: int,
    max_attempts: int | None,
    machine: str | None,
    now_ms: int,
    uniform: Callable[[float, float], float],
) -> Retry | None:
    """What follows a failed or crashed attempt: another one, or None.

    Args:
        failures: failures of the author's code, this one included.
        attempt: number of the attempt that ended, interruptions included.
        max_attempts: the run's own bound, which wins over the policy's.
    """
    allowed = max_attempts if max_attempts is not None else policy.max_attempts
    if not outcome.retryable or failures >= allowed or attempt >= limits.ATTEMPTS_MAX:
        return None
    code = error_code(outcome)
    if code in OUT_OF_MEMORY_CODES:
        # More of the same memory would end the same way: only a larger machine helps.
        larger = policy.out_of_memory.machine or outcome.machine
        if larger is None or larger == machine:
            return None
        return Retry(0, larger)
    if code is not None and code not in RETRYABLE_CODES:
        return None
    if outcome.retry_at_ms is not None:
        wait_ms = min(max(0, outcome.retry_at_ms - now_ms), DELAY_MS_MAX)
        return Retry(wait_ms, outcome.machine)
    return Retry(delay_ms(policy, failures, uniform), outcome.machine)
