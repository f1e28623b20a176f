"""How an exception ends an attempt: outcomes, and errors as they are stored.

The stored forms are wire-protocol §9.9, their limits tasks-and-runs §5.4. Control exceptions for
authors live here too: `CompleteTask`, `OutOfMemoryRunError`; `AbortTaskRunError` is in `errors`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Final

from everturn.client.problems import status_of
from everturn.errors import (
    ApiError,
    ConcurrentWaitError,
    EverturnError,
    FatalAgentError,
)
from everturn.protocol.runs import RunOutcome
from everturn.tasks import codec
from everturn.tasks.runtime import RunRuntime

STACK_FRAMES_MAX: Final = 50
MESSAGE_CHARS_MAX: Final = 1000
STACK_LINE_CHARS_MAX: Final = 1024

#: Carries the stored form of an exception that was raised in another process, with its stack.
STORED_ATTRIBUTE: Final = "__everturn_stored__"

OUT_OF_MEMORY: Final = "TASK_PROCESS_OOM_KILLED"
#: 4xx answers that are worth another attempt; the others say that the request is wrong.
_RETRIED_STATUSES: Final = frozenset({408, 429})
_RESET_SPREAD_MS: Final = 1000


class CompleteTask(Exception):
    """Raised by authors, however deep: end the run successfully with this output."""

    def __init__(self, output: Any = None) -> None:
        super().__init__("completed by the author")
        self.output = output


class OutOfMemoryRunError(EverturnError):
    """Raised by authors to have the run treated as out of memory, as MemoryError is."""

    code = "out_of_memory"


class PayloadValidationError(EverturnError):
    """The payload does not fit the task's schema. Never retried."""

    code = "payload_invalid"


class AttemptFailed(Exception):
    """Carries a decided outcome out of a definition's `run`."""

    def __init__(self, outcome: RunOutcome) -> None:
        super().__init__(outcome.kind)
        self.outcome = outcome


def internal_error(code: str, message: str = "", stack: str = "") -> dict[str, Any]:
    """An error with a platform code (tasks-and-runs §5.4)."""
    error: dict[str, Any] = {"type": "INTERNAL_ERROR", "code": code}
    if message:
        error["message"] = message[:MESSAGE_CHARS_MAX]
    if stack:
        error["stackTrace"] = stack
    return error


def stored_error(error: BaseException) -> dict[str, Any]:
    """An author's exception as it is stored: name, message and stack, each within its limit."""
    elsewhere = getattr(error, STORED_ATTRIBUTE, None)
    if isinstance(elsewhere, dict):
        return elsewhere
    return {
        "type": "BUILT_IN_ERROR",
        "name": type(error).__name__,
        "message": _message_of(error)[:MESSAGE_CHARS_MAX],
        "stackTrace": stack_of(error),
    }


def _message_of(error: BaseException) -> str:
    """What it says; the stack says the same of one whose `__str__` fails."""
    try:
        return str(error)
    except Exception:  # the author's own code
        return f"<{type(error).__name__} whose text cannot be made>"


def stack_of(error: BaseException) -> str:
    """The innermost frames of an exception, as Python prints them, and its last line."""
    frames = traceback.extract_tb(error.__traceback__)[-STACK_FRAMES_MAX:]
    lines = [line for entry in traceback.format_list(frames) for line in entry.splitlines()]
    lines += "".join(traceback.format_exception_only(error)).splitlines()
    return "\n".join(line[:STACK_LINE_CHARS_MAX] for line in lines)


def failed(error: Mapping[str, Any], *, retryable: bool, at_ms: int | None = None) -> RunOutcome:
    return RunOutcome(kind="failed", error=error, retryable=retryable, retry_at_ms=at_ms)


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt may help, as far as the exception itself says."""
    if isinstance(error, FatalAgentError | ConcurrentWaitError | PayloadValidationError):
        return False
    status = status_of(error) if isinstance(error, EverturnError) else None
    if status is not None and 400 <= status < 500:
        return status in _RETRIED_STATUSES
    return True


def outcome_of(error: BaseException, runtime: RunRuntime) -> RunOutcome:
    """How an attempt ends whose code raised `error`.

    A task group wraps what one of its tasks raised; what it was decides, and is what is stored.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, AttemptFailed):
        return error.outcome
    if isinstance(error, CompleteTask):
        return RunOutcome(kind="completed", output=codec.encode(error.output))
    if isinstance(error, MemoryError | OutOfMemoryRunError):
        code = internal_error(OUT_OF_MEMORY, str(error) or "out of memory", stack_of(error))
        return RunOutcome(kind="crashed", error=code, machine=runtime.info.machine)
    if isinstance(error, SystemExit) and error.code not in (None, 0):
        code = internal_error("TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE", f"exit {error.code}")
        return RunOutcome(kind="crashed", error=code)
    if isinstance(error, SystemExit):
        return RunOutcome(kind="completed")
    if isinstance(error, ConcurrentWaitError):
        code = internal_error("TASK_DID_CONCURRENT_WAIT", str(error), stack_of(error))
        return failed(code, retryable=False)
    if isinstance(error, PayloadValidationError):
        return failed(internal_error("TASK_INPUT_ERROR", str(error)), retryable=False)
    reset_ms = error.reset_at_ms if isinstance(error, ApiError) else None
    if reset_ms is not None:
        # A little later than the reset, each its own, so that they do not all come at once.
        reset_ms += round(runtime.ids.uniform(0, _RESET_SPREAD_MS))
    return failed(stored_error(error), retryable=is_retryable(error), at_ms=reset_ms)
