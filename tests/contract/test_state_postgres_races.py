"""Two transactions on one PostgreSQL that want the same key, in every order that has gone wrong.

SQLite has one writer, so nothing of this can happen there. Here a verb stands still between two of
its statements while another connection does what it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, create_engine, select, text
from sqlalchemy.pool import NullPool

from everturn.ids import RandomIds
from everturn.storage.ports.batches import NewBatch
from everturn.storage.ports.debouncing import Debounce
from everturn.storage.ports.waitpoints import NewWaitpoint
from everturn.storage.sql import batches, retention, runs, schema, waitpoints
from everturn.storage.sql.tables import Values, run_keys
from everturn.storage.sql.tables import batches as batches_table
from everturn.storage.sql.tables import runs as runs_table
from everturn.storage.sql.tables import waitpoints as waitpoints_table
from everturn.storage.sql.transaction import UNCOUNTED, Settings, Tx
from everturn.testing.contracts.state_scene import NOW, new_run

PATIENCE_S = 5.0
LATER = NOW + 10_000

#: A verb of one transaction; answers the id it made or found.
Verb = Callable[[Tx], str]


def run_with_key(run_id: str, *, now_ms: int = LATER) -> Verb:
    new = new_run(run_id, idempotency_key="k", idempotency_expires_ms=now_ms + 5_000)
    return lambda tx: runs.create_run(tx, "env", new, now_ms=now_ms)[0].id


def run_of_request(run_id: str, *, now_ms: int = LATER) -> Verb:
    new = new_run(run_id, request_key="r", request_expires_ms=now_ms + 5_000)
    return lambda tx: runs.create_run(tx, "env", new, now_ms=now_ms)[0].id


def debounced_run(run_id: str, *, now_ms: int = LATER) -> Verb:
    debounce = Debounce(key="d", delay_ms=5_000)
    new = new_run(run_id, debounce=debounce, not_before_ms=now_ms + 5_000)
    return lambda tx: runs.create_run(tx, "env", new, now_ms=now_ms)[0].id


def token_with_key(token_id: str, *, now_ms: int = LATER) -> Verb:
    new = NewWaitpoint(id=token_id, idempotency_key="k", idempotency_expires_ms=now_ms + 5_000)
    return lambda tx: waitpoints.create_waitpoint(tx, "env", new, now_ms=now_ms)[0].id


def batch_with_key(batch_id: str, *, now_ms: int = LATER) -> Verb:
    new = NewBatch(
        id=batch_id, run_count=1, idempotency_key="k", idempotency_expires_ms=now_ms + 5_000
    )
    return lambda tx: batches.create_batch(tx, "env", new, now_ms=now_ms)[0].id


def delete_from(table: Table) -> Verb:
    """What a sweep does with rows that are over, whatever else it looks at first."""

    def verb(tx: Tx) -> str:
        tx.change(table.delete())
        return ""

    return verb


def forget_keys(tx: Tx) -> str:
    retention.forget_keys(tx, now_ms=LATER, limit=10)
    return ""


KINDS = {
    "an idempotency key": (run_with_key, runs_table, forget_keys),
    "a request key": (run_of_request, runs_table, forget_keys),
    "a debounced trigger": (debounced_run, runs_table, delete_from(run_keys)),
    "a wait token": (token_with_key, waitpoints_table, delete_from(waitpoints_table)),
    "a batch": (batch_with_key, batches_table, delete_from(batches_table)),
}
kinds = pytest.mark.parametrize(("make", "table", "sweep"), KINDS.values(), ids=KINDS.keys())


class Meanwhile(Tx):
    """A transaction that lets something else happen right after its first failed insert."""

    act: Callable[[], None] | None = None

    def insert_new(self, table: Table, values: Values) -> bool:
        made = super().insert_new(table, values)
        if not made and self.act is not None:
            act, self.act = self.act, None
            act()
        return made


def interrupted(tx: Tx, act: Callable[[], None]) -> Tx:
    """The same transaction, in which `act` happens meanwhile."""
    standing = Meanwhile(*tx)
    standing.act = act
    return standing


class Database:
    """A database, and transactions on it that are begun and ended by hand."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        with self._engine.begin() as connection:
            yield Tx(connection, Settings(RandomIds(), UNCOUNTED))

    def do(self, verb: Verb) -> str:
        with self.transaction() as tx:
            return verb(tx)

    def ids(self, table: Table) -> set[str]:
        with self._engine.connect() as connection:
            return {row.id for row in connection.execute(select(table.c.id))}

    def wait_until_blocked(self) -> None:
        """Return when some connection waits for a lock of another."""
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        patience = threading.Event()
        for _ in range(int(PATIENCE_S * 100)):
            with self._engine.connect() as connection:
                if _count(connection, waiting):
                    return
            patience.wait(0.01)
        raise AssertionError("nobody waits for a lock")


def _count(connection: Connection, statement: Any) -> int:
    return int(connection.execute(statement).scalar() or 0)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    engine = create_engine(
        schema.parsed_url(postgres_url), poolclass=NullPool, isolation_level="READ COMMITTED"
    )
    yield Database(engine)
    engine.dispose()


@kinds
def test_a_key_that_is_swept_and_taken_while_one_looks_at_it_stays_with_who_took_it(
    database: Database, make: Callable[..., Verb], table: Table, sweep: Verb
) -> None:
    database.do(make("old", now_ms=NOW))

    def meanwhile() -> None:
        database.do(sweep)
        assert database.do(make("first")) == "first"

    with database.transaction() as tx:
        answer = make("second")(interrupted(tx, meanwhile))

    assert answer == "first"
    assert "second" not in database.ids(table)


@pytest.mark.parametrize("swept", [True, False], ids=["swept", "over"])
@kinds
def test_a_key_that_is_being_taken_while_one_looks_at_it_is_waited_for(
    database: Database, make: Callable[..., Verb], table: Table, sweep: Verb, swept: bool
) -> None:
    """The other transaction has not committed when this one looks again."""
    database.do(make("old", now_ms=NOW))
    taken, may_commit = threading.Event(), threading.Event()

    def take() -> None:
        with database.transaction() as tx:
            assert make("first")(tx) == "first"
            taken.set()
            assert may_commit.wait(PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:

        def meanwhile() -> None:
            if swept:
                database.do(sweep)
            others.append(threads.submit(take))
            assert taken.wait(PATIENCE_S)

        def late() -> str:
            with database.transaction() as tx:
                return make("second")(interrupted(tx, meanwhile))

        others: list[Future[None]] = []
        answer = threads.submit(late)
        try:
            database.wait_until_blocked()
        finally:
            may_commit.set()
        assert answer.result(PATIENCE_S) == "first"
        others[0].result(PATIENCE_S)
    assert "second" not in database.ids(table)


@kinds
def test_two_that_find_one_key_over_at_the_same_time_make_one_between_them(
    database: Database, make: Callable[..., Verb], table: Table, sweep: Verb
) -> None:
    """Nobody sweeps: the second waits for the row that the first is changing."""
    database.do(make("old", now_ms=NOW))
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as tx:
            assert make("first")(tx) == "first"
            second = threads.submit(database.do, make("second"))
            database.wait_until_blocked()
        assert second.result(PATIENCE_S) == "first"
    assert database.ids(table) == {"old", "first"}
