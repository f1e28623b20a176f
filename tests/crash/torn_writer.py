"""A process that writes to both databases of a data folder until it is killed.

    python torn_writer.py FOLDER SEED

What is stored is told on standard output, a line each, after it was acknowledged.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import anyio

from everturn.clock import SystemClock
from everturn.protocol.records import ChannelName, NewRecord
from everturn.storage.ports.rows import NewRun, NewSession, Session
from everturn.storage.sql.state import SqlState
from everturn.storage.sqlite import schema
from everturn.storage.sqlite.streams import SqliteStreams

SESSIONS = 4
#: Small, so that a second of work holds many rounds of compaction and many checkpoints.
COMPACT_RECORDS = 60
WAL_PAGES = 20


def channel(number: int) -> ChannelName:
    return ChannelName("env", f"chat-{number}", "out")


async def open_streams(folder: Path) -> SqliteStreams:
    return await SqliteStreams.open(
        folder / "streams.db", SystemClock(), compact_records=COMPACT_RECORDS, tail_bytes_max=0
    )


async def write_records(streams: SqliteStreams, number: int, chance: random.Random) -> None:
    place, part = channel(number), 0
    fence = (await streams.bounds(place)).tail + 1
    await streams.raise_fence(place, fence)
    while True:
        bodies = [
            f"{number} {fence} {part + n} ".encode() + b"x" * chance.randrange(3000)
            for n in range(chance.randrange(1, 4))
        ]
        records = [NewRecord(body) for body in bodies]
        stored = await streams.append(place, records, fence=fence, first_part=part)
        for seq_num, body in zip(stored.seq_nums, bodies, strict=True):
            sys.stdout.write(f"R {number} {seq_num} {body.split(b' x')[0].decode()}\n")
        sys.stdout.flush()
        part += len(records)


async def create_sessions(state: SqlState, seed: str) -> None:
    environment = await state.ensure_environment("dev", now_ms=1)
    for n in range(1_000_000):
        key = f"{seed}-{n}"
        new = NewSession(
            id=f"session_{key}", external_id=key, type="chat", task_id="t", trigger_config={}
        )

        def first_run(session: Session, previous: str | None, key: str = key) -> NewRun:
            queue, payload = "task/t", b"{}"
            return NewRun(
                id=f"run_{key}",
                task_id="t",
                queue=queue,
                payload=payload,
                session_id=session.id,
                previous_run_id=previous,
            )

        await state.open_session(environment.id, new, first_run, now_ms=n)
        sys.stdout.write(f"S {key}\n")
        sys.stdout.flush()


async def main(folder: Path, seed: str) -> None:
    schema.WAL_PAGES = WAL_PAGES  # type: ignore[misc]  # a process of its own
    chance = random.Random(seed)
    streams = await open_streams(folder)
    state = await SqlState.open(f"sqlite:///{folder / 'state.db'}")
    async with anyio.create_task_group() as tasks:
        for number in range(SESSIONS):
            tasks.start_soon(write_records, streams, number, chance)
        tasks.start_soon(create_sessions, state, seed)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), sys.argv[2])
