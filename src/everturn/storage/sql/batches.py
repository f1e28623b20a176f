"""Batches: made once per key, filled item by item, sealed by the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, bindparam, func, select, update

from everturn.storage.ports.batches import Batch, NewBatch, open_batch
from everturn.storage.ports.rows import Run
from everturn.storage.sql.keyed import insert_keyed
from everturn.storage.sql.rows import run_of
from everturn.storage.sql.tables import batch_items as items
from everturn.storage.sql.tables import batches as table
from everturn.storage.sql.tables import runs
from everturn.storage.sql.transaction import Tx

_BY_ID = select(table).where(
    table.c.id == bindparam("id_"), table.c.environment_id == bindparam("environment_")
)
_BY_ID_LOCKED = _BY_ID.with_for_update()
_UPDATE = update(table).where(table.c.id == bindparam("id_"))
_COUNT = select(func.count()).select_from(items).where(items.c.batch_id == bindparam("batch_"))
_ITEMS = (
    select(items.c.position, items.c.run_id)
    .where(items.c.batch_id == bindparam("batch_"))
    .order_by(items.c.position)
)
_RUNS = (
    select(runs)
    .join(items, items.c.run_id == runs.c.id)
    .where(
        items.c.batch_id == bindparam("batch_"), runs.c.environment_id == bindparam("environment_")
    )
    .order_by(items.c.position)
)


def batch_of(row: Row[Any]) -> Batch:
    values = row._asdict()
    for hidden in ("seq", "active_key"):
        del values[hidden]
    return Batch(**values)


def create_batch(tx: Tx, environment_id: str, new: NewBatch, *, now_ms: int) -> tuple[Batch, bool]:
    made = open_batch(environment_id, new, now_ms=now_ms)
    values = msgspec.structs.asdict(made) | {"active_key": new.active_key}
    holder = insert_keyed(tx, table, values, now_ms=now_ms)
    return (made, True) if holder is None else (batch_of(holder), False)


def batch(tx: Tx, environment_id: str, batch_id: str) -> Batch | None:
    row = tx.row(_BY_ID, {"id_": batch_id, "environment_": environment_id})
    return None if row is None else batch_of(row)


def add_batch_item(
    tx: Tx, environment_id: str, batch_id: str, index: int, run_id: str, *, now_ms: int
) -> bool:
    # Locked, so that of two last items one sees the other and seals.
    row = tx.row(_BY_ID_LOCKED, {"id_": batch_id, "environment_": environment_id})
    if row is None:
        return False
    if not tx.insert_new(items, {"batch_id": batch_id, "position": index, "run_id": run_id}):
        return False
    changes = {"updated_at_ms": now_ms}
    if tx.scalar(_COUNT, {"batch_": batch_id}) == row.run_count:
        changes["sealed_at_ms"] = now_ms
    tx.change(_UPDATE, {"id_": batch_id, **changes})
    return True


def batch_items(tx: Tx, batch_id: str) -> Sequence[tuple[int, str]]:
    return tuple((row.position, row.run_id) for row in tx.rows(_ITEMS, {"batch_": batch_id}))


def batch_runs(tx: Tx, environment_id: str, batch_id: str) -> Sequence[Run]:
    found = tx.rows(_RUNS, {"batch_": batch_id, "environment_": environment_id})
    return tuple(run_of(row) for row in found)
