"""Channels deleted whole from a SQLite file, row and all, and what must not go wrong with it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from everturn.protocol.records import ChannelName, trim_record
from everturn.storage.sqlite import SqliteStreams
from everturn.testing.contracts.streams_scene import IN, OUT, SteppedClock, bodies, everything, text

pytestmark = pytest.mark.anyio

TABLES = ("channels", "segments", "part_ids", "part_ranges", "trims")


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteStreams]:
    streams = await SqliteStreams.open(path, SteppedClock(), **options)
    try:
        yield streams
    finally:
        await streams.close()


def rows(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as connection:
        counts = {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in TABLES
        }
    connection.close()
    return counts


def stream(n: int) -> ChannelName:
    return ChannelName("env_a", f"session_run_{n}/s", "out")


async def test_no_row_of_any_table_is_left_of_the_streams_of_many_runs(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    names = [stream(n) for n in range(300)]
    async with opened(path, compact_records=100) as streams:
        for name in names:
            await streams.append(name, [text("a", "p")])
            await streams.append(name, [text("b")], fence=1, first_part=0)
            await streams.append(name, [trim_record(1)])

        assert await streams.forget(names) == set(names)

    assert rows(path) == dict.fromkeys(TABLES, 0)


async def test_a_channel_of_many_segments_is_deleted_in_several_transactions(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.db"
    async with opened(path, compact_records=1) as streams:
        for n in range(70):
            await streams.append(OUT, [text(f"{n}")])
            while streams._compactor.active:
                await anyio.sleep(0.001)  # a segment per record

        assert rows(path)["segments"] > 64
        assert await streams.forget([OUT]) == {OUT}

    assert rows(path) == dict.fromkeys(TABLES, 0)


async def test_a_file_can_be_opened_at_every_moment_of_a_deletion(tmp_path: Path) -> None:
    """The log must not name a channel without a row: that is damage to whoever opens the file."""
    path, copy = tmp_path / "s.db", tmp_path / "copy.db"
    async with opened(path) as streams:
        looked = anyio.Event()

        async def look() -> None:
            while not looked.is_set():
                with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
                    source.backup(target)
                async with opened(copy) as other:
                    found = bodies(await everything(other))
                    assert found in (["a", "b"], []), found
                    assert bodies(await everything(other, IN))[:1] == ["kept"]
                copy.unlink()

        await streams.append(IN, [text("kept")])
        await streams.append(OUT, [text("a"), text("b")])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            # The log is never empty: somebody writes all the time.
            for n in range(30):
                await streams.append(IN, [text(f"{n}")])
                if n == 10:
                    tasks.start_soon(streams.forget, [OUT])
            assert await streams.forget([OUT]) == {OUT}
            looked.set()


async def test_a_channel_that_is_written_while_it_is_to_go_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with opened(path) as streams:
        await streams.append(OUT, [text("a")])
        forgotten: list[frozenset[ChannelName]] = []

        async def forget() -> None:
            forgotten.append(await streams.forget([OUT]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forget)
            await anyio.lowlevel.checkpoint()
            await streams.append(OUT, [text("b")])

        assert forgotten == [frozenset()]
        assert bodies(await everything(streams)) == ["a", "b"]
    async with opened(path) as streams:
        assert bodies(await everything(streams)) == ["a", "b"]


async def test_what_comes_after_a_forgotten_channel_is_numbered_anew(tmp_path: Path) -> None:
    """Its number in the file is given again after a restart, and must find nothing of it."""
    path = tmp_path / "s.db"
    async with opened(path) as streams:
        await streams.append(IN, [text("kept")])
        await streams.append(OUT, [text("a", "p")])
        await streams.append(OUT, [text("b")], fence=7, first_part=0)
        assert await streams.forget([OUT]) == {OUT}
    async with opened(path) as streams:
        other = stream(1)
        assert (await streams.append(other, [text("c", "p")])).new == 1
        assert (await streams.append(other, [text("d")], fence=1, first_part=0)).seq_nums == (1,)
        assert bodies(await everything(streams, other)) == ["c", "d"]
