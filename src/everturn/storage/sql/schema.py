"""Is the schema there, and is it the newest? Answered in one query, without Alembic.

Alembic takes longer to import than the rest of a server start, and is needed once per release.
So the version is read from its table directly; an empty database gets its tables from
`tables.py` as they are now, marked with the newest version; only a database that is behind is
handed to Alembic. A test holds the two roads together: migrating from nothing and creating from
`tables.py` must give the same schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import Connection, Engine, create_engine, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from everturn.errors import ConfigurationError, Unavailable
from everturn.storage.sql.sqlite_database import as_ours, open_engine
from everturn.storage.sql.tables import alembic_version, metadata

#: Every revision there is, oldest first. A database at one that is not here comes from a newer
#: release.
REVISIONS: Final = ("0001", "0002", "0003")
HEAD: Final = REVISIONS[-1]

SchemaState = Literal["current", "behind", "ahead", "empty"]

#: Of PostgreSQL's advisory lock: two servers that start at once migrate one after the other.
_LOCK: Final = 0x6576_6572
_SQLITE: Final = "sqlite:///"


def parsed_url(url: str) -> URL:
    """The database a setting names, with our driver. Raises ConfigurationError."""
    try:
        # What follows is the path as it is, as for streams: a folder may be called anything.
        file = url.removeprefix(_SQLITE) if url.startswith(_SQLITE) else None
        parsed = make_url(url) if file is None else URL.create("sqlite", database=file)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ConfigurationError("the database URL is not a URL") from None
    name = parsed.get_backend_name()
    if name == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError("a SQLite URL names a file: sqlite:///folder/state.db")
        return parsed.set(drivername="sqlite")
    if name in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigurationError(f"no state is kept in {name!r}: use sqlite or postgresql")


def file_of(url: URL) -> Path:
    assert url.database is not None
    return Path(url.database)


def schema_state(url: str) -> SchemaState:
    """Whether the schema is current, behind, ahead (of a newer release), or not there yet.

    Raises Unavailable when the database cannot be reached. A SQLite file that does not exist is
    empty, and is not made by asking.
    """
    parsed = parsed_url(url)
    if parsed.drivername == "sqlite" and not file_of(parsed).exists():
        return "empty"
    with _connection(parsed) as connection:
        return state_of(connection)


def state_of(connection: Connection) -> SchemaState:
    """As `schema_state`, of a database that is connected to already."""
    if not inspect(connection).has_table(alembic_version.name):
        return "empty"
    version = connection.execute(select(alembic_version)).scalar()
    if version is None:
        return "empty"
    if version == HEAD:
        return "current"
    return "behind" if version in REVISIONS else "ahead"


def migrate(url: str) -> None:
    """Bring the schema to the newest version; nothing happens when it is there.

    Blocking. Several processes may call it at once: one does the work.

    Raises:
        ConfigurationError: the database belongs to a newer release of this package.
        Unavailable: the database cannot be reached.
    """
    parsed = parsed_url(url)
    if parsed.drivername == "sqlite":
        file_of(parsed).absolute().parent.mkdir(parents=True, exist_ok=True)
    with _connection(parsed) as connection, _alone(connection):
        state = state_of(connection)
        if state == "empty":
            metadata.create_all(connection)
            alembic_version.create(connection, checkfirst=True)
            connection.execute(alembic_version.insert(), {"version_num": HEAD})
        elif state == "behind":
            from everturn.storage.sql.migrations import upgrade

            upgrade(connection)
        elif state == "ahead":
            raise ConfigurationError(
                f"the state database is newer than this release, which knows schema {HEAD}"
            )


@contextmanager
def _connection(url: URL) -> Iterator[Connection]:
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        if url.drivername == "sqlite":
            raise as_ours(error, str(file_of(url))) from error
        raise Unavailable(f"the state database failed: {error.orig}") from error
    finally:
        engine.dispose()


def _engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        return open_engine(file_of(url))
    return create_engine(url, poolclass=NullPool)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """One transaction around a migration that no other process migrates beside."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    yield
    connection.commit()
