"""Runs as others see them: the public view, and the result for whoever waited."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from everturn.protocol.runs import RunResult
from everturn.rules import durations
from everturn.rules.run_states import FINAL, RunState, public_status
from everturn.storage.ports.rows import Run

_QUEUED: Final = frozenset({"QUEUED", "DELAYED", "PENDING_VERSION"})
_EXECUTING: Final = frozenset({"EXECUTING", "DEQUEUED"})
#: Stored error limits (tasks-and-runs §5.4).
_MESSAGE_CHARS_MAX: Final = 1_000
_STACK_LINES_MAX: Final = 50
_STACK_LINE_CHARS_MAX: Final = 1_024


def iso(at_ms: int) -> str:
    """Epoch milliseconds as the wire writes them: `2026-04-24T09:00:00.000Z`."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def status_of(run: Run, now_ms: int, *, version_known: bool = True) -> str:
    """The status clients see (wire-protocol §9.4)."""
    delayed = run.attempt == 0 and run.not_before_ms is not None and run.not_before_ms > now_ms
    return public_status(run.state, delayed=delayed, version_known=version_known)


def run_item(run: Run, now_ms: int, *, version_known: bool = True) -> dict[str, Any]:
    """The fields that a list entry, a related run and a whole run share (wire-protocol §9.6).

    Optional members are absent, never null: clients turn a null date into 1970.
    """
    status = status_of(run, now_ms, version_known=version_known)
    completed = run.state in FINAL
    view: dict[str, Any] = {
        "id": run.id,
        "status": status,
        "taskIdentifier": run.task_id,
        "isQueued": status in _QUEUED,
        "isExecuting": status in _EXECUTING,
        "isWaiting": status == "WAITING",
        "isCompleted": completed,
        "isSuccess": status == "COMPLETED",
        "isFailed": completed and status != "COMPLETED",
        "isCancelled": status == "CANCELED",
        "isTest": run.is_test,
        "createdAt": iso(run.created_at_ms),
        "updatedAt": iso(run.updated_at_ms),
        "tags": list(run.tags),
        "costInCents": 0,
        "baseCostInCents": 0,
        "durationMs": _duration_ms(run, now_ms),
        "depth": run.depth,
        "triggerFunction": run.trigger_function,
    }
    optional: dict[str, Any] = {
        "startedAt": _iso_or_none(run.started_at_ms),
        "finishedAt": _iso_or_none(run.finished_at_ms),
        "delayedUntil": _iso_or_none(run.not_before_ms if run.attempt == 0 else None),
        "expiredAt": _iso_or_none(run.finished_at_ms if status == "EXPIRED" else None),
        "idempotencyKey": _shown_key(run),
        "version": run.version,
        "ttl": None if run.ttl_ms is None else durations.written(run.ttl_ms // 1000),
        "batchId": run.batch_id,
    }
    view.update({name: value for name, value in optional.items() if value is not None})
    if run.metadata is not None:
        view["metadata"] = _json(run.metadata)
    return view


def run_view(run: Run, now_ms: int, *, version_known: bool = True) -> dict[str, Any]:
    """A run as `runs.retrieve` answers it, without its related runs (wire-protocol §9.5)."""
    view = run_item(run, now_ms, version_known=version_known)
    view["relatedRuns"] = {}
    view["attemptCount"] = run.attempt
    if run.payload:
        view["payload"] = packet(run.payload, run.payload_type)
    if run.state is RunState.COMPLETED and run.output is not None:
        view["output"] = packet(run.output, run.output_type or "application/json")
    if run.state in FINAL and run.error is not None:
        view["error"] = shown_error(run.error)
    return view


def packet(data: bytes, data_type: str) -> Any:
    """The value of a stored packet; rich JSON is unwrapped to its plain member (§9.2)."""
    if data_type.startswith("text/plain"):
        return data.decode("utf-8", "replace")
    value = _json(data)
    if data_type == "application/super+json" and isinstance(value, dict) and "json" in value:
        return value["json"]
    return value


def shown_error(error: Mapping[str, Any]) -> dict[str, str]:
    """`{message, name?, stackTrace?}` of a stored error of any of its four kinds (§9.9)."""
    kind = error.get("type")
    if kind in ("CUSTOM_ERROR", "STRING_ERROR"):
        return {"message": str(error.get("raw", ""))}
    shown = {"message": str(error.get("message") or error.get("code") or "unknown error")}
    name = error.get("name") or error.get("code")
    if name:
        shown["name"] = str(name)
    if error.get("stackTrace"):
        shown["stackTrace"] = str(error["stackTrace"])
    return shown


def bounded_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """The error as it is stored: message and stack cut to their limits (tasks-and-runs §5.4)."""
    bounded = dict(error)
    if isinstance(bounded.get("message"), str):
        bounded["message"] = bounded["message"][:_MESSAGE_CHARS_MAX]
    stack = bounded.get("stackTrace")
    if isinstance(stack, str):
        lines = stack.splitlines()[:_STACK_LINES_MAX]
        bounded["stackTrace"] = "\n".join(line[:_STACK_LINE_CHARS_MAX] for line in lines)
    return bounded


def run_result(run: Run) -> RunResult | None:
    """What whoever waited for this run gets; None while it is not final."""
    if run.state not in FINAL:
        return None
    ok = run.state is RunState.COMPLETED
    error = run.error
    if not ok and error is None:
        error = internal_error(_CODES.get(run.state, "UNSPECIFIED_ERROR"))
    return RunResult(
        run_id=run.id,
        task_id=run.task_id,
        ok=ok,
        status=public_status(run.state),
        output=run.output if ok else None,
        output_type=run.output_type if ok else None,
        error=None if ok else error,
    )


def execution_result(run: Run) -> dict[str, Any] | None:
    """The wire's TaskRunExecutionResult; None while the run is not final (§9.9)."""
    result = run_result(run)
    if result is None:
        return None
    view: dict[str, Any] = {"ok": result.ok, "id": run.id, "taskIdentifier": run.task_id}
    if result.ok:
        if result.output is not None:
            view["output"] = result.output.decode("utf-8", "replace")
            view["outputType"] = result.output_type or "application/json"
    else:
        view["error"] = result.error
    return view


def internal_error(code: str, message: str = "") -> dict[str, Any]:
    """An error of the platform's own."""
    error = {"type": "INTERNAL_ERROR", "code": code}
    return {**error, "message": message} if message else error


_CODES: Final[Mapping[RunState, str]] = {
    RunState.CANCELED: "TASK_RUN_CANCELLED",
    RunState.TIMED_OUT: "MAX_DURATION_EXCEEDED",
    RunState.CRASHED: "TASK_RUN_CRASHED",
}


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data.decode("utf-8", "replace")


def _iso_or_none(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)


def _shown_key(run: Run) -> str | None:
    options = run.idempotency_options or {}
    key = options.get("key")
    return key if isinstance(key, str) else run.idempotency_key


def _duration_ms(run: Run, now_ms: int) -> int:
    if run.executed_at_ms is None:
        return 0
    return max(0, (run.finished_at_ms or now_ms) - run.executed_at_ms)
