"""Lists of runs, and what a run collects on its way: metadata, tags and its journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, LargeBinary, and_, bindparam, literal, null, or_, select

from everturn.errors import Unprocessable
from everturn.rules import limits
from everturn.rules.run_states import FINAL, RunState
from everturn.storage.ports.rows import Page, Run, RunFilter, check_streams
from everturn.storage.ports.texts import check_texts
from everturn.storage.sql.pages import page_of
from everturn.storage.sql.rows import run_of
from everturn.storage.sql.runs import lock_run, save, set_tags
from everturn.storage.sql.tables import in_states, run_tags, runs
from everturn.storage.sql.tables import journal as journal_table
from everturn.storage.sql.transaction import Tx

#: What a run carries, and what stands there when it is not read.
_CARRIED = {
    "payload": literal(b"", LargeBinary),
    "boot_input": null(),
    "output": null(),
}
_CHILDREN = (
    select(*(_CARRIED[c.name].label(c.name) if c.name in _CARRIED else c for c in runs.c))
    .where(runs.c.parent_run_id == bindparam("parent_"))
    .order_by(runs.c.seq)
    .limit(bindparam("limit_"))
)
_CHILDREN_ALIVE = _CHILDREN.where(in_states(*(state for state in RunState if state not in FINAL)))
_JOURNAL = (
    select(journal_table.c.position, journal_table.c.key, journal_table.c.result)
    .where(journal_table.c.run_id == bindparam("run_"))
    .order_by(journal_table.c.position)
)


def list_runs(
    tx: Tx,
    environment_id: str,
    where: RunFilter,
    *,
    limit: int,
    after: str | None,
    before: str | None,
) -> Page[Run]:
    return page_of(
        tx,
        runs,
        run_of,
        environment_id,
        _conditions(where),
        limit=limit,
        after=after,
        before=before,
    )


def _conditions(where: RunFilter) -> list[ColumnElement[bool]]:
    row = runs.c
    conditions: list[ColumnElement[bool]] = []
    if where.states:
        conditions.append(in_states(*sorted(set(where.states))))
    if where.delayed is not None:
        ahead = and_(row.attempt == 0, row.not_before_ms > where.delayed_at_ms)
        # Written without NOT: a run without a delay has none that is past.
        here = or_(
            row.attempt > 0, row.not_before_ms.is_(None), row.not_before_ms <= where.delayed_at_ms
        )
        conditions.append(or_(row.state != RunState.QUEUED.value, ahead if where.delayed else here))
    if where.task_ids:
        conditions.append(row.task_id.in_(where.task_ids))
    if where.tags:
        tagged = select(run_tags.c.run_id).where(run_tags.c.tag.in_(where.tags))
        conditions.append(row.id.in_(tagged))
    if where.versions:
        conditions.append(row.version.in_(where.versions))
    if where.queues:
        conditions.append(row.queue.in_(where.queues))
    if where.machines:
        conditions.append(row.machine.in_(where.machines))
    if where.batch_id is not None:
        conditions.append(row.batch_id == where.batch_id)
    if where.session_id is not None:
        conditions.append(row.session_id == where.session_id)
    if where.is_test is not None:
        conditions.append(row.is_test.is_(where.is_test))
    if where.created_from_ms is not None:
        conditions.append(row.created_at_ms >= where.created_from_ms)
    if where.created_to_ms is not None:
        conditions.append(row.created_at_ms <= where.created_to_ms)
    return conditions


def children(tx: Tx, run_id: str, *, limit: int, alive: bool) -> Sequence[Run]:
    found = _CHILDREN_ALIVE if alive else _CHILDREN
    rows = tx.rows(found, {"parent_": run_id, "limit_": limit})
    return tuple(run_of(row) for row in rows)


def set_metadata(
    tx: Tx,
    environment_id: str,
    run_id: str,
    change: Callable[[bytes | None], bytes],
    *,
    now_ms: int,
) -> Run | None:
    run = lock_run(tx, run_id)
    if run is None or run.environment_id != environment_id:
        return None
    return save(tx, run, now_ms=now_ms, metadata=change(run.metadata))


def add_tags(
    tx: Tx, environment_id: str, run_id: str, tags: Sequence[str], *, now_ms: int
) -> Run | None:
    check_texts(tags=tags)
    run = lock_run(tx, run_id)
    if run is None or run.environment_id != environment_id:
        return None
    union = tuple(dict.fromkeys((*run.tags, *tags)))
    if len(union) > limits.RUN_TAGS_MAX:
        raise Unprocessable(
            f"a run has at most {limits.RUN_TAGS_MAX} tags, these would be {len(union)}",
            tags=len(union),
            tags_max=limits.RUN_TAGS_MAX,
        )
    set_tags(tx, run.id, tags)
    return save(tx, run, now_ms=now_ms, tags=union)


def note_stream(
    tx: Tx, environment_id: str, run_id: str, stream: str, *, now_ms: int
) -> Run | None:
    check_texts(stream=stream)
    run = lock_run(tx, run_id)
    if run is None or run.environment_id != environment_id:
        return None
    if stream in run.streams:
        return run
    check_streams(run)
    return save(tx, run, now_ms=now_ms, streams=(*run.streams, stream))


def journal(tx: Tx, run_id: str) -> Sequence[tuple[int, str, bytes]]:
    return tuple((row.position, row.key, row.result) for row in tx.rows(_JOURNAL, {"run_": run_id}))


def journal_put(tx: Tx, run_id: str, position: int, key: str, result: bytes, *, fence: int) -> bool:
    check_texts(key=key)
    run = lock_run(tx, run_id)
    if run is None or run.fence != fence or run.state in FINAL:
        return False
    step = {"run_id": run_id, "position": position, "key": key, "result": result}
    tx.insert_new(journal_table, step)
    return True
