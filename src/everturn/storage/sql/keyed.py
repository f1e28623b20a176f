"""Rows that a key finds again for a while: wait tokens and batches.

Such a table has `active_key`, unique in its environment, and `idempotency_expires_ms`. A row whose
time is over loses its `active_key` to the next one; what it was made with stays on it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Table, select, update

from everturn.errors import Unavailable
from everturn.storage.sql.tables import Values
from everturn.storage.sql.transaction import KEY_ROUNDS_MAX, Tx


def insert_keyed(tx: Tx, table: Table, values: Values, *, now_ms: int) -> Row[Any] | None:
    """Insert a row, or answer the row that holds its key. None: inserted.

    The unique column decides between two that race: the loser waits for the winner's commit.
    """
    same_key = (table.c.environment_id == values["environment_id"]) & (
        table.c.active_key == values["active_key"]
    )
    holder = select(table).where(same_key).with_for_update()
    for _ in range(KEY_ROUNDS_MAX):
        held = tx.insert_or_lock(table, values, holder)
        if held is None:
            return None
        if held.idempotency_expires_ms is None or held.idempotency_expires_ms > now_ms:
            return held
        tx.change(update(table).where(table.c.id == held.id).values(active_key=None))
    raise Unavailable(f"a key of {table.name} changed hands too often meanwhile")
