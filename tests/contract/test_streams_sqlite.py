"""What is particular to the SQLite engine: its lock, its files, its memory, and bad days."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from everturn.errors import ConfigurationError, Fenced, StorageCorrupt, Unavailable
from everturn.protocol.records import ChannelName, NewRecord, trim_record
from everturn.rules import limits
from everturn.storage.sqlite import SqliteStreams
from everturn.testing.contracts.streams_scene import IN, OUT, SteppedClock, bodies, everything, text

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteStreams]:
    clock = options.pop("clock", None) or SteppedClock()
    streams = await SqliteStreams.open(path, clock, **options)
    try:
        yield streams
    finally:
        await streams.close()


def query(path: Path, sql: str) -> list[Any]:
    """Look into the file, or change it, with the engine closed or beside it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def until(path: Path, sql: str, expected: Any) -> None:
    """Wait until a query on the file answers so."""
    with anyio.fail_after(10):
        while query(path, sql) != [(expected,)]:
            await anyio.sleep(0.005)  # another connection's file tells no event


@contextmanager
def no_file_may_grow() -> Iterator[None]:
    """A full disk, as near as a process can make one for itself."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)


class TestLock:
    async def test_a_second_opener_is_told_who_and_what_in_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path):
            with pytest.raises(ConfigurationError, match="another process") as refused:
                await SqliteStreams.open(path, SteppedClock())
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)

    async def test_the_next_opener_gets_in_when_the_first_has_closed(self, tmp_path: Path) -> None:
        for _ in range(2):
            async with opened(tmp_path / "s.db"):
                pass

    async def test_a_file_that_is_no_stream_store_is_refused_and_unlocked(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        query(path, "CREATE TABLE something (else_ INTEGER)")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="not a stream store"):
                await SqliteStreams.open(path, SteppedClock())

    async def test_a_file_that_is_no_database_is_corrupt_by_name(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        path.write_bytes(b"not a database, by any means" * 100)
        with pytest.raises(StorageCorrupt, match=r"s\.db"):
            await SqliteStreams.open(path, SteppedClock())

    async def test_a_missing_folder_is_unavailable(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"no/s\.db"):
            await SqliteStreams.open(tmp_path / "no" / "s.db", SteppedClock())


class TestSegments:
    async def test_compaction_moves_all_records_and_empties_the_log(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path, compact_records=300) as streams:
            for step in range(100):
                await streams.append(OUT, [text(f"{step}:{n}") for n in range(3)])
            await until(path, "SELECT count(*) FROM log", 0)
            assert query(path, "SELECT sum(count) FROM segments") == [(300,)]
            assert len(await everything(streams)) == 300

    async def test_history_below_memory_reads_like_any_other(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        texts = [f"{n}:{'x' * 1000}" for n in range(1500)]
        async with opened(path, compact_records=200, tail_bytes_max=0) as streams:
            for start in range(0, 1500, 50):
                await streams.append(OUT, [text(t) for t in texts[start : start + 50]])
            await until(path, "SELECT sum(count) >= 1300 FROM segments", 1)

            assert bodies(await everything(streams)) == texts
            place = streams.subscribe(OUT, 20)
            followed = []
            while not place.caught_up:
                followed.extend(await place.next(records_max=70, bytes_max=50_000))
            assert bodies(followed) == texts[21:]
            back = []
            while page := await streams.read_back(
                OUT, before=back[-1].seq_num if back else None, records_max=64
            ):
                back.extend(page)
            assert bodies(back) == texts[::-1]

    async def test_segments_are_smaller_than_what_they_hold(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path, compact_records=2000) as streams:
            body = '{"type":"text-delta","id":"msg_01HZX8Q","delta":" word%06d"}'
            for start in range(0, 2000, 100):
                await streams.append(OUT, [text(body % n) for n in range(start, start + 100)])
            await until(path, "SELECT count(*) FROM log", 0)
        ((size,),) = query(path, "SELECT sum(length(body)) FROM segments")
        assert size <= 0.6 * 2000 * len(body % 0)

    async def test_a_crash_between_two_slices_neither_loses_nor_doubles_a_record(
        self, tmp_path: Path
    ) -> None:
        """The log rows come back as they were before the round deleted them."""
        path = tmp_path / "s.db"
        async with opened(path) as streams:
            for n in range(20):
                await streams.append(OUT, [text(str(n))], fence=1, first_part=n)
                await streams.append(IN, [text(str(n), part_id=str(n))])
        log = query(path, "SELECT * FROM log ORDER BY id")
        async with opened(path, compact_records=1):
            await until(path, "SELECT count(*) FROM log", 0)
        connection = sqlite3.connect(path, isolation_level=None)
        connection.executemany("INSERT INTO log VALUES (?, ?, ?)", log)
        connection.close()

        async with opened(path) as streams:
            for channel in (IN, OUT):
                assert bodies(await everything(streams, channel)) == [str(n) for n in range(20)]
            again = await streams.append(OUT, [text("19"), text("20")], fence=1, first_part=19)
            assert again.seq_nums == (19, 20)
            assert await streams.part_seqs(OUT, 1, 0, 22) == [*range(21), None]

    async def test_parts_and_fences_are_known_from_segments_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path) as streams:
            await streams.append(OUT, [text("a"), text("b")], fence=2, first_part=0)
            await streams.append(OUT, [text("guest", part_id="g")])
            await streams.append(OUT, [text("c")], fence=2, first_part=2)
            await streams.raise_fence(IN, 5)
        async with opened(path, compact_records=1):
            await until(path, "SELECT count(*) FROM log", 0)

        async with opened(path) as streams:
            assert await streams.part_seqs(OUT, 2, 0, 4) == [0, 1, 3, None]
            again = await streams.append(OUT, [text("c"), text("d")], fence=2, first_part=2)
            assert again.seq_nums == (3, 4)
            assert (await streams.append(OUT, [text("guest", part_id="g")])).seq_nums == (2,)

    async def test_a_fence_without_a_record_survives_compaction(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path, compact_records=1) as streams:
            await streams.raise_fence(IN, 5)
            await streams.append(OUT, [text("a")])
            await until(path, "SELECT count(*) FROM log", 0)
        async with opened(path) as streams:
            with pytest.raises(Fenced):
                await streams.append(IN, [text("late")], fence=4, first_part=0)

    async def test_what_was_trimmed_is_deleted_after_the_retention_and_not_before(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        clock = SteppedClock()
        options = {"compact_records": 1, "tail_bytes_max": 0, "retention_ms": 3_600_000}
        async with opened(path, clock=clock, **options) as streams:
            for n in range(50):
                await streams.append(OUT, [text(str(n), part_id=str(n))])
            await streams.append(OUT, [trim_record(40)])
            await until(path, "SELECT count(*) FROM log", 0)
            found = await streams.read(OUT, after=None, include_trimmed=True)
            assert found[0].seq_num == 0

            clock.ms += 3_700_000
            await streams.append(IN, [text("a minute has passed")])
            await until(path, "SELECT count(*) FROM trims", 0)
            found = await streams.read(OUT, after=None, include_trimmed=True)
            assert 0 < found[0].seq_num <= 40  # segments go whole
            assert query(path, "SELECT min(seq_num) FROM part_ids WHERE channel = 1") == [(40,)]
            assert (await streams.bounds(OUT))[:2] == (40, 51)

    async def test_channels_that_nobody_uses_are_let_go_of_and_found_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "STREAM_CHANNELS_MAX", 50)
        path = tmp_path / "s.db"
        names = [ChannelName("e", f"s{n}", "out") for n in range(200)]
        async with opened(path, compact_records=20) as streams:
            for name in names:
                await streams.append(name, [text(name.session)], fence=1, first_part=0)
            for name in names:
                assert bodies(await everything(streams, name)) == [name.session]
                again = await streams.append(name, [text("b")], fence=1, first_part=1)
                assert again.seq_nums == (1,)


class TestBadDays:
    async def test_a_full_disk_refuses_appends_but_not_readers_and_heals(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        async with opened(path) as streams:
            await streams.append(OUT, [text("a")], fence=1, first_part=0)
            with no_file_may_grow():
                for _ in range(3):
                    with pytest.raises(Unavailable, match=r"s\.db"):
                        await streams.append(OUT, [text("b")], fence=1, first_part=1)
                with pytest.raises(Unavailable):
                    await streams.raise_fence(OUT, 9)
                with pytest.raises(Unavailable):
                    await streams.append(IN, [text("new channel", part_id="p")])
                assert bodies(await everything(streams)) == ["a"]
                assert (await streams.bounds(IN)).tail == 0

            again = await streams.append(OUT, [text("b")], fence=1, first_part=1)
            assert (again.seq_nums, again.new) == ((1,), 1)
            assert (await streams.append(IN, [text("c", part_id="p")])).new == 1
        async with opened(path) as streams:
            assert bodies(await everything(streams)) == ["a", "b"]

    async def test_a_changed_log_row_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path) as streams:
            await streams.append(OUT, [text("a")])
            await streams.append(OUT, [text("b")])
        query(path, "UPDATE log SET body = zeroblob(length(body)) WHERE id = 2")
        with pytest.raises(StorageCorrupt, match=r"s\.db: log row 2"):
            await SqliteStreams.open(path, SteppedClock())

    async def test_a_lost_log_row_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        async with opened(path) as streams:
            for body in "abc":
                await streams.append(OUT, [text(body)])
        query(path, "DELETE FROM log WHERE id = 2")
        with pytest.raises(StorageCorrupt, match="record 2 of channel 1, expected 1"):
            await SqliteStreams.open(path, SteppedClock())

    async def test_a_changed_segment_is_named_and_the_rest_still_served(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        options = {"compact_records": 1, "tail_bytes_max": 0}
        async with opened(path, **options) as streams:
            await streams.append(OUT, [text("a")])
            await streams.append(IN, [text("b")])
            await until(path, "SELECT count(*) FROM log", 0)
            query(path, "UPDATE segments SET crc = crc + 1 WHERE channel = 1")
            with pytest.raises(StorageCorrupt, match="segment 0 of channel 1"):
                await streams.read(OUT, after=None)
            assert bodies(await everything(streams, IN)) == ["b"]


class TestBounds:
    async def test_past_the_bound_appends_wait_and_are_all_stored_in_order(
        self, tmp_path: Path
    ) -> None:
        async with opened(tmp_path / "s.db", waiting_bytes_max=1) as streams:
            answers = await asyncio.gather(
                *[streams.append(OUT, [text(str(n))]) for n in range(100)]
            )
            assert [a.seq_nums[0] for a in answers] == list(range(100))
            assert bodies(await everything(streams)) == [str(n) for n in range(100)]

    async def test_appends_wait_for_the_compactor_when_memory_is_full_and_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "STREAM_COMPACT_BYTES", 20_000)
        monkeypatch.setattr(limits, "STREAM_UNCOMPACTED_BYTES_MAX", 40_000)
        body = "x" * 5_000
        async with opened(tmp_path / "s.db", tail_bytes_max=50_000) as streams:
            with anyio.fail_after(20):
                await asyncio.gather(*[streams.append(OUT, [text(body)]) for _ in range(200)])
            assert len(await everything(streams)) == 200

    async def test_a_full_disk_during_compaction_costs_nothing_but_time(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "s.db"
        async with opened(path) as streams:
            for n in range(50):
                await streams.append(OUT, [text(str(n))])
        async with opened(path, compact_records=50) as streams:
            with no_file_may_grow():
                with pytest.raises(Unavailable):
                    await streams.append(OUT, [text("refused")])
                assert len(await everything(streams)) == 50
            await streams.append(OUT, [text("50")])
            await until(path, "SELECT sum(count) >= 50 FROM segments", 1)
            assert bodies(await everything(streams)) == [str(n) for n in range(51)]

    async def test_a_cancelled_append_does_not_hold_up_the_others(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "s.db", waiting_bytes_max=1) as streams:
            async with anyio.create_task_group() as tasks:
                for n in range(20):
                    tasks.start_soon(streams.append, OUT, [text(str(n))])
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(5):
                await streams.append(OUT, [text("last")])
            assert bodies(await everything(streams))[-1] == "last"

    async def test_appends_accepted_before_close_are_stored(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        streams = await SqliteStreams.open(path, SteppedClock())
        waiting = [asyncio.ensure_future(streams.append(OUT, [text(str(n))])) for n in range(300)]
        await anyio.lowlevel.checkpoint()
        await streams.close()
        assert sum(a.new for a in await asyncio.gather(*waiting)) == 300
        async with opened(path) as streams:
            assert (await streams.bounds(OUT)).tail == 300

    async def test_a_record_is_encoded_once_for_all_its_readers(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "s.db") as streams:
            places = [streams.subscribe(OUT, None) for _ in range(3)]
            await streams.append(OUT, [NewRecord(b"{}")])
            found = [(await place.next())[0] for place in places]
            assert found[0] is found[1] is found[2]
            assert found[0].wire is found[2].wire


CHILD = """
import asyncio, sys
from everturn.clock import SystemClock
from everturn.protocol.records import ChannelName, NewRecord
from everturn.storage.sqlite import SqliteStreams

