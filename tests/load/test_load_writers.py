"""Writers faster than the disk, records at their limit, and sessions by the thousand.

EVERTURN_LOAD_SESSIONS sets the size of the burst (500 here; 10,000 were measured).
"""

from __future__ import annotations

import os
import time

import anyio
import pytest
from load_kit import MIB, Hostile, Server, Tap, in_parallel, opened

from everturn.protocol.records import input_body
from everturn.rules import limits

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

SESSIONS = int(os.environ.get("EVERTURN_LOAD_SESSIONS", "500"))
WRITERS = 64
EACH = 8
SYNC_MS = 20
BODY = b'"' + b"x" * 256 * 1024 + b'"'


async def test_writers_faster_than_the_disk_wait_and_memory_does_not_grow_with_them(
    server: Server, hostile: Hostile, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-1: 128 MiB by 64 writers at once, onto a disk that is slow to sync.

    An append is held back, not piled up. Whoever was told "stored" finds it stored.
    """
    for n in range(4):
        assert (await server.create(f"chat-{n}")).status == 201
    hostile.slow_sync(SYNC_MS)
    before, most = server.rss, 0
    told: dict[str, set[int]] = {f"chat-{n}": set() for n in range(4)}

    async def write(number: int) -> None:
        nonlocal most
        key = f"chat-{number % 4}"
        async with server.connection() as connection:
            for n in range(EACH):
                reply = await connection.append(key, BODY, f"{number}-{n}")
                assert reply.status == 200, reply
                told[key].add(reply.json["seq"])
                most = max(most, server.rss)

    async with anyio.create_task_group() as tasks:
        for number in range(WRITERS):
            tasks.start_soon(write, number)
    hostile.slow_sync(0)
    # What waits for its commit, in its several forms, and the store's own memory for tails.
    room = 6 * limits.STREAM_WAITING_BYTES_MAX + limits.STREAM_TAIL_BYTES_MAX
    grown = most - before
    with capsys.disabled():
        print(f"\n{WRITERS * EACH * len(BODY) / MIB:.0f} MiB written, {grown / MIB:.0f} MiB grown")
    assert grown < room, f"{grown / MIB:.0f} MiB"
    for key, seqs in told.items():
        assert seqs == set(range(WRITERS * EACH // 4))
        tap = Tap(server.system, key, "in", buffer_bytes=MIB)
        async with opened([tap]):
            await in_parallel([lambda tap=tap, seqs=seqs: tap.take(max(seqs))])


async def test_a_record_at_the_limit_is_stored_and_one_byte_more_is_refused_with_both_sizes(
    server: Server,
) -> None:
    assert (await server.create("chat")).status == 201
    room = limits.RECORD_BYTES_MAX - 8 - len(input_body("", "p0"))
    stored = await server.append("chat", b"x" * room, "p0")
    assert (stored.status, stored.json["seq"]) == (200, 0)
    refused = await server.append("chat", b"x" * (room + 1), "p1")
    assert refused.status == 413
    assert str(limits.RECORD_BYTES_MAX) in refused.json["error"], refused.json
    assert str(limits.RECORD_BYTES_MAX + 1) in refused.json["error"], refused.json
    tap = Tap(server.system, "chat", "in", buffer_bytes=MIB)
    async with opened([tap]):
        await in_parallel([lambda: tap.take(0)])


async def test_a_burst_of_sessions_is_created_once_each_and_the_server_stays_small(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-11: fifty callers at once, each external id asked for twice."""
    waiting = [f"burst-{n // 2}" for n in range(SESSIONS * 2)]
    found: dict[str, set[str]] = {}
    before, began = server.rss, time.monotonic()

    async def caller() -> None:
        async with server.connection() as connection:
            while waiting:
                key = waiting.pop()
                reply = await connection.create(key, "eager")
                assert reply.status in (200, 201), reply
                found.setdefault(key, set()).add(reply.json["id"])

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(caller)
    took_s = time.monotonic() - began
    each = (server.rss - before) / SESSIONS
    with capsys.disabled():
        print(
            f"\n{SESSIONS} sessions in {took_s:.1f} s, {each / 1024:.1f} KiB each, "
            f"{server.rss / MIB:.0f} MiB"
        )
    assert len(found) == SESSIONS
    assert all(len(ids) == 1 for ids in found.values())
    assert each < 100 * 1024
