"""A disk that is full, may not be written, or has lost a page: clear words, and no manual step."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from load_kit import Hostile, Server, Tap, in_parallel, opened

from everturn import AgentChat
from everturn.testing.processes import System, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.processes]
#: What may stand in one line of an answer or of a log, instead of a traceback.
TRACE = "Traceback (most recent call last)"


async def test_a_full_disk_refuses_clearly_loses_nothing_and_is_over_when_it_is_over(
    server: Server, hostile: Hostile
) -> None:
    """P-1, P-3: an answer that was being given goes on when there is room again."""
    assert (await server.create("chat", "inbox")).status == 201
    told = [(await server.append("chat", b"before", f"b{n}")).json["seq"] for n in range(20)]
    reader = Tap(server.system, "chat", "in")
    async with opened([reader]), AgentChat("slow", id="talk") as talk:
        await in_parallel([lambda: reader.take(19)])
        stream = await talk.send_message("count")
        words = 0
        async for chunk in stream:
            words += chunk["type"] == "text-delta"
            if words == 5:
                hostile.disk_full(True)
                for n in range(5):
                    refused = await server.append("chat", b"during", f"d{n}")
                    assert refused.status == 503, refused
                    assert "streams.db" in refused.json["error"]
                    assert "full" in refused.json["error"]
                assert (await server.create("another")).status == 503
                # What is stored can be read.
                late = Tap(server.system, "chat", "in")
                async with opened([late]):
                    await in_parallel([lambda late=late: late.take(19)])
                hostile.disk_full(False)
        assert stream.complete, server.system.logs()
        told += [(await server.append("chat", b"after", f"a{n}")).json["seq"] for n in range(5)]
        assert (await server.create("another")).status == 201
        await in_parallel([lambda: reader.take(max(told))])
    assert told == list(range(25))
    server.system.kill_server()
    await anyio.to_thread.run_sync(server.system.start_server)
    again = Tap(server.system, "chat", "in")
    async with opened([again]):
        await in_parallel([lambda: again.take(24)])


def server_command(port: int, data: Path) -> list[str]:
    options = ["--port", str(port), "--data-dir", str(data)]
    return [sys.executable, "-m", "everturn", "server", *options]


async def test_a_disk_that_may_only_be_read_serves_readers_and_refuses_writers_until_it_is_over(
    server: Server, hostile: Hostile
) -> None:
    assert (await server.create("chat", "inbox")).status == 201
    assert (await server.append("chat", b"before", "p0")).status == 200
    hostile.read_only(True)
    refused = await server.append("chat", b"during", "p1")
    assert refused.status == 503, refused
    assert "streams.db" in refused.json["error"]
    reader = Tap(server.system, "chat", "in")
    async with opened([reader]):
        await in_parallel([lambda: reader.take(0)])
        hostile.read_only(False)
        assert (await server.append("chat", b"after", "p1")).json["seq"] == 1
        await in_parallel([lambda: reader.take(1)])


def test_a_read_only_data_directory_is_named_in_one_line_at_start(
    tmp_path: Path, hostile: Hostile
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    hostile.read_only(True)
    ended = subprocess.run(
        server_command(free_port(), data),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **hostile.environment},
        check=False,
    )
    assert ended.returncode > 0, ended
    assert str(data) in ended.stderr, ended.stderr
    assert TRACE not in ended.stderr, ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 3, ended.stderr


def spoil(file: Path, table: str) -> None:
    """Overwrite the page at the root of a table."""
    connection = sqlite3.connect(file)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
    finally:
        connection.close()
    with file.open("r+b") as opened_file:
        opened_file.seek((root - 1) * size)
        opened_file.write(b"\xa5" * size)


@pytest.mark.parametrize(
    ("file", "table"), [("streams.db", "log"), ("streams.db", "channels"), ("state.db", "runs")]
)
async def test_a_lost_page_of_a_database_is_named_at_start_and_the_file_is_left_alone(
    server: Server, file: str, table: str
) -> None:
    for n in range(20):
        assert (await server.create(f"chat-{n}", "eager")).status == 201
    system = server.system
    system.close()
    spoil(system.data_dir / file, table)
    before = (system.data_dir / file).read_bytes()

    ended = await anyio.to_thread.run_sync(_ends, system)

    assert file in ended, ended
    assert TRACE not in ended, ended
    assert (system.data_dir / file).read_bytes() == before


def _ends(system: System) -> str:
    """What a server says that cannot start on this folder."""
    ended = subprocess.run(
        server_command(system.port, system.data_dir),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "EVERTURN_SECRET_KEY": system.key},
        check=False,
    )
    assert ended.returncode != 0
    return ended.stderr
