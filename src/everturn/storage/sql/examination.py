"""A read-only look at a state database: does it fit together, and what does it know?

SQLite is opened so that it cannot be written; on PostgreSQL the transaction is read-only. Either
way one transaction sees one moment, so a server may go on beside it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, and_, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from everturn.errors import Unavailable
from everturn.protocol.records import ChannelName
from everturn.storage.ports.examination import NAMED_MAX, Committed, StateFindings
from everturn.storage.sql.rows import key_of, worker_of
from everturn.storage.sql.schema import file_of, parsed_url, state_of
from everturn.storage.sql.tables import api_keys, runs, sessions, workers

_BUSY_S: Final = 5.0


def examine(url: str, *, now_ms: int) -> StateFindings:
    """Look at the state that `url` names.

    Raises Unavailable when it cannot be reached or read at all.
    """
    parsed = parsed_url(url)
    if parsed.drivername == "sqlite":
        path = file_of(parsed)
        if not path.exists():
            return StateFindings(schema="empty")
        engine = create_engine("sqlite://", creator=lambda: _open(path), poolclass=NullPool)
    else:
        engine = create_engine(parsed, poolclass=NullPool)
    with _reading(engine) as connection:
        schema = state_of(connection)
        if schema != "current":
            return StateFindings(schema=schema)
        return _examine(connection, now_ms)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                )
            yield connection
    except DBAPIError as error:
        raise Unavailable(f"the state database failed: {error.orig}") from error
    finally:
        engine.dispose()


def _examine(connection: Connection, now_ms: int) -> StateFindings:
    lost_runs = (
        select(func.count())
        .select_from(sessions.outerjoin(runs, runs.c.id == sessions.c.current_run_id))
        .where(and_(sessions.c.current_run_id.is_not(None), runs.c.id.is_(None)))
    )
    lost_sessions = (
        select(func.count())
        .select_from(runs.outerjoin(sessions, sessions.c.id == runs.c.session_id))
        .where(and_(runs.c.session_id.is_not(None), sessions.c.id.is_(None)))
    )
    unchecked = (
        select(func.count()).select_from(sessions).where(sessions.c.unchecked_run_id.is_not(None))
    )
    newest = select(func.max(runs.c.updated_at_ms))
    alive = select(workers).where(
        and_(workers.c.lease_until_ms > now_ms, workers.c.removed.is_(False))
    )
    owners, committed = _sessions(connection)
    return StateFindings(
        schema="current",
        damage=_damage(connection),
        sessions=len(owners),
        lost_runs=connection.execute(lost_runs).scalar_one(),
        lost_sessions=connection.execute(lost_sessions).scalar_one(),
        unchecked=connection.execute(unchecked).scalar_one(),
        newest_ms=connection.execute(newest).scalar() or 0,
        keys=tuple(key_of(row) for row in connection.execute(select(api_keys))),
        workers=tuple(worker_of(row) for row in connection.execute(alive)),
        committed=tuple(committed),
        owners=owners,
    )


def _sessions(connection: Connection) -> tuple[frozenset[tuple[str, str]], list[Committed]]:
    owners: set[tuple[str, str]] = set()
    committed: list[Committed] = []
    table = sessions.c
    columns = select(table.environment_id, table.external_id, table.id, table.cursor_seq)
    for environment, external_id, session_id, cursor in connection.execute(columns):
        key = session_id if external_id is None else external_id
        owners.add((environment, key))
        if cursor is not None:
            committed.append(Committed(ChannelName(environment, key, "in"), cursor))
    return frozenset(owners), committed


def _damage(connection: Connection) -> tuple[str, ...]:
    """What SQLite finds wrong with its own pages. PostgreSQL looks after its pages itself."""
    if connection.dialect.name != "sqlite":
        return ()
    lines = connection.execute(text(f"PRAGMA quick_check({NAMED_MAX})")).scalars()
    return tuple(line for line in lines if line != "ok")