async def appender(streams, number):
    channel = ChannelName("e", str(number), "out")
    for part in range(1_000_000):
        body = b"%d:%d" % (number, part)
        answer = await streams.append(channel, [NewRecord(body)], fence=1, first_part=part)
        sys.stdout.write(f"{number} {part} {answer.seq_nums[0]}\\n")
        sys.stdout.flush()

async def main():
    streams = await SqliteStreams.open(sys.argv[1], SystemClock(), compact_records=500)
    await asyncio.gather(*[appender(streams, n) for n in range(20)])

asyncio.run(main())
"""


def killed_after(path: Path, count: int) -> list[tuple[str, int, int]]:
    """Run the child, kill it after so many lines; everything it said was acknowledged."""
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(count)]
        child.kill()
        lines += child.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [(number, int(part), int(seq)) for number, part, seq in whole]


@pytest.mark.processes
class TestKilled:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_p1_everything_acknowledged_survives_kill_9(
        self, tmp_path: Path, seed: int
    ) -> None:
        """P-1: the child prints what was acknowledged; it is killed somewhere in its work."""
        path = tmp_path / "s.db"
        count = random.Random(seed).randrange(100, 6000)
        acknowledged = await anyio.to_thread.run_sync(killed_after, path, count)

        async with opened(path) as streams:
            kept = {}
            for number in range(20):
                name = ChannelName("e", str(number), "out")
                found = await everything(streams, name)
                assert bodies(found) == [f"{number}:{part}" for part in range(len(found))]
                kept[str(number)] = {record.part: record.seq_num for record in found}
            for number, part, seq in acknowledged:
                assert kept[number][part] == seq
