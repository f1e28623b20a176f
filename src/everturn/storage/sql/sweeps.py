"""What sweeps look for: runs whose time has come, and what a crash left half done.

All of these run every few seconds for ever, so each is served by an index that holds only rows
that could be an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, and_, bindparam, exists, func, literal_column, or_, select

from everturn.rules import limits
from everturn.rules.run_states import RESIDENT, RunState
from everturn.storage.ports.rows import Run
from everturn.storage.sql.rows import run_of
from everturn.storage.sql.tables import Values, in_states, runs, sessions, version_tasks, workers
from everturn.storage.sql.transaction import Tx
from everturn.storage.sql.waitpoints import next_timeout_ms
from everturn.storage.sql.workers import runs_held

#: A worker stops a run at its `max_duration_s` by itself; past this much more it did not.
OVERDUE_GRACE_MS = 60_000

_WAITING = select(runs).where(
    in_states(RunState.SUSPENDED),
    literal_column("runs.wait_kind = 'run'"),
    runs.c.wait_ref == bindparam("ref_"),
)
_DUE = (
    select(runs)
    .where(
        in_states(RunState.SUSPENDED),
        runs.c.wait_until_ms.is_not(None),
        runs.c.wait_until_ms <= bindparam("now_"),
    )
    .order_by(runs.c.wait_until_ms, runs.c.seq)
    .limit(bindparam("limit_"))
)
_EXPIRED = (
    select(runs)
    .where(
        in_states(RunState.QUEUED),
        runs.c.expire_at_ms.is_not(None),
        runs.c.expire_at_ms <= bindparam("now_"),
        runs.c.attempt == 0,
    )
    .order_by(runs.c.expire_at_ms, runs.c.id)
    .limit(bindparam("limit_"))
)
_FIRST_WAIT = select(func.min(runs.c.wait_until_ms)).where(
    in_states(RunState.SUSPENDED), runs.c.wait_until_ms.is_not(None)
)
_FIRST_DELAYED = select(func.min(runs.c.not_before_ms)).where(
    in_states(RunState.QUEUED),
    runs.c.not_before_ms.is_not(None),
    runs.c.not_before_ms > bindparam("now_"),
)
#: Its state began long enough ago, or before the clock was set back.
_OLD = or_(
    runs.c.since_ms <= bindparam("before_"),
    runs.c.since_ms > bindparam("now_") + limits.CLOCK_AHEAD_MS,
)
_UNSTARTED = select(runs).where(in_states(RunState.CLAIMED), _OLD)
_NEXT_HOLDER = select(func.min(runs.c.worker_id)).where(
    in_states(*sorted(RESIDENT)),
    runs.c.worker_id.is_not(None),
    runs.c.worker_id > bindparam("last_"),
)
_REGISTERED = select(workers.c.id).where(
    workers.c.id == bindparam("id_"), workers.c.removed.is_(False)
)
_OVERDUE = select(runs).where(
    in_states(RunState.RUNNING),
    runs.c.max_duration_s.is_not(None),
    runs.c.since_ms + runs.c.max_duration_s * 1000 + OVERDUE_GRACE_MS < bindparam("now_"),
)

_SUPERSEDED = (
    select(runs)
    .join(sessions, sessions.c.id == runs.c.session_id)
    .where(
        sessions.c.current_run_id != runs.c.id,
        or_(
            in_states(RunState.QUEUED),
            and_(in_states(RunState.SUSPENDED), runs.c.wait_kind == "channel"),
        ),
    )
    .order_by(runs.c.seq)
    .limit(bindparam("limit_"))
)


def _served(*conditions: Any) -> Any:
    """Some live worker serves the run's task, under `conditions`."""
    return exists().where(
        workers.c.environment_id == runs.c.environment_id,
        workers.c.lease_until_ms > bindparam("now_"),
        workers.c.draining.is_(False),
        workers.c.removed.is_(False),
        version_tasks.c.environment_id == workers.c.environment_id,
        version_tasks.c.version == workers.c.version,
        version_tasks.c.task_id == runs.c.task_id,
        *conditions,
    )


_STRANDED = select(runs).where(
    in_states(RunState.QUEUED),
    runs.c.session_id.is_not(None),
    runs.c.version.is_not(None),
    _OLD,
    and_(_served(), ~_served(workers.c.version == runs.c.version)),
)


def _found(tx: Tx, statement: Select[Any], values: Values) -> Sequence[Run]:
    return tuple(run_of(row) for row in tx.rows(statement, values))


def waiting_on_run(tx: Tx, run_id: str) -> Sequence[Run]:
    return _found(tx, _WAITING, {"ref_": run_id})


def due_runs(tx: Tx, *, now_ms: int, limit: int) -> Sequence[Run]:
    return _found(tx, _DUE, {"now_": now_ms, "limit_": limit})


def expired_runs(tx: Tx, *, now_ms: int, limit: int) -> Sequence[Run]:
    return _found(tx, _EXPIRED, {"now_": now_ms, "limit_": limit})


def next_due_ms(tx: Tx, *, now_ms: int) -> int | None:
    delayed = tx.scalar(_FIRST_DELAYED, {"now_": now_ms})
    times = (tx.scalar(_FIRST_WAIT), delayed, next_timeout_ms(tx))
    return min((time for time in times if time is not None), default=None)


def unstarted_runs(tx: Tx, *, claimed_before_ms: int, now_ms: int) -> Sequence[Run]:
    return _found(tx, _UNSTARTED, {"before_": claimed_before_ms, "now_": now_ms})


def orphaned_runs(tx: Tx) -> Sequence[Run]:
    """Steps from worker to worker along the index, so parked runs of live ones are not read."""
    orphans: list[Run] = []
    holder = tx.scalar(_NEXT_HOLDER, {"last_": ""})
    while holder is not None:
        if tx.row(_REGISTERED, {"id_": holder}) is None:
            orphans += runs_held(tx, holder)
        holder = tx.scalar(_NEXT_HOLDER, {"last_": holder})
    return tuple(orphans)


def stranded_runs(tx: Tx, *, queued_before_ms: int, now_ms: int) -> Sequence[Run]:
    return _found(tx, _STRANDED, {"before_": queued_before_ms, "now_": now_ms})


def overdue_runs(tx: Tx, *, now_ms: int) -> Sequence[Run]:
    return _found(tx, _OVERDUE, {"now_": now_ms})


def superseded_runs(tx: Tx, *, limit: int) -> Sequence[Run]:
    return _found(tx, _SUPERSEDED, {"limit_": limit})
