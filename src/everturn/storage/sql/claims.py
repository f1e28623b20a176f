"""Handing runs to workers.

A claim locks the runs it looks at and skips those another claimer has locked, so claimers never
wait for each other over a run; over a slot of a limited queue they do (slots.py). Runs of queues
that are full are left out by the query, so that a full queue with many waiting runs cannot hide
the runs of the others behind it.

Which versions a worker may serve is decided inside the statement, from the rows of this moment:
pinned runs go to their version, others to the newest version of live workers that has the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from everturn.rules.run_states import SLOTTED, RunEvent, RunState, next_state
from everturn.storage.ports.rows import Run, Worker
from everturn.storage.sql.rows import run_of
from everturn.storage.sql.runs import save
from everturn.storage.sql.slots import Slots
from everturn.storage.sql.tables import (
    Values,
    in_states,
    queues,
    runs,
    sessions,
    version_tasks,
    versions,
    workers,
)
from everturn.storage.sql.transaction import Tx
from everturn.storage.sql.workers import worker as find_worker


def _served() -> ColumnElement[bool]:
    """Runs of tasks that the worker's version has."""
    tasks_of_version = select(version_tasks.c.task_id).where(
        version_tasks.c.environment_id == bindparam("environment_"),
        version_tasks.c.version == bindparam("version_"),
    )
    return runs.c.task_id.in_(tasks_of_version)


def _of_version() -> ColumnElement[bool]:
    """Runs pinned to the worker's version, or unpinned ones that no newer live version has."""
    mine = versions.alias("mine")
    rank = (
        select(mine.c.rank)
        .where(
            mine.c.environment_id == bindparam("environment_"),
            mine.c.version == bindparam("version_"),
        )
        .scalar_subquery()
    )
    served_now = exists().where(
        workers.c.environment_id == versions.c.environment_id,
        workers.c.version == versions.c.version,
        workers.c.lease_until_ms > bindparam("now_"),
        workers.c.draining.is_(False),
        workers.c.removed.is_(False),
    )
    newer = (
        select(version_tasks.c.task_id)
        .join(
            versions,
            and_(
                versions.c.environment_id == version_tasks.c.environment_id,
                versions.c.version == version_tasks.c.version,
            ),
        )
        .where(
            version_tasks.c.environment_id == bindparam("environment_"),
            versions.c.rank > rank,
            served_now,
        )
    )
    return or_(
        runs.c.version == bindparam("version_"),
        and_(runs.c.version.is_(None), runs.c.task_id.not_in(newer)),
    )


def _of_current_run() -> ColumnElement[bool]:
    """Runs without a session, or the current run of theirs."""
    current = exists().where(
        sessions.c.id == runs.c.session_id, sessions.c.current_run_id == runs.c.id
    )
    return or_(runs.c.session_id.is_(None), current)


def _has_room() -> ColumnElement[bool]:
    """Runs of queues that are not full as this statement sees them; locked and counted later."""
    holders = runs.alias("holders")
    slotted: ColumnElement[bool] = literal_column(
        "holders.state IN ('" + "', '".join(state.value for state in sorted(SLOTTED)) + "')"
    )
    full = (
        select(holders.c.queue, holders.c.concurrency_key)
        .join(
            queues,
            and_(
                queues.c.environment_id == holders.c.environment_id,
                queues.c.name == holders.c.queue,
            ),
        )
        .where(
            holders.c.environment_id == bindparam("environment_"),
            slotted,
            queues.c.concurrency_limit.is_not(None),
        )
        .group_by(holders.c.queue, holders.c.concurrency_key, queues.c.concurrency_limit)
        .having(func.count() >= queues.c.concurrency_limit)
    )
    paused = select(queues.c.name).where(
        queues.c.environment_id == bindparam("environment_"), queues.c.concurrency_limit <= 0
    )
    return and_(
        tuple_(runs.c.queue, runs.c.concurrency_key).not_in(full), runs.c.queue.not_in(paused)
    )


