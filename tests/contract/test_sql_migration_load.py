"""A schema that is brought up to date while others write: nothing acknowledged is lost (P-1).

The writers do what a server of the release before does: transactions over the tables as they
were. They know nothing of the migration, and see at most a short wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from everturn.storage.sql import schema
from everturn.storage.sql.migrations import upgrade
from everturn.storage.sql.state import SqlState

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

OLDER = schema.REVISIONS[0]
#: A SQLite file has one server, and so one writer.
WRITERS = {"sqlite": 1, "postgresql": 4}
#: Writes of each before the migration begins, and after it has ended.
WRITES = 25
DEADLINE_S = 60.0
ENVIRONMENT = "c" + "e" * 24


@pytest.fixture(params=["sqlite", "postgresql"])
def older_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database as the first release left it."""
    if request.param == "sqlite":
        (tmp_path / "data").mkdir()
        url = f"sqlite:///{tmp_path}/data/state.db"
    else:
        url = str(request.getfixturevalue("empty_postgres_url"))
    with opened(url) as engine, engine.connect() as connection:
        upgrade(connection, OLDER)
        connection.commit()
    assert schema.schema_state(url) == "behind"
    return url


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = create_engine(schema.parsed_url(url), poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _as_a_server_does)
    yield engine
    engine.dispose()


