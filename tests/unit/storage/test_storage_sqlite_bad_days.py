"""Days on which a stream file meets a wrong clock, a wrong disk, a wrong owner or lost rows."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn.errors import ConfigurationError, StorageCorrupt, Unavailable
from everturn.protocol.records import NewRecord, trim_record
from everturn.rules import limits
from everturn.storage.sqlite import SqliteStreams
from everturn.storage.sqlite.compaction import Slice
from everturn.storage.sqlite.examination import examine, in_use
from everturn.testing.contracts.streams_scene import IN, OUT, SteppedClock, bodies, everything, text

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteStreams]:
    clock = options.pop("clock", None) or SteppedClock()
    streams = await SqliteStreams.open(path, clock, **options)
    try:
        yield streams
    finally:
        await streams.close()


def query(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def until(path: Path, sql: str, expected: Any) -> None:
    with anyio.fail_after(10):
        while query(path, sql) != [(expected,)]:
            await anyio.sleep(0.005)  # another connection's file tells no event


async def compacted(path: Path, segments: int = 4) -> None:
    """A file whose channel `out` lies in so many segments of two records each."""
    for step in range(segments):
        async with opened(path, compact_records=1) as streams:
            await streams.append(OUT, [text(f"{step * 2}"), text(f"{step * 2 + 1}")])
            await until(path, "SELECT count(*) FROM log", 0)


class TestLostRows:
    """A file that lost rows in the middle says so; it never passes them over in silence (P-2)."""

    @pytest.mark.parametrize("first", [0, 2, 6])
    async def test_a_reader_is_told_of_records_that_are_missing(
        self, tmp_path: Path, first: int
    ) -> None:
        path = tmp_path / "s.db"
        await compacted(path)
        query(path, f"DELETE FROM segments WHERE first = {first}")
        async with opened(path) as streams:
            with pytest.raises(StorageCorrupt, match=f"record {first} of channel 1 is missing"):
                await streams.read(OUT, after=None)
            with pytest.raises(StorageCorrupt, match=f"record {first + 1} of channel 1"):
                await streams.read_back(OUT, before=None, records_max=100)
            place = streams.subscribe(OUT, first - 1 if first else None)
            with pytest.raises(StorageCorrupt, match=f"record {first} of channel 1"):
                await place.next()

    async def test_a_segment_that_holds_other_records_than_its_row_says_is_damage(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        await compacted(path)
        query(path, "UPDATE segments SET count = 3 WHERE first = 2")
        async with opened(path) as streams:
            with pytest.raises(StorageCorrupt, match="segment 2 of channel 1"):
                await streams.read(OUT, after=1)

    @pytest.mark.parametrize(("first", "named"), [(0, "0 to 1"), (2, "2 to 3"), (6, "6 to 7")])
    async def test_the_doctor_names_records_that_are_missing(
        self, tmp_path: Path, first: int, named: str
    ) -> None:
        path = tmp_path / "s.db"
        await compacted(path)
        assert not examine(path).damage
        query(path, f"DELETE FROM segments WHERE first = {first}")
        (found,) = examine(path).damage
        assert f"records {named} of channel 1 are missing" in found

    async def test_what_was_trimmed_and_deleted_is_not_missed(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        await compacted(path)
        clock = SteppedClock()
        options = {"compact_records": 1, "tail_bytes_max": 0, "retention_ms": HOUR_MS}
        async with opened(path, clock=clock, **options) as streams:
            await streams.append(OUT, [trim_record(5)])
            await until(path, "SELECT count(*) FROM log", 0)
            place = streams.subscribe(OUT, None)
            clock.ms += 2 * HOUR_MS
            await streams.append(IN, [text("a minute has passed")])
            await until(path, "SELECT min(first) FROM segments WHERE channel = 1", 4)
            assert bodies(await everything(streams))[:3] == ["5", "6", "7"]
            assert bodies(await place.next())[:3] == ["5", "6", "7"]
            held = await streams.read(OUT, after=None, include_trimmed=True)
            assert [record.seq_num for record in held] == [4, 5, 6, 7, 8]
        assert not examine(path).damage


class TestClocks:
    async def test_one_record_dated_in_the_future_hides_no_channel_written_shortly_before(
        self, tmp_path: Path
    ) -> None:
        """What a start looks at for records whose run check a crash prevented (rulings §1.1)."""
        path = tmp_path / "s.db"
        clock = SteppedClock()
        async with opened(path, clock=clock, compact_records=1) as streams:
            clock.ms += 24 * HOUR_MS
            await streams.append(OUT, [text("while the clock was ahead")])
            clock.ms -= 24 * HOUR_MS
            await streams.append(IN, [text("a message")])
            await until(path, "SELECT count(*) FROM log", 0)
        async with opened(path, clock=clock) as streams:
            assert set(await streams.recent_channels()) == {IN, OUT}

    async def test_a_clock_that_was_set_back_does_not_put_off_retention(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        clock = SteppedClock()
        year_ms = 365 * 24 * HOUR_MS
        options = {"compact_records": 1, "tail_bytes_max": 0, "retention_ms": HOUR_MS}
        clock.ms += year_ms
        async with opened(path, clock=clock, **options) as streams:
            # Its records are dated a year ahead for as long as it lives; its trims are not.
            await streams.append(OUT, [text("a"), text("b")])
            await until(path, "SELECT count(*) FROM log", 0)
            clock.ms -= year_ms
            await streams.append(OUT, [trim_record(2)])
            await until(path, "SELECT count(*) FROM trims", 1)
            clock.ms += 2 * HOUR_MS
            await streams.append(IN, [text("a minute has passed")])
            await until(path, "SELECT count(*) FROM trims", 0)
            assert query(path, "SELECT min(first) FROM segments WHERE channel = 1") == [(2,)]


class TestDisks:
    async def test_with_a_full_log_that_cannot_be_compacted_an_append_is_refused_and_does_not_hang(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "s.db"
        monkeypatch.setattr(limits, "STREAM_COMPACT_BYTES", 20_000)
        monkeypatch.setattr(limits, "STREAM_UNCOMPACTED_BYTES_MAX", 40_000)
        write = Slice.write

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(Slice, "write", full)
        async with opened(path, tail_bytes_max=50_000) as streams:
            refused: list[Exception] = []
            kept = 0
            with anyio.fail_after(10):
                while not refused:
                    try:
                        await streams.append(OUT, [text("x" * 5_000)])
                    except Unavailable as error:
                        refused.append(error)
                    else:
                        kept += 1

            async def try_it() -> None:
                try:
                    await streams.append(IN, [text("y")])
                except Unavailable as error:
                    refused.append(error)

            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(try_it)
            assert ["cannot be compacted" in str(error) for error in refused] == [True] * 21
            assert len(await everything(streams)) == kept

            monkeypatch.setattr(Slice, "write", write)
            with anyio.fail_after(10):
                while True:
                    try:
                        await streams.append(OUT, [text("room again")])
                    except Unavailable:
                        await anyio.sleep(0.05)  # until the next try of the compactor
                    else:
                        break
            assert len(await everything(streams)) == kept + 1

    async def test_records_that_are_all_headers_fill_segments_too(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        size = limits.STREAM_SEGMENT_BYTES // 4
        async with opened(path, compact_records=20) as streams:
            for n in range(20):
                await streams.append(OUT, [NewRecord(headers=(("n", str(n)), ("h", "x" * size)))])
            await until(path, "SELECT count(*) FROM log", 0)
        assert query(path, "SELECT max(count) <= 4, sum(count) FROM segments") == [(1, 20)]


class TestOwners:
    async def test_a_file_reached_by_a_link_has_one_owner_all_the_same(
        self, tmp_path: Path
    ) -> None:
        path, link = tmp_path / "s.db", tmp_path / "linked" / "other.db"
        link.parent.mkdir()
        link.symlink_to(path)
        async with opened(path):
            with pytest.raises(ConfigurationError, match="another process"):
                await SqliteStreams.open(link, SteppedClock())
            assert in_use(link)

    @pytest.mark.parametrize("script", ["CREATE TABLE theirs (a)", "PRAGMA user_version = 2"])
    async def test_a_file_that_is_not_ours_is_refused_without_a_change(
        self, tmp_path: Path, script: str
    ) -> None:
        path = tmp_path / "s.db"
        query(path, script)
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match="not a stream store"):
            await SqliteStreams.open(path, SteppedClock())
        assert path.read_bytes() == before


async def test_pages_that_are_let_go_of_are_read_again_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.db"
    await compacted(path, segments=12)
    monkeypatch.setattr(limits, "STREAM_PAGES_BYTES_MAX", 2_000)
    async with opened(path) as streams:
        for _ in range(2):
            assert bodies(await everything(streams)) == [str(n) for n in range(24)]
            back = await streams.read_back(OUT, before=None, records_max=100)
            assert bodies(back) == [str(n) for n in reversed(range(24))]
        reader = streams._reader
        assert 0 < len(reader._pages) < 12
        assert {(1, first) for first in reader._begins[1]} == set(reader._pages)