def _in_order(statement: Select[tuple[object, ...]]) -> Select[tuple[object, ...]]:
    return (
        statement.order_by(runs.c.place_ms, runs.c.created_at_ms, runs.c.seq)
        .limit(bindparam("limit_"))
        .with_for_update(of=runs, skip_locked=True)
    )


_RESUMING = select(runs).where(
    runs.c.worker_id == bindparam("worker_"), in_states(RunState.RESUMING)
)
_QUEUED = select(runs).where(
    runs.c.environment_id == bindparam("environment_"),
    in_states(RunState.QUEUED),
    or_(runs.c.not_before_ms.is_(None), runs.c.not_before_ms <= bindparam("now_")),
    _served(),
    _of_version(),
    _of_current_run(),
)
#: By whether the environment has limited queues at all: most have none, and need not ask.
_RESUMABLE = {False: _in_order(_RESUMING), True: _in_order(_RESUMING.where(_has_room()))}
_CLAIMABLE = {False: _in_order(_QUEUED), True: _in_order(_QUEUED.where(_has_room()))}

_NEXT_FENCE = (
    update(sessions)
    .where(sessions.c.id == bindparam("id_"), sessions.c.current_run_id == bindparam("run_"))
    .values(fence=sessions.c.fence + 1)
    .returning(sessions.c.fence)
)


def claim_runs(tx: Tx, worker_id: str, *, limit: int, now_ms: int) -> Sequence[Run]:
    worker = find_worker(tx, worker_id)
    if worker is None or limit <= 0:
        return ()
    slots = Slots(tx, worker.environment_id)
    values: Values = {
        "worker_": worker.id,
        "environment_": worker.environment_id,
        "version_": worker.version,
        "now_": now_ms,
    }

    def resume(run: Run) -> Run | None:
        state = next_state(run.state, RunEvent.RESUME)
        return save(tx, run, now_ms=now_ms, state=state)

    def claim(run: Run) -> Run | None:
        return _claim(tx, run, worker, now_ms=now_ms)

    given = _hand_out(tx, _RESUMABLE, values, slots, resume, limit)
    if not worker.draining and worker.lease_until_ms > now_ms:
        given += _hand_out(tx, _CLAIMABLE, values, slots, claim, limit - len(given))
    return tuple(given)


def _hand_out(
    tx: Tx,
    statements: dict[bool, Select[tuple[object, ...]]],
    values: Values,
    slots: Slots,
    give: Callable[[Run], Run | None],
    limit: int,
) -> list[Run]:
    """Give out runs in their order while there are slots for them.

    When queues fill up half-way, the query is asked again, now without them. It ends when nothing
    was given: each round but the last gives at least one.
    """
    given: list[Run] = []
    while len(given) < limit:
        wanted = {**values, "limit_": limit - len(given)}
        found = [run_of(row) for row in tx.rows(statements[bool(slots.limits)], wanted)]
        slots.lock(run.queue for run in found)
        with_slot = [run for run in found if slots.take(run.queue, run.concurrency_key)]
        now = [run for run in map(give, with_slot) if run is not None]
        given += now
        if not now or len(found) == len(with_slot):
            break
    return given


def _claim(tx: Tx, run: Run, worker: Worker, *, now_ms: int) -> Run | None:
    """None when its session got another current run since the query."""
    fence = run.fence + 1
    if run.session_id is not None:
        fence = tx.scalar(_NEXT_FENCE, {"id_": run.session_id, "run_": run.id})
        if fence is None:
            return None
    return save(
        tx,
        run,
        now_ms=now_ms,
        state=next_state(run.state, RunEvent.CLAIM),
        fence=fence,
        attempt=run.attempt + 1,
        version=worker.version,
        worker_id=worker.id,
        started_at_ms=now_ms if run.started_at_ms is None else run.started_at_ms,
    )
