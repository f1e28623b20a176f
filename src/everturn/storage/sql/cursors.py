"""What of a session's `in` is decided: the committed cursor, and what raw tasks consumed."""

from __future__ import annotations

from sqlalchemy import bindparam, select, update

from everturn.protocol.records import InputCursor
from everturn.storage.sql.rows import cursor_of, cursor_values
from everturn.storage.sql.tables import consumed as consumed_table
from everturn.storage.sql.tables import sessions
from everturn.storage.sql.transaction import Tx

_LOCKED = (
    select(sessions.c.cursor_seq, sessions.c.cursor_decided)
    .where(sessions.c.id == bindparam("id_"))
    .with_for_update()
)
_UPDATE = update(sessions).where(sessions.c.id == bindparam("id_"))
_CONSUMED = select(consumed_table.c.seq_num).where(
    consumed_table.c.session_id == bindparam("session_"),
    consumed_table.c.task_id == bindparam("task_"),
)


def set_cursor(tx: Tx, session_id: str, cursor: InputCursor, *, task_id: str | None) -> None:
    if task_id is None:
        advance_cursor(tx, session_id, cursor)
        return
    values = {"session_id": session_id, "task_id": task_id, "seq_num": cursor.seq_num}
    tx.upsert(consumed_table, values)


def advance_cursor(tx: Tx, session_id: str, cursor: InputCursor) -> None:
    """Keep a committed cursor if it is newer than what the row has."""
    row = tx.row(_LOCKED, {"id_": session_id})
    if row is None:
        return
    known = cursor_of(row.cursor_seq, row.cursor_decided)
    newest = known.newest(cursor)
    if newest != known:
        tx.change(_UPDATE, {"id_": session_id, **cursor_values(newest)})


def consumed(tx: Tx, session_id: str, task_id: str) -> int | None:
    seq_num: int | None = tx.scalar(_CONSUMED, {"session_": session_id, "task_": task_id})
    return seq_num
