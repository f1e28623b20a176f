"""Readers that do not keep up, and very many of them, on a real server's sockets.

EVERTURN_LOAD_READERS sets how many idle readers there are (1,000 here; 10,000 were measured).
"""

from __future__ import annotations

import os

import pytest
from load_kit import MIB, Server, Tap, in_parallel, opened

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

STUCK = 30
#: Of these, how many begin to read after all.
LATE = 5
RECORDS = 64
RECORD_BYTES = 256 * 1024
IDLE = int(os.environ.get("EVERTURN_LOAD_READERS", "1000"))
#: A connection with its buffers, its tasks and its place at the channel.
READER_BYTES_MAX = 100 * 1024


async def test_readers_that_do_not_read_hold_up_nobody_and_get_everything_when_they_do(
    server: Server,
) -> None:
    """16 MiB pass thirty readers that take nothing: kept for each, it would be half a gigabyte."""
    assert (await server.create("chat")).status == 201
    stuck = [Tap(server.system, "chat", "in") for _ in range(STUCK)]
    lively = Tap(server.system, "chat", "in", buffer_bytes=MIB)
    async with opened([*stuck, lively]), server.connection() as writer:
        before = server.rss
        for n in range(RECORDS):
            stored = await writer.append("chat", b'"' + b"x" * RECORD_BYTES + b'"', f"p{n}")
            assert stored.status == 200
            await lively.take(n)
        grown = server.rss - before
        # What the store keeps in memory, and two pages for each reader.
        assert grown < 3 * RECORDS * RECORD_BYTES + STUCK * 2 * MIB, f"{grown / MIB:.0f} MiB"
        await in_parallel([lambda tap=tap: tap.take(RECORDS - 1) for tap in stuck[:LATE]])


async def test_a_thousand_readers_of_one_channel_each_get_every_record_once(
    server: Server,
) -> None:
    assert (await server.create("chat")).status == 201
    readers = [Tap(server.system, "chat", "in") for _ in range(1000)]
    async with opened(readers), server.connection() as writer:
        before = server.rss
        for n in range(5):
            assert (await writer.append("chat", b'"hello"', f"p{n}")).status == 200
            await in_parallel([lambda tap=tap, n=n: tap.take(n) for tap in readers])
        assert server.rss - before < 50 * MIB


async def test_idle_readers_cost_kilobytes_each_and_wake_for_their_own_channel_only(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await server.create("awake")).status == 201
    before = server.rss
    idle = [Tap(server.system, f"idle-{n}", "out") for n in range(IDLE)]
    awake = Tap(server.system, "awake", "in")
    async with opened([*idle, awake]), server.connection() as writer:
        each = (server.rss - before) / IDLE
        with capsys.disabled():
            print(f"\n{IDLE} idle readers: {each / 1024:.1f} KiB each, {server.rss / MIB:.0f} MiB")
        assert each < READER_BYTES_MAX
        for n in range(5):
            assert (await writer.append("awake", b'"hello"', f"p{n}")).status == 200
            await in_parallel([lambda n=n: awake.take(n)])
        assert {tap.next_seq for tap in idle} == {0}
