"""What a run went through, read off its row: events and a trace (wire-protocol §9.7).

The server keeps no spans: those of a run's code go where OpenTelemetry is told to send them. What
the row of a run knows is told here in the form clients expect: one span for the run, with its
changes of state as events, and beneath it the spans of the runs it started. Ids are digests of run
ids, so they are the same whenever they are asked for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from everturn.rules import limits
from everturn.rules.run_states import FINAL, RunState
from everturn.server.services.results import iso, shown_error
from everturn.storage.ports.rows import Run

if TYPE_CHECKING:
    from everturn.server.services import Services

#: How deep a trace goes; a family may be deeper.
_DEPTH_MAX: Final = 5


class Traces:
    """Traces of runs."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def trace(self, run: Run) -> dict[str, Any]:
        """The run's span, with those of the runs beneath it; RELATED_RUNS_MAX spans at most."""
        left = [limits.RELATED_RUNS_MAX]
        root = await self._span(run, None, _DEPTH_MAX, left)
        return {"traceId": _digest("trace", run.root_run_id or run.id, 32), "rootSpan": root}

    async def span(self, run: Run, span_id: str) -> dict[str, Any] | None:
        """One span of the run's trace by its id: its own or a child's. None: there is no such."""
        children = await self._services.state.children(run.id, limit=limits.RELATED_RUNS_MAX)
        for found in (run, *children):
            if span_id_of(found) == span_id:
                parent_id = None if found is run else span_id_of(run)
                return _detail(found, parent_id, self._services.clock.now_ms())
        return None

    def events(self, run: Run) -> list[dict[str, Any]]:
        """The changes of state the row knows the time of, in order."""
        span_id = span_id_of(run)
        return [
            {
                "spanId": span_id,
                "runId": run.id,
                "taskSlug": run.task_id,
                "message": name,
                "startTime": iso(at_ms),
                "duration": 0,
                "level": "ERROR" if is_error else "INFO",
                "kind": "INTERNAL",
                "isError": is_error,
                "isPartial": False,
                "isCancelled": name == RunState.CANCELED.value,
            }
            for name, at_ms, is_error in _moments(run)
        ]

    async def _span(
        self, run: Run, parent_id: str | None, depth: int, left: list[int]
    ) -> dict[str, Any]:
        left[0] -= 1
        span_id = span_id_of(run)
        span: dict[str, Any] = {"id": span_id, "runId": run.id, "children": []}
        if parent_id is not None:
            span["parentId"] = parent_id
        span["data"] = _data(run, self._services.clock.now_ms())
        if depth > 0:
            for child in await self._services.state.children(run.id, limit=left[0]):
                if left[0] <= 0:
                    break
                span["children"].append(await self._span(child, span_id, depth - 1, left))
        return span


def span_id_of(run: Run) -> str:
    """The id of a run's span: 16 hexadecimal digits."""
    return _digest("span", run.id, 16)


def _digest(kind: str, run_id: str, digits: int) -> str:
    return hashlib.sha256(f"{kind}:{run_id}".encode()).hexdigest()[:digits]


def _moments(run: Run) -> list[tuple[str, int, bool]]:
    known = (
        ("QUEUED", run.created_at_ms, False),
        ("DEQUEUED", run.started_at_ms, False),
        ("EXECUTING", run.executed_at_ms, False),
        (run.state.value, run.finished_at_ms, _failed(run)),
    )
    return [(name, at_ms, is_error) for name, at_ms, is_error in known if at_ms is not None]


def _failed(run: Run) -> bool:
    return run.state in FINAL and run.state not in (RunState.COMPLETED, RunState.CANCELED)


def _data(run: Run, now_ms: int) -> dict[str, Any]:
    """`data` of a span in a trace."""
    failed = _failed(run)
    data: dict[str, Any] = {
        "message": run.task_id,
        "taskSlug": run.task_id,
        "startTime": iso(run.created_at_ms),
        "duration": (run.finished_at_ms or now_ms) - run.created_at_ms,
        "isError": failed,
        "isPartial": run.state not in FINAL,
        "isCancelled": run.state is RunState.CANCELED,
        "level": "ERROR" if failed else "INFO",
        "queueName": run.queue,
        "events": [{"name": name, "time": iso(at_ms)} for name, at_ms, _ in _moments(run)],
    }
    optional = {"workerVersion": run.version, "machinePreset": run.machine}
    if failed and run.error is not None:
        data["properties"] = {"error": shown_error(run.error)}
    return data | {name: value for name, value in optional.items() if value is not None}


def _detail(run: Run, parent_id: str | None, now_ms: int) -> dict[str, Any]:
    data = _data(run, now_ms)
    kept = ("message", "startTime", "isError", "isPartial", "isCancelled", "level", "events")
    detail = {name: data[name] for name in kept}
    detail |= {"spanId": span_id_of(run), "parentId": parent_id, "runId": run.id}
    detail |= {"durationMs": data["duration"], "entityType": "run"}
    if "properties" in data:
        detail["properties"] = data["properties"]
    return detail
