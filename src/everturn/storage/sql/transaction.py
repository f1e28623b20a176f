"""One transaction, as the verbs see it, and the two ways databases run it.

A verb is a plain function `verb(tx, …)` over a SQLAlchemy Core connection: it takes what it needs,
decides, writes, and returns. It never commits. `Database.write` runs it whole, commits, and only
then answers; when it raises, nothing of it stays. A verb may be run again from the start when
the database asks for it (a deadlock, a serialisation failure), so it must not touch anything but
its transaction.

Locks are taken in one order: runs, then queues by name, then the environment, then sessions. (A
worker that registers takes its environment first; should it meet a claim in a ring, one of the
two is run again.) SQLite has one writer and ignores FOR UPDATE; PostgreSQL runs READ COMMITTED, where a
locking SELECT sees the row as the transaction before it left it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, Row, Table
from sqlalchemy.dialects import postgresql, sqlite

from everturn.errors import Unavailable
from everturn.ids import Ids
from everturn.storage.sql.tables import Values

P = ParamSpec("P")
R = TypeVar("R")

#: From this environment limit on, slots of the environment are not counted at all: counting
#: that many rows at each claim would cost more than the limit protects.
UNCOUNTED: Final = 1_000_000
#: How often one key may change hands while a verb looks for who holds it.
KEY_ROUNDS_MAX: Final = 8


class Settings(NamedTuple):
    """What verbs know beside their arguments."""

    ids: Ids
    environment_limit: int


class Tx(NamedTuple):
    """A transaction in progress."""

    connection: Connection
    settings: Settings

    def rows(self, statement: Executable, values: Values | None = None) -> list[Row[Any]]:
        return list(self.connection.execute(statement, values).fetchall())

    def row(self, statement: Executable, values: Values | None = None) -> Row[Any] | None:
        """The first row, None when there is none."""
        return self.connection.execute(statement, values).first()

    def scalar(self, statement: Executable, values: Values | None = None) -> Any:
        """The first column of the first row, None when there is none."""
        return self.connection.execute(statement, values).scalar()

    def change(self, statement: Executable, values: Values | list[Values] | None = None) -> int:
        """Run an INSERT, UPDATE or DELETE. Returns how many rows it touched."""
        result: CursorResult[Any] = self.connection.execute(statement, values)
        return result.rowcount

    def insert_new(self, table: Table, values: Values) -> bool:
        """Insert unless a unique column forbids it. False when it did.

        On PostgreSQL it waits for another transaction that is inserting the same: False then
        means that the other row is there to be read.
        """
        insert = _INSERT[self.connection.dialect.name](table)
        # Asked by RETURNING, because not every driver counts the rows of such an insert.
        made = insert.on_conflict_do_nothing().returning(*table.primary_key.columns)
        return self.row(made, values) is not None

    def insert_or_lock(
        self, table: Table, values: Values, holder: Executable, named: Values | None = None
    ) -> Row[Any] | None:
        """Insert a row, or answer the row that stands in its way, locked. None: inserted.

        Between the insert that was refused and the look at `holder`, which must lock, that row may
        have gone and another come. Neither may be written over: whoever made it was told that it
        is theirs. So it is all done again until one of the two is true.

        Raises Unavailable when it was not in KEY_ROUNDS_MAX rounds.
        """
        for _ in range(KEY_ROUNDS_MAX):
            if self.insert_new(table, values):
                return None
            held = self.row(holder, named)
            if held is not None:
                return held
        raise Unavailable(f"a key of {table.name} changed hands too often meanwhile")

    def upsert(self, table: Table, values: Values) -> None:
        """Insert, or replace the row of the same primary key."""
        insert = _INSERT[self.connection.dialect.name](table)
        keys = [column.name for column in table.primary_key.columns]
        changes = {name: insert.excluded[name] for name in values if name not in keys}
        self.change(insert.on_conflict_do_update(index_elements=keys, set_=changes), values)


_INSERT: Final[dict[str, Callable[[Table], Any]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class Database(Protocol):
    """Runs verbs. Any call may raise Unavailable; then the outcome of a write is unknown."""

    async def write(
        self, verb: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a verb as one transaction; return once it is durable."""
        ...

    async def read(
        self, verb: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a verb that changes nothing, on everything that was durable when it began."""
        ...

    async def close(self) -> None:
        """Finish what was accepted; later calls raise Unavailable."""
        ...
