"""Workers, the versions of code they serve, the tasks of those, and queue limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import and_, bindparam, delete, func, select, update

from everturn.rules.run_states import RESIDENT, RunState
from everturn.storage.ports.rows import Holding, Run, TaskVersion, Worker
from everturn.storage.ports.texts import check_texts
from everturn.storage.sql.rows import run_of, task_of, worker_of
from everturn.storage.sql.tables import (
    environments,
    in_states,
    queues,
    runs,
    tasks,
    version_tasks,
    versions,
    workers,
)
from everturn.storage.sql.transaction import Tx

#: A removed worker is remembered this long, so that one that comes back is known.
REMEMBERED_MS = 24 * 3600 * 1000

_WORKER = select(workers).where(workers.c.id == bindparam("id_"), workers.c.removed.is_(False))
_RENEW = (
    update(workers)
    .where(workers.c.id == bindparam("id_"), workers.c.removed.is_(False))
    .values(lease_until_ms=bindparam("until_"))
)
_IS_HELD = and_(runs.c.worker_id == bindparam("worker_"), in_states(*RESIDENT))
_HELD = select(runs).where(_IS_HELD).order_by(runs.c.seq)
_HOLDINGS = select(runs.c.id, runs.c.fence, runs.c.state).where(_IS_HELD)


def register_worker(
    tx: Tx,
    worker: Worker,
    declared: Sequence[TaskVersion],
    limits: Mapping[str, int | None],
    *,
    now_ms: int,
) -> None:
    check_texts(queues=limits)
    environment, version = worker.environment_id, worker.version
    # Ranks are given one after another: two workers that register at once wait here.
    tx.row(select(environments.c.id).where(environments.c.id == environment).with_for_update())
    known = tx.row(select(workers.c.id).where(workers.c.id == worker.id)) is not None
    tx.upsert(workers, {**msgspec.structs.asdict(worker), "removed": False})
    of_environment = versions.c.environment_id == environment
    ranked = tx.row(select(versions.c.rank).where(of_environment, versions.c.version == version))
    _set_tasks_of_version(tx, environment, version, declared)
    if known and ranked is not None:
        return
    newest = tx.scalar(select(func.max(versions.c.rank)).where(of_environment)) or 0
    tx.upsert(versions, {"environment_id": environment, "version": version, "rank": newest + 1})
    for task in declared:
        tx.upsert(
            tasks,
            {
                "environment_id": environment,
                "task_id": task.task_id,
                "kind": task.kind,
                "queue": task.queue,
                "queue_limit": task.queue_limit,
                "config": msgspec.json.encode(task.config),
            },
        )
    _set_limits(tx, environment, declared, limits)
    _forget_old(tx, environment, now_ms=now_ms)


def _set_tasks_of_version(
    tx: Tx, environment: str, version: str, declared: Sequence[TaskVersion]
) -> None:
    row = {"environment_id": environment, "version": version}
    tx.change(delete(version_tasks).filter_by(**row))
    for task_id in sorted({task.task_id for task in declared}):
        tx.insert_new(version_tasks, {**row, "task_id": task_id})


def _set_limits(
    tx: Tx, environment: str, declared: Sequence[TaskVersion], limits: Mapping[str, int | None]
) -> None:
    """Declared queues win over what a task says of its queue.

    A task's own queue follows the task, so a limit removed from the code is removed here; a
    named queue is shared with others, and a task that says nothing of it changes nothing.
    """
    wanted = {
        task.queue or f"task/{task.task_id}": task.queue_limit
        for task in declared
        if task.queue_limit is not None or not task.queue
    }
    for name, limit in sorted({**wanted, **limits}.items()):
        tx.upsert(queues, {"environment_id": environment, "name": name, "concurrency_limit": limit})


def _forget_old(tx: Tx, environment: str, *, now_ms: int) -> None:
    """Workers that left long ago, and versions nobody runs: a version per reload would add up."""
    tx.change(
        delete(workers).where(
            workers.c.environment_id == environment,
            workers.c.removed.is_(True),
            workers.c.lease_until_ms < now_ms - REMEMBERED_MS,
        )
    )
    served = select(workers.c.version).where(workers.c.environment_id == environment)
    for table in (versions, version_tasks):
        tx.change(
            delete(table).where(
                table.c.environment_id == environment, table.c.version.not_in(served)
            )
        )


def renew_worker(tx: Tx, worker_id: str, *, lease_until_ms: int) -> bool:
    return tx.change(_RENEW, {"id_": worker_id, "until_": lease_until_ms}) > 0


def set_draining(tx: Tx, worker_id: str) -> None:
    tx.change(update(workers).where(workers.c.id == worker_id).values(draining=True))


def remove_worker(tx: Tx, worker_id: str) -> Sequence[Run]:
    tx.change(update(workers).where(workers.c.id == worker_id).values(removed=True))
    return runs_held(tx, worker_id)


def runs_held(tx: Tx, worker_id: str) -> Sequence[Run]:
    """Runs in RESIDENT states that name the worker, registered or not."""
    return tuple(run_of(row) for row in tx.rows(_HELD, {"worker_": worker_id}))


def holdings(tx: Tx, worker_id: str) -> Sequence[Holding]:
    return tuple(
        Holding(run_id=row.id, fence=row.fence, state=RunState(row.state))
        for row in tx.rows(_HOLDINGS, {"worker_": worker_id})
    )


def worker(tx: Tx, worker_id: str) -> Worker | None:
    row = tx.row(_WORKER, {"id_": worker_id})
    return None if row is None else worker_of(row)


def expired_workers(tx: Tx, *, now_ms: int) -> Sequence[Worker]:
    expired = select(workers).where(
        workers.c.lease_until_ms <= now_ms, workers.c.removed.is_(False)
    )
    return tuple(worker_of(row) for row in tx.rows(expired))


def live_workers(tx: Tx, environment_id: str, *, now_ms: int) -> Sequence[Worker]:
    live = select(workers).where(
        workers.c.environment_id == environment_id,
        workers.c.lease_until_ms > now_ms,
        workers.c.removed.is_(False),
    )
    return tuple(worker_of(row) for row in tx.rows(live))


def task(tx: Tx, environment_id: str, task_id: str) -> TaskVersion | None:
    row = tx.row(select(tasks).filter_by(environment_id=environment_id, task_id=task_id))
    return None if row is None else task_of(row)


def all_tasks(tx: Tx, environment_id: str) -> Sequence[TaskVersion]:
    # Sorted here: the two databases put letters of different case in different orders.
    found = [
        task_of(row) for row in tx.rows(select(tasks).filter_by(environment_id=environment_id))
    ]
    return tuple(sorted(found, key=lambda declared: declared.task_id))