def _as_a_server_does(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


class Writer(threading.Thread):
    """Opens sessions with a run each, in one transaction, until it is told to stop."""

    def __init__(self, engine: Engine, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"writer-{number}")
        self._engine = engine
        self._number = number
        self._ending = stop
        #: What was committed, in order.
        self.acknowledged: list[str] = []
        self.failures: list[str] = []
        #: Waits that grew too long: a server answers 503 then, and its client tries again.
        self.refused = 0
        self.progress = threading.Semaphore(0)

    def run(self) -> None:
        tables = MetaData()
        tables.reflect(self._engine, only=["sessions", "runs"])
        with self._engine.connect() as connection:
            count = 0
            while not self._ending.is_set():
                count += 1
                name = f"{self._number}x{count}"
                try:
                    self._write(connection, tables, name)
                except DBAPIError as error:
                    connection.rollback()
                    if "database is locked" in str(error.orig):
                        self.refused += 1
                    else:
                        self.failures.append(str(error.orig))
                else:
                    self.acknowledged.append(name)
                self.progress.release()

    def _write(self, connection: Connection, tables: MetaData, name: str) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        session = row(tables.tables["sessions"], name)
        run = row(tables.tables["runs"], name)
        connection.execute(tables.tables["sessions"].insert(), session)
        connection.execute(tables.tables["runs"].insert(), run)
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("COMMIT")
        connection.commit()


def row(table: Table, name: str) -> dict[str, Any]:
    """A row of a table as it is: what must be there is filled by its type."""
    kind = {"sessions": "session", "runs": "run"}[table.name]
    values: dict[str, Any] = {
        column.name: {str: "", int: 1, bool: False, bytes: b"{}", float: 0.0}[
            column.type.python_type
        ]
        for column in table.columns
        if not column.nullable and column.name != "seq"
    }
    values |= {"id": f"{kind}_{name}", "environment_id": ENVIRONMENT}
    values |= (
        {"external_id": name, "current_run_id": f"run_{name}", "tags": None}
        if kind == "session"
        else {"session_id": f"session_{name}", "state": "COMPLETED", "task_id": "agent"}
    )
    return {key: value for key, value in values.items() if key in table.columns}


def migrate(url: str) -> subprocess.Popen[str]:
    """`everturn migrate`, started."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")}
    return subprocess.Popen(
        [sys.executable, "-m", "everturn", "migrate"],
        env=environment | {"EVERTURN_DATABASE_URL": url, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until_written(writers: list[Writer]) -> None:
    """Return when each has tried WRITES times more."""
    for writer in writers:
        for _ in range(WRITES):
            assert writer.progress.acquire(timeout=DEADLINE_S), writer.failures


def test_a_migration_under_load_loses_nothing_and_two_at_once_are_one(older_url: str) -> None:
    stop = threading.Event()
    with opened(older_url) as engine:
        writers = [Writer(engine, number, stop) for number in range(WRITERS[engine.dialect.name])]
        for writer in writers:
            writer.start()
        try:
            until_written(writers)
            commands = [migrate(older_url), migrate(older_url)]
            said = sorted(
                command.communicate(timeout=DEADLINE_S)[0].strip() for command in commands
            )
            for writer in writers:
                while writer.progress.acquire(blocking=False):
                    pass
            until_written(writers)
        finally:
            stop.set()
            for writer in writers:
                writer.join(DEADLINE_S)
        assert [command.returncode for command in commands] == [0, 0], said
        # The second waited for the first, or came when all was done.
        assert said in (["up to date", "upgraded"], ["upgraded", "upgraded"])
        assert schema.schema_state(older_url) == "current"
        assert [failure for writer in writers for failure in writer.failures] == []
        assert all(len(writer.acknowledged) > writer.refused for writer in writers)
        expected = {name for writer in writers for name in writer.acknowledged}
        with engine.connect() as connection:
            assert names(connection, "sessions") == {f"session_{name}" for name in expected}
            assert names(connection, "runs") == {f"run_{name}" for name in expected}


def names(connection: Connection, table: str) -> set[str]:
    tables = MetaData()
    tables.reflect(connection, only=[table])
    found = tables.tables[table]
    total = connection.execute(select(func.count()).select_from(found)).scalar()
    ids = set(connection.execute(select(found.c.id)).scalars())
    assert total == len(ids)
    return ids


async def test_a_server_that_meets_an_older_schema_brings_it_up_to_date_with_its_rows(
    older_url: str,
) -> None:
    with opened(older_url) as engine:
        stop = threading.Event()
        writer = Writer(engine, 0, stop)
        writer.start()
        until_written([writer])
        stop.set()
        writer.join(DEADLINE_S)
    state = await SqlState.open(older_url)
    try:
        for name in writer.acknowledged:
            session = await state.session(ENVIRONMENT, name)
            assert session is not None
            assert session.current_run_id == f"run_{name}"
    finally:
        await state.close()
    assert schema.schema_state(older_url) == "current"


def test_a_migration_that_is_killed_leaves_the_older_schema_or_the_newer_one(
    older_url: str,
) -> None:
    """kill -9 at some moment; the next migration finds a schema it knows and ends the work."""
    for after_s in (0.4, 0.7, 1.0):
        command = migrate(older_url)
        try:
            command.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            command.kill()
            command.communicate()
        assert schema.schema_state(older_url) in ("behind", "current")
    done = migrate(older_url)
    assert done.communicate(timeout=DEADLINE_S)[0].strip() in ("upgraded", "up to date")
    assert schema.schema_state(older_url) == "current"


def test_a_migration_that_fails_half_way_takes_back_what_it_did(older_url: str) -> None:
    """All of it is one transaction: a table in the way of the last step undoes the first."""
    with opened(older_url) as engine, engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE batch_items (other INTEGER)")
        connection.commit()
    failed = migrate(older_url)
    said = failed.communicate(timeout=DEADLINE_S)[0]
    assert failed.returncode == 1, said
    assert "Traceback" not in said
    assert schema.schema_state(older_url) == "behind"
    with opened(older_url) as engine, engine.connect() as connection:
        tables = MetaData()
        tables.reflect(connection)
        assert "waitpoints" not in tables.tables
        assert "batch_id" not in tables.tables["runs"].columns
        connection.exec_driver_sql("DROP TABLE batch_items")
        connection.commit()
    again = migrate(older_url)
    assert again.communicate(timeout=DEADLINE_S)[0].strip() == "upgraded"


def test_a_schema_of_a_newer_release_is_refused_by_everything_that_starts_in_one_line(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    schema.migrate(url)
    with opened(url) as engine, engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    for arguments in (["server", "--port", "0"], ["migrate"], ["keys", "list"]):
        refused = subprocess.run(
            [sys.executable, "-m", "everturn", *arguments, "--data-dir", str(tmp_path)],
            env={k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert refused.returncode == 1, refused
        assert "Traceback" not in refused.stderr
        assert "newer" in refused.stderr, refused.stderr
        assert "pgrade everturn" in refused.stderr
