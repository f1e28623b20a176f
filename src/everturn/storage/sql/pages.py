"""Pages of a list, newest first, with the id of a boundary row for a cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Table, select, tuple_

from everturn.errors import InvalidRequest
from everturn.storage.ports.rows import Page, Run, Session
from everturn.storage.ports.texts import check_texts
from everturn.storage.ports.waitpoints import Waitpoint
from everturn.storage.sql.transaction import Tx

Item = TypeVar("Item", Session, Run, Waitpoint)


def page_of(
    tx: Tx,
    table: Table,
    convert: Callable[[Row[Any]], Item],
    environment_id: str,
    where: Sequence[ColumnElement[bool]],
    *,
    limit: int,
    after: str | None,
    before: str | None,
) -> Page[Item]:
    """One page of the rows of an environment that match `where`.

    Raises InvalidRequest for a cursor that names no row of this environment, or for two cursors.
    """
    check_texts(after=after, before=before)
    if after is not None and before is not None:
        raise InvalidRequest("a page is named by one cursor, after or before, not by both")
    place = tuple_(table.c.created_at_ms, table.c.seq)
    found = select(table).where(table.c.environment_id == environment_id, *where)
    # One row more than asked for tells whether the list goes on.
    newest_first = found.order_by(table.c.created_at_ms.desc(), table.c.seq.desc()).limit(limit + 1)
    if before is not None:
        oldest_first = found.order_by(table.c.created_at_ms, table.c.seq).limit(limit + 1)
        boundary = _place_of(tx, table, environment_id, before)
        rows = tx.rows(oldest_first.where(place > boundary))
        items = tuple(convert(row) for row in reversed(rows[:limit]))
        return Page(
            items=items,
            next=items[-1].id if items else None,
            previous=items[0].id if len(rows) > limit else None,
        )
    if after is not None:
        boundary = _place_of(tx, table, environment_id, after)
        newest_first = newest_first.where(place < boundary)
    rows = tx.rows(newest_first)
    items = tuple(convert(row) for row in rows[:limit])
    return Page(
        items=items,
        next=items[-1].id if len(rows) > limit else None,
        previous=items[0].id if after is not None and items else None,
    )


def _place_of(tx: Tx, table: Table, environment_id: str, cursor: str) -> Any:
    row = tx.row(
        select(table.c.created_at_ms, table.c.seq).where(
            table.c.id == cursor, table.c.environment_id == environment_id
        )
    )
    if row is None:
        raise InvalidRequest(f"the cursor {cursor!r} names nothing here")
    return tuple_(row.created_at_ms, row.seq)
