"""Between an append and its commit: who sees what, and what a failure leaves behind."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from sqlalchemy import text as sql

from everturn.errors import Conflict, Unavailable
from everturn.storage.sql.sqlite_database import SqliteDatabase
from everturn.storage.sql.state import SqlState
from everturn.storage.sql.transaction import Tx
from everturn.storage.sqlite import SqliteStreams
from everturn.testing.contracts.streams_scene import OUT, SteppedClock, bodies, text

pytestmark = pytest.mark.anyio


@pytest.fixture
async def streams(tmp_path: Path) -> AsyncIterator[SqliteStreams]:
    opened = await SqliteStreams.open(tmp_path / "s.db", SteppedClock())
    yield opened
    await opened.close()


@contextmanager
def no_commit(path: Path) -> Iterator[None]:
    """Commits wait for as long as the block: another process holds the file for a moment."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def stored_texts(streams: SqliteStreams) -> list[str]:
    return bodies(await streams.read(OUT, after=None))


async def in_flight(streams: SqliteStreams) -> None:
    """Return when a commit was handed to the writer."""
    with anyio.fail_after(5):
        while not streams._in_flight:
            await anyio.lowlevel.checkpoint()


async def test_nobody_sees_a_record_before_it_is_durable(
    streams: SqliteStreams, tmp_path: Path
) -> None:
    """P-1, P-2: followers, pages, pages backwards and bounds, while the commit is under way."""
    await streams.append(OUT, [text("first")])
    follower = streams.subscribe(OUT, None)
    async with anyio.create_task_group() as tasks:
        with no_commit(tmp_path / "s.db"):
            tasks.start_soon(streams.append, OUT, [text("second")])
            await in_flight(streams)
            assert [record.seq_num for record in await follower.next()] == [0]
            assert follower.caught_up
            assert await stored_texts(streams) == ["first"]
            back = await streams.read_back(OUT, before=None, records_max=10)
            assert [record.seq_num for record in back] == [0]
            assert (await streams.bounds(OUT)).tail == 1
    assert await stored_texts(streams) == ["first", "second"]
    assert [record.seq_num for record in await follower.next()] == [1]


async def test_a_follower_that_waits_is_not_woken_by_a_commit_that_fails(
    streams: SqliteStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-2: what was never stored is never shown, and its number goes to the next record."""
    from everturn.storage.sqlite import commit

    await streams.append(OUT, [text("first")])
    follower = streams.subscribe(OUT, 0)
    # A statement that does not compile stands for a disk that refuses the write.
    with monkeypatch.context() as broken:
        broken.setattr(commit, "_LOG", "INSERT INTO nowhere VALUES (?, ?, ?)")
        with pytest.raises(Unavailable):
            await streams.append(OUT, [text("lost")])
    stored = await streams.append(OUT, [text("second")])
    assert stored.seq_nums == (1,)
    assert [record.seq_num for record in await follower.next()] == [1]
    assert await stored_texts(streams) == ["first", "second"]


async def test_a_commit_after_one_that_failed_half_way_is_durable(
    streams: SqliteStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-1: the failed one leaves a transaction open, inside of which nothing would be durable."""
    from everturn.storage.sqlite import commit

    await streams.append(OUT, [text("first")])
    with monkeypatch.context() as broken:
        # Its part ids are written last, in the transaction that its log row is in already.
        broken.setattr(commit, "_PART_IDS", "INSERT INTO nowhere VALUES (?, ?, ?)")
        with pytest.raises(Unavailable):
            await streams.append(OUT, [text("lost", part_id="p")])
    # A single statement, which would join that transaction and never say so.
    await streams.append(OUT, [text("second")])
    other = sqlite3.connect(tmp_path / "s.db")
    assert other.execute("SELECT count(*) FROM log").fetchone() == (2,)
    other.close()


# --- the state ------------------------------------------------------------------------------------


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    state = await SqlState.open(f"sqlite:///{tmp_path}/state.db")
    assert isinstance(state._db, SqliteDatabase)
    await state._db.write(lambda tx: tx.change(sql("CREATE TABLE notes (text TEXT)")))
    yield state._db
    await state.close()


def note(tx: Tx, said: str, *, then_fail: bool = False) -> None:
    tx.change(sql("INSERT INTO notes VALUES (:said)"), {"said": said})
    if then_fail:
        raise Conflict(f"{said} has failed")


async def test_a_verb_that_fails_after_writing_leaves_nothing_and_takes_nothing_with_it(
    database: SqliteDatabase,
) -> None:
    """P-1: three verbs share one commit; the one in the middle writes and then fails."""
    begin, held = threading.Event(), threading.Event()
    failed: list[str] = []

    def hold(tx: Tx) -> None:
        held.set()
        assert begin.wait(10)

    async def write(said: str) -> None:
        try:
            await database.write(note, said, then_fail=said == "broken")
        except Conflict as error:
            failed.append(error.message)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(database.write, hold)
        await anyio.to_thread.run_sync(held.wait)
        # The writer is busy, so what comes now is done together.
        for said in ("before", "broken", "after"):
            tasks.start_soon(write, said)
        await anyio.wait_all_tasks_blocked()
        begin.set()
    assert failed == ["broken has failed"]
    assert await database.read(notes) == ["before", "after"]


async def test_a_verb_that_fails_alone_leaves_nothing(database: SqliteDatabase) -> None:
    with pytest.raises(Conflict):
        await database.write(note, "alone", then_fail=True)
    await database.write(note, "next")
    assert await database.read(notes) == ["next"]


def notes(tx: Tx) -> list[str]:
    return [row[0] for row in tx.rows(sql("SELECT text FROM notes ORDER BY rowid"))]
