"""The schema: made, migrated, recognised, and the indexes that keep hot verbs from scanning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

from everturn.errors import ConfigurationError
from everturn.storage.sql import claims, schema
from everturn.storage.sql.migrations import alembic_config, upgrade
from everturn.storage.sql.state import SqlState
from everturn.storage.sql.tables import metadata
from everturn.testing.contracts.state_scene import NOW, create, environment, open_chat, register

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/state.db"
    return str(request.getfixturevalue("empty_postgres_url"))


def connect(url: str) -> Any:
    return create_engine(schema.parsed_url(url), poolclass=NullPool).connect()


def describe(connection: Connection) -> dict[str, Any]:
    """What a schema is made of, in words that do not depend on how it was made."""
    found = inspect(connection)
    return {
        name: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)),
            sorted(str(index["column_names"]) for index in found.get_indexes(name)),
            found.get_pk_constraint(name)["constrained_columns"],
            sorted(str(u["column_names"]) for u in found.get_unique_constraints(name)),
        )
        for name in sorted(found.get_table_names())
    }


class TestMigrating:
    def test_an_empty_database_becomes_current_and_stays_so(self, empty_url: str) -> None:
        assert schema.schema_state(empty_url) == "empty"

        schema.migrate(empty_url)
        schema.migrate(empty_url)

        assert schema.schema_state(empty_url) == "current"

    def test_creating_and_migrating_give_the_same_schema(
        self, empty_url: str, postgres_server: Any, tmp_path: Path
    ) -> None:
        schema.migrate(empty_url)
        sqlite = empty_url.startswith("sqlite")
        other = f"sqlite:///{tmp_path}/m.db" if sqlite else postgres_server.create_database()
        with connect(other) as connection:
            upgrade(connection)
            connection.commit()
            difference = compare_metadata(MigrationContext.configure(connection), metadata)
            migrated = describe(connection)
            connection.rollback()
        with connect(empty_url) as connection:
            created = describe(connection)

        assert difference == []
        assert migrated == created
        assert schema.schema_state(other) == "current"

    def test_the_revisions_we_name_are_those_there_are(self) -> None:
        scripts = ScriptDirectory.from_config(alembic_config())
        revisions = [script.revision for script in scripts.walk_revisions()]

        assert tuple(reversed(revisions)) == schema.REVISIONS
        assert scripts.get_current_head() == schema.HEAD

    async def test_a_newer_schema_is_refused(self, empty_url: str) -> None:
        schema.migrate(empty_url)
        with connect(empty_url) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            connection.commit()

        assert schema.schema_state(empty_url) == "ahead"
        with pytest.raises(ConfigurationError, match="ahead"):
            await SqlState.open(empty_url)
        with pytest.raises(ConfigurationError, match="newer"):
            schema.migrate(empty_url)

    async def test_opening_does_not_migrate_unless_asked_to(self, empty_url: str) -> None:
        with pytest.raises(ConfigurationError, match="everturn migrate"):
            await SqlState.open(empty_url, migrate=False)

        assert schema.schema_state(empty_url) == "empty"

    @pytest.mark.parametrize("url", ["nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:"])
    def test_a_url_that_cannot_be_used_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError):
            schema.schema_state(url)

    def test_alembic_is_not_loaded_when_the_schema_is_current(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/state.db"
        program = (
            "import asyncio, sys\n"
            "from everturn.storage.sql.state import SqlState\n"
            "async def main():\n"
            "    for _ in range(2):\n"
            f"        await (await SqlState.open({url!r})).close()\n"
            "asyncio.run(main())\n"
            "print('alembic' in sys.modules, 'psycopg' in sys.modules)\n"
        )
        answer = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )

        assert answer.stdout.strip() == "False False"


class TestIndexes:
    async def test_claims_read_no_suspended_or_finished_run(self, empty_url: str) -> None:
        state = await SqlState.open(empty_url)
        env = await environment(state)
        await register(state, env, queues={"limited": 1})
        await open_chat(state, env)
        await create(state, env, "run_c2")
        await state.close()

        with connect(empty_url) as connection:
            self._fill(connection, env)
            for statement in (*claims._CLAIMABLE.values(), *claims._RESUMABLE.values()):
                plan = self._explain(connection, statement, env)
                assert "Seq Scan on runs" not in plan, plan
                assert "SCAN runs" not in plan.replace("SCAN runs USING INDEX ix_runs_queued", "")
                assert "ix_runs_queued" in plan or "ix_runs_resuming" in plan, plan

    def _fill(self, connection: Connection, env: str) -> None:
        """Many rows that a claim must not look at, copied from one that it made."""
        copied = [c.name for c in metadata.tables["runs"].columns if c.name not in ("seq", "id")]
        names = ", ".join(copied)
        values = ", ".join("'COMPLETED'" if name == "state" else f"r.{name}" for name in copied)
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        connection.execute(
            text(
                f"{numbers} INSERT INTO runs (id, {names}) "
                f"SELECT 'run_x' || n.i, {values} FROM n, runs r WHERE r.id = 'run_c2'"
            )
            if connection.dialect.name == "postgresql"
            else text(
                f"INSERT INTO runs (id, {names}) {numbers} "
                f"SELECT 'run_x' || n.i, {values} FROM n, runs r WHERE r.id = 'run_c2'"
            )
        )
        connection.commit()
        connection.execute(text("ANALYZE"))
        connection.commit()

    def _explain(self, connection: Connection, statement: Any, env: str) -> str:
        values = {
            "worker_": "w1",
            "environment_": env,
            "version_": "v1",
            "now_": NOW,
            "limit_": 4,
        }
        word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        sent: list[tuple[str, Any]] = []

        def listen(_c: Any, _u: Any, statement: str, parameters: Any, *_: Any) -> None:
            sent.append((statement, parameters))

        event.listen(connection, "before_cursor_execute", listen)
        connection.execute(statement, values)
        event.remove(connection, "before_cursor_execute", listen)
        [(sql, parameters)] = sent
        rows = connection.exec_driver_sql(f"{word} {sql}", parameters).fetchall()
        connection.rollback()
        return "\n".join(str(row[-1]) for row in rows)
