"""Wait tokens: made once per key, completed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, bindparam, func, literal_column, or_, select, update

from everturn.rules.run_states import RunState
from everturn.storage.ports.rows import Page, Run
from everturn.storage.ports.waitpoints import (
    NewWaitpoint,
    Waitpoint,
    WaitpointFilter,
    pending_waitpoint,
)
from everturn.storage.sql.keyed import insert_keyed
from everturn.storage.sql.pages import page_of
from everturn.storage.sql.rows import packed, run_of, unpacked_tags
from everturn.storage.sql.tables import in_states, runs, waitpoint_tags
from everturn.storage.sql.tables import waitpoints as table
from everturn.storage.sql.transaction import Tx

_BY_ID = select(table).where(table.c.id == bindparam("id_"))
_BY_ID_LOCKED = _BY_ID.with_for_update()
#: Literal, so that the partial index of tokens that can time out applies.
_OPEN: ColumnElement[bool] = literal_column("waitpoints.completed_at_ms IS NULL")
_DUE = (
    select(table)
    .where(_OPEN, table.c.timeout_at_ms.is_not(None), table.c.timeout_at_ms <= bindparam("now_"))
    .order_by(table.c.timeout_at_ms, table.c.seq)
    .limit(bindparam("limit_"))
)
_FIRST_DUE = select(func.min(table.c.timeout_at_ms)).where(
    _OPEN, table.c.timeout_at_ms.is_not(None)
)
_WAITING = select(runs).where(
    in_states(RunState.SUSPENDED),
    literal_column("runs.wait_kind = 'token'"),
    runs.c.wait_ref == bindparam("ref_"),
)


def waitpoint_of(row: Row[Any]) -> Waitpoint:
    values = row._asdict()
    for hidden in ("seq", "active_key"):
        del values[hidden]
    values["tags"] = unpacked_tags(values["tags"])
    return Waitpoint(**values)


def create_waitpoint(
    tx: Tx, environment_id: str, new: NewWaitpoint, *, now_ms: int
) -> tuple[Waitpoint, bool]:
    made = pending_waitpoint(environment_id, new, now_ms=now_ms)
    values = msgspec.structs.asdict(made) | {
        "tags": packed(made.tags),
        "active_key": new.active_key,
    }
    holder = insert_keyed(tx, table, values, now_ms=now_ms)
    if holder is not None:
        return waitpoint_of(holder), False
    for tag in dict.fromkeys(new.tags):
        tx.insert_new(waitpoint_tags, {"tag": tag, "waitpoint_id": new.id})
    return made, True


def waitpoint(tx: Tx, environment_id: str | None, waitpoint_id: str) -> Waitpoint | None:
    row = tx.row(_BY_ID, {"id_": waitpoint_id})
    if row is None or environment_id not in (None, row.environment_id):
        return None
    return waitpoint_of(row)


def list_waitpoints(
    tx: Tx,
    environment_id: str,
    where: WaitpointFilter,
    *,
    limit: int,
    after: str | None,
    before: str | None,
) -> Page[Waitpoint]:
    return page_of(
        tx,
        table,
        waitpoint_of,
        environment_id,
        _conditions(where),
        limit=limit,
        after=after,
        before=before,
    )


def _conditions(where: WaitpointFilter) -> list[ColumnElement[bool]]:
    row = table.c
    statuses = {
        "WAITING": row.completed_at_ms.is_(None),
        "COMPLETED": row.completed_at_ms.is_not(None) & row.timed_out.is_(False),
        "TIMED_OUT": row.completed_at_ms.is_not(None) & row.timed_out.is_(True),
    }
    conditions: list[ColumnElement[bool]] = []
    if where.statuses:
        conditions.append(or_(*(statuses[status] for status in where.statuses)))
    if where.tags:
        tagged = select(waitpoint_tags.c.waitpoint_id).where(waitpoint_tags.c.tag.in_(where.tags))
        conditions.append(row.id.in_(tagged))
    if where.idempotency_key is not None:
        conditions.append(row.idempotency_key == where.idempotency_key)
    if where.created_from_ms is not None:
        conditions.append(row.created_at_ms >= where.created_from_ms)
    if where.created_to_ms is not None:
        conditions.append(row.created_at_ms <= where.created_to_ms)
    return conditions


def complete_waitpoint(
    tx: Tx,
    environment_id: str,
    waitpoint_id: str,
    *,
    now_ms: int,
    output: bytes | None,
    output_type: str | None,
    timed_out: bool,
) -> tuple[Waitpoint, bool] | None:
    row = tx.row(_BY_ID_LOCKED, {"id_": waitpoint_id})
    if row is None or row.environment_id != environment_id:
        return None
    found = waitpoint_of(row)
    if found.completed_at_ms is not None:
        return found, False
    changes = {
        "completed_at_ms": now_ms,
        "output": output,
        "output_type": output_type,
        "timed_out": timed_out,
    }
    tx.change(update(table).where(table.c.id == bindparam("id_")), {"id_": waitpoint_id, **changes})
    return msgspec.structs.replace(found, **changes), True


def due_waitpoints(tx: Tx, *, now_ms: int, limit: int) -> Sequence[Waitpoint]:
    return tuple(waitpoint_of(row) for row in tx.rows(_DUE, {"now_": now_ms, "limit_": limit}))


def next_timeout_ms(tx: Tx) -> int | None:
    """The earliest timeout of a token that is not completed."""
    found: int | None = tx.scalar(_FIRST_DUE)
    return found


def waiting_on_token(tx: Tx, waitpoint_id: str) -> Sequence[Run]:
    return tuple(run_of(row) for row in tx.rows(_WAITING, {"ref_": waitpoint_id}))
