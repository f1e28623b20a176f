"""Run subscriptions: what a subscriber sees, and waiting until it differs (wire-protocol §12).

Nothing is kept per subscriber (see `protocol/shapes.py`): a held request watches the topic of what
it follows and looks again at every hint, and without one every two seconds. So a restart of this
server, or the next request going to another one, costs a subscriber nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from everturn.errors import Unavailable
from everturn.ids import internal_id
from everturn.protocol.shapes import COLUMNS, NEVER_SKIPPED, Offset, Row, mark_of
from everturn.protocol.shapes import text_array as _array
from everturn.protocol.shapes import timestamp as _timestamp
from everturn.rules import durations, limits
from everturn.rules.run_states import FINAL, RunState
from everturn.server.services.results import shown_error
from everturn.server.services.run_streams import output_names
from everturn.storage.ports.rows import Run, RunFilter

if TYPE_CHECKING:
    from everturn.server.services import Services

#: Column values of the original's own states, which its clients map back (§9.4).
_STATUS: Final[dict[RunState, str]] = {
    RunState.QUEUED: "PENDING",
    RunState.CLAIMED: "DEQUEUED",
    RunState.RUNNING: "EXECUTING",
    RunState.SUSPENDED: "WAITING_TO_RESUME",
    RunState.RESUMING: "WAITING_TO_RESUME",
    RunState.COMPLETED: "COMPLETED_SUCCESSFULLY",
    RunState.FAILED: "COMPLETED_WITH_ERRORS",
    RunState.CANCELED: "CANCELED",
    RunState.CRASHED: "CRASHED",
    RunState.SYSTEM_FAILURE: "SYSTEM_FAILURE",
    RunState.EXPIRED: "EXPIRED",
    RunState.TIMED_OUT: "TIMED_OUT",
}

#: Reads the runs somebody follows.
Read = Callable[[], Awaitable[Sequence[Run]]]


class Seen(NamedTuple):
    """Rows at one moment, and the offset that says so."""

    runs: Sequence[Run]
    rows: Sequence[Row]
    offset: Offset


class Realtime:
    """Reads and watches what subscribers follow."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._held = 0

    async def tagged(
        self, environment_id: str, tags: Sequence[str], created_from_ms: int
    ) -> Sequence[Run]:
        """Runs that have all of these tags, newest first, at most REALTIME_RUNS_MAX."""
        found: list[Run] = []
        after: str | None = None
        where = RunFilter(tags=tuple(tags[:1]), created_from_ms=created_from_ms)
        while len(found) < limits.REALTIME_RUNS_MAX:
            page = await self._services.state.runs(
                environment_id, where, limit=limits.PAGE_SIZE_MAX, after=after
            )
            found += [run for run in page.items if set(tags) <= set(run.tags)]
            after = page.next
            if after is None:
                break
        return found[: limits.REALTIME_RUNS_MAX]

    async def batch(self, environment_id: str, batch_id: str) -> Sequence[Run]:
        """The runs of a batch so far, each once."""
        runs = await self._services.state.batch_runs(environment_id, batch_id)
        return tuple({run.id: run for run in runs}.values())

    async def look(self, read: Read, columns: Sequence[str]) -> Seen:
        """What there is now."""
        # Taken before the read: what changes while reading is then answered again, not missed.
        at_ms = self._services.clock.now_ms()
        runs = await read()
        rows = [row_of(run, columns, at_ms) for run in runs]
        return Seen(runs, rows, Offset(at_ms, mark_of(rows)))

    async def wait(self, read: Read, columns: Sequence[str], mark: int, topic: str) -> Seen:
        """What there is once it differs from `mark`, or after some twenty seconds as it is.

        Raises Unavailable when REALTIME_HELD_MAX requests are held already.
        """
        if self._held >= limits.REALTIME_HELD_MAX:
            raise Unavailable("too many subscriptions are open", retry_after_s=5.0)
        clock = self._services.clock
        # Spread, so that subscribers that began together do not ask together for ever.
        hold_s = limits.REALTIME_HOLD_S * self._services.ids.uniform(0.85, 1.15)
        until = clock.monotonic() + hold_s
        waiter = self._services.wakeups.waiter(topic)
        self._held += 1
        try:
            while True:
                seen = await self.look(read, columns)
                left_s = until - clock.monotonic()
                if seen.offset.mark != mark or left_s <= 0:
                    return seen
                await waiter.wait(min(left_s, limits.REALTIME_POLL_S))
        finally:
            self._held -= 1
            waiter.close()


def columns_without(skipped: Sequence[str]) -> tuple[str, ...]:
    """The columns of a subscription; some cannot be left out."""
    hidden = set(skipped) - NEVER_SKIPPED
    return tuple(name for name in COLUMNS if name not in hidden)


def row_of(run: Run, columns: Sequence[str], now_ms: int) -> Row:
    """A run as a row of texts."""
    final = run.state in FINAL
    delayed = run.state is RunState.QUEUED and run.attempt == 0 and run.not_before_ms is not None
    status = _STATUS[run.state]
    if delayed and (run.not_before_ms or 0) > now_ms:
        status = "DELAYED"
    values: dict[str, str | None] = {
        "id": internal_id(run.id),
        "friendlyId": run.id,
        "taskIdentifier": run.task_id,
        "status": status,
        # The number of a run in its task is not kept; any that stays the same will do.
        "number": str(zlib.crc32(run.id.encode()) % 1_000_000_000),
        "isTest": "t" if run.is_test else "f",
        "runTags": _array(run.tags),
        "payload": _text(run.payload),
        "payloadType": run.payload_type,
        "metadata": _text(run.metadata),
        "metadataType": "application/json",
        "output": _text(run.output) if run.state is RunState.COMPLETED else None,
        "outputType": run.output_type or "application/json",
        "error": _error(run) if final else None,
        "idempotencyKey": run.idempotency_key,
        "createdAt": _timestamp(run.created_at_ms),
        "updatedAt": _timestamp(run.updated_at_ms),
        "queuedAt": _timestamp(run.queued_at_ms),
        "startedAt": _timestamp(run.started_at_ms),
        "delayUntil": _timestamp(run.not_before_ms if run.attempt == 0 else None),
        "ttl": None if run.ttl_ms is None else durations.written(run.ttl_ms // 1000),
        "realtimeStreams": _array(output_names(run)),
        "expiredAt": _timestamp(run.finished_at_ms if run.state is RunState.EXPIRED else None),
        "completedAt": _timestamp(run.finished_at_ms),
        "usageDurationMs": str(_duration_ms(run)),
        "costInCents": "0",
        "baseCostInCents": "0",
    }
    return {name: values.get(name) for name in columns}


def _text(data: bytes | None) -> str | None:
    return data.decode("utf-8", "replace") if data else None


def _error(run: Run) -> str | None:
    if run.error is None:
        return None
    return msgspec.json.encode({"type": "BUILT_IN_ERROR", **shown_error(run.error)}).decode()


def _duration_ms(run: Run) -> int:
    """Of a finished run only: a number that grows by itself would be a change at every look."""
    if run.executed_at_ms is None or run.finished_at_ms is None:
        return 0
    return max(0, run.finished_at_ms - run.executed_at_ms)
