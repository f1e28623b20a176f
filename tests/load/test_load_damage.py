"""Files that a disk spoiled under us: a beginning of what was written, or a clear refusal.

SQLite's write-ahead log ends where its checksums end, so what is behind a bad place in it is gone
for SQLite too, and cannot be told from what was never synced. What must hold all the same: what is
left is whole, from the first record on, and new records go on behind it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from everturn.clock import SystemClock
from everturn.errors import StorageCorrupt, Unavailable
from everturn.protocol.records import ChannelName, NewRecord
from everturn.storage.sql.state import SqlState
from everturn.storage.sqlite import SqliteStreams
from everturn.testing.contracts.state_scene import NOW, makes, new_session

pytestmark = pytest.mark.anyio

CHANNEL = ChannelName("env", "chat", "in")
RECORDS = 40
FRAME = 4096 + 24


def spoiled_logs(log: bytes) -> Iterator[tuple[str, bytes]]:
    """A write-ahead log cut short, with a flipped bit, of noise, and with noise behind it."""
    chance = random.Random(5)
    for cut in (0, 1, 31, 32, 32 + FRAME, len(log) // 2, len(log) - 1):
        yield f"cut at {cut}", log[:cut]
    for _ in range(12):
        at = chance.randrange(len(log))
        yield f"bit of byte {at}", log[:at] + bytes([log[at] ^ 1 << at % 8]) + log[at + 1 :]
    for size in (32, FRAME + 32, 3 * FRAME):
        yield f"{size} of noise", chance.randbytes(size)
    yield "noise behind it", log + chance.randbytes(5000)


def as_killed(live: Path, copy: Path) -> Path:
    """The files of an open database as kill -9 leaves them: what was written is in its log."""
    for file in live.parent.glob(f"{live.name}*"):
        shutil.copy(file, copy / file.name)
    return copy / live.name


async def test_streams_with_a_spoiled_log_open_to_a_whole_beginning_and_go_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "killed").mkdir()
    live = await SqliteStreams.open(tmp_path / "streams.db", SystemClock())
    for n in range(RECORDS):
        await live.append(CHANNEL, [NewRecord(b"%d" % n, (), f"p{n}")])
    killed = as_killed(tmp_path / "streams.db", tmp_path / "killed")
    await live.close()
    base, log = killed.read_bytes(), Path(f"{killed}-wal").read_bytes()
    for what, spoiled in spoiled_logs(log):
        for file in killed.parent.iterdir():
            file.unlink()
        killed.write_bytes(base)
        Path(f"{killed}-wal").write_bytes(spoiled)
        streams = await SqliteStreams.open(killed, SystemClock())
        try:
            left = await streams.read(CHANNEL, after=None)
            assert [(r.seq_num, r.body) for r in left] == [
                (n, b"%d" % n) for n in range(len(left))
            ], what
            added = await streams.append(CHANNEL, [NewRecord(b"new", (), "new")])
            assert added.seq_nums == (len(left),), what
            if what == "noise behind it":
                assert len(left) == RECORDS
        finally:
            await streams.close()


async def test_state_with_a_spoiled_log_opens_to_a_whole_beginning_and_goes_on(
    tmp_path: Path,
) -> None:
    """Sessions and their first runs are one transaction each: never one without the other."""
    (tmp_path / "killed").mkdir()
    # The schema is in the file itself, as it is once a server has ended in order.
    await (await SqlState.open(f"sqlite:///{tmp_path}/state.db")).close()
    live = await SqlState.open(f"sqlite:///{tmp_path}/state.db")
    await live.ensure_environment("dev", now_ms=NOW, id="env")
    for n in range(RECORDS):
        await open_session(live, n)
    killed = as_killed(tmp_path / "state.db", tmp_path / "killed")
    await live.close()
    base, log = killed.read_bytes(), Path(f"{killed}-wal").read_bytes()
    for what, spoiled in spoiled_logs(log):
        for file in killed.parent.iterdir():
            file.unlink()
        killed.write_bytes(base)
        Path(f"{killed}-wal").write_bytes(spoiled)
        state = await SqlState.open(f"sqlite:///{killed}")
        try:
            await state.ensure_environment("dev", now_ms=NOW, id="env")
            found = [await state.session("env", f"chat-{n}") for n in range(RECORDS)]
            left = [session for session in found if session is not None]
            assert found == [*left, *[None] * (RECORDS - len(left))], what
            for session in left:
                assert session.current_run_id is not None
                assert await state.run("env", session.current_run_id) is not None, what
            await open_session(state, RECORDS)
            if what == "noise behind it":
                assert len(left) == RECORDS
        finally:
            await state.close()


async def open_session(state: SqlState, number: int) -> None:
    new = new_session(f"session_{number}", external_id=f"chat-{number}")
    await state.open_session("env", new, makes(f"run_{number}"), now_ms=NOW + number)


async def test_pages_spoiled_under_an_open_store_are_named_and_no_reader_gets_a_wrong_record(
    tmp_path: Path,
) -> None:
    """One page after the other is overwritten while the store is open: each read is right, or
    refused in words that name the file; and so is the next start."""
    path = tmp_path / "streams.db"
    first = await SqliteStreams.open(path, SystemClock(), compact_records=7)
    # Noise, since what repeats itself is compressed to next to nothing.
    bodies = [random.Random(n).randbytes(900) for n in range(120)]
    for n, body in enumerate(bodies):
        await first.append(CHANNEL, [NewRecord(body, (), f"p{n}")])
    await first.close()
    good = path.read_bytes()
    said: list[str] = []
    for page in range(1, len(good) // 4096):
        for file in tmp_path.glob("streams.db-*"):
            file.unlink()
        path.write_bytes(good)
        streams = await SqliteStreams.open(path, SystemClock(), tail_bytes_max=0)
        try:
            with path.open("r+b") as file:
                file.seek(page * 4096)
                file.write(b"\xa5" * 4096)
            await read_all(streams, bodies)
        except (StorageCorrupt, Unavailable) as error:
            said.append(str(error))
        finally:
            await streams.close()
        try:
            await (await SqliteStreams.open(path, SystemClock())).close()
        except StorageCorrupt as error:
            said.append(str(error))
    assert len(said) > 10
    assert [text for text in said if "streams.db" not in text and "channel" not in text] == []


async def read_all(streams: SqliteStreams, bodies: list[bytes]) -> None:
    """Every record is the one that was written, and none is missing at the end."""
    after: int | None = None
    while found := await streams.read(CHANNEL, after=after, records_max=9):
        for record in found:
            assert record.body == bodies[record.seq_num]
        after = found[-1].seq_num
    assert after == len(bodies) - 1
