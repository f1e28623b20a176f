"""What the SQLite engine does only to be fast, and that it changes nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from everturn.clock import SystemClock
from everturn.protocol.records import ChannelName, NewRecord
from everturn.storage.sqlite import SqliteStreams
from everturn.storage.sqlite.schema import WAL_PAGES, connect, prepare
from everturn.storage.sqlite.warming import Warming

pytestmark = pytest.mark.anyio

OUT = ChannelName("env_a", "s", "out")


def warmed(path: Path) -> tuple[sqlite3.Connection, int]:
    """A new file after all its steps of warming, and how many there were."""
    connection = connect(path, writer=True)
    prepare(connection)
    warming, steps = Warming(0.0), 0
    while warming.due(60.0):
        warming.write(connection)
        warming.done(None)
        steps += 1
    return connection, steps


def test_warming_waits_until_the_store_has_been_open_for_a_moment() -> None:
    warming = Warming(100.0)
    assert not warming.due(100.1)
    assert warming.due(100.0 + warming.after_s)


def test_warming_grows_the_write_ahead_log_past_its_checkpoint_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    connection, _ = warmed(tmp_path / "streams.db")
    assert (tmp_path / "streams.db-wal").stat().st_size >= WAL_PAGES * 4096
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ballast'").fetchone()
    connection.close()


def test_commits_after_warming_do_not_grow_the_write_ahead_log(tmp_path: Path) -> None:
    connection, _ = warmed(tmp_path / "streams.db")
    connection.execute("INSERT INTO log VALUES (1, 0, zeroblob(4096))")
    before = (tmp_path / "streams.db-wal").stat().st_size
    for row in range(2, 300):
        connection.execute("INSERT INTO log VALUES (?, 0, zeroblob(4096))", (row,))
    assert (tmp_path / "streams.db-wal").stat().st_size == before
    connection.close()


def test_a_step_of_warming_that_fails_is_the_last() -> None:
    warming = Warming(0.0)
    warming.done(OSError("full"))
    assert not warming.due(60.0)


@pytest.mark.parametrize(("sync", "level"), [(True, 2), (False, 0)])
def test_the_writer_syncs_every_commit_unless_told_not_to(
    tmp_path: Path, sync: bool, level: int
) -> None:
    connection = connect(tmp_path / "streams.db", writer=True, sync=sync)
    assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
    connection.close()


async def test_a_reader_hears_of_a_record_before_its_writer_does(tmp_path: Path) -> None:
    streams = await SqliteStreams.open(tmp_path / "streams.db", SystemClock())
    order: list[str] = []

    async def read() -> None:
        await streams.subscribe(OUT, None).next()
        order.append("reader")

    reader = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    await streams.append(OUT, [NewRecord(b"x")])
    order.append("writer")
    await reader
    await streams.close()
    assert order == ["reader", "writer"]
