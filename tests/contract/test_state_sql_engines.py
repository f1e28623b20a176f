"""What the SQL engines promise beyond the port: durability, batches, and several processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import pytest
from sqlalchemy import text

from everturn.errors import Conflict, Unavailable
from everturn.storage.ports.rows import RunFilter
from everturn.storage.sql.sqlite_database import SqliteDatabase
from everturn.storage.sql.state import SqlState
from everturn.storage.sql.transaction import Tx
from everturn.testing.contracts.state_scene import NOW, create, environment, get, register

pytestmark = pytest.mark.anyio


async def test_what_was_answered_is_there_after_reopening(tmp_path: Path) -> None:
    """P-1."""
    url = f"sqlite:///{tmp_path}/state.db"
    first = await SqlState.open(url)
    env = await environment(first)
    made = await create(first, env, "run_c1", tags=("a",), metadata=b"{}")
    await first.close()

    second = await SqlState.open(url)

    assert await get(second, "run_c1") == made
    await second.close()


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    state = await SqlState.open(f"sqlite:///{tmp_path}/state.db")
    assert isinstance(state._db, SqliteDatabase)

    def pragma(tx: Tx, name: str) -> object:
        return tx.scalar(text(f"PRAGMA {name}"))

    assert await state._db.read(pragma, "journal_mode") == "wal"
    assert await state._db.write(pragma, "synchronous") == 2  # FULL
    await state.close()


async def test_a_verb_that_fails_takes_back_its_own_work_and_no_other(tmp_path: Path) -> None:
    """Calls made at once share a commit; each has a savepoint of its own."""
    state = await SqlState.open(f"sqlite:///{tmp_path}/state.db")
    env = await environment(state)
    for n in range(20):
        await create(state, env, f"run_c{n}")
    refused: list[int] = []

    async def change(n: int) -> None:
        def metadata(_old: bytes | None) -> bytes:
            if n % 2:
                raise Conflict("no")
            return b"yes"

        try:
            await state.set_metadata(env, f"run_c{n}", metadata, now_ms=NOW)
        except Conflict:
            refused.append(n)

    async with anyio.create_task_group() as callers:
        for n in range(20):
            callers.start_soon(change, n)

    assert sorted(refused) == list(range(1, 20, 2))
    stored = [(await get(state, f"run_c{n}")).metadata for n in range(20)]
    assert stored == [None if n % 2 else b"yes" for n in range(20)]
    await state.close()


async def test_a_cancelled_caller_leaves_the_store_in_order(tmp_path: Path) -> None:
    state = await SqlState.open(f"sqlite:///{tmp_path}/state.db")
    env = await environment(state)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await create(state, env, "run_c1")

    await create(state, env, "run_c2")

    assert (await get(state, "run_c2")).id == "run_c2"
    await state.close()


async def test_a_database_that_cannot_be_reached_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await SqlState.open("postgresql://nobody@127.0.0.1:1/none")


CLAIMER = """
import asyncio, json, sys
from everturn.storage.sql.state import SqlState
from everturn.rules.run_states import RunEvent

async def main(url, worker_id, now):
    state = await SqlState.open(url)
    claimed, most = [], 0
    env = (await state.worker(worker_id)).environment_id
    idle = 0
    while idle < 50:
        got = await state.claim_runs(worker_id, limit=4, now_ms=now)
        idle = 0 if got else idle + 1
        for run in got:
            claimed.append(run.id)
            await state.start_run(run.id, fence=run.fence, now_ms=now)
        most = max(most, await holders(state, env))
        for run in got:
            ended = await state.finish_run(run.id, RunEvent.COMPLETE, now_ms=now, fence=run.fence)
            assert ended is not None
        if not got:
            await asyncio.sleep(0.01)
    await state.close()
    print(json.dumps([claimed, most]))

async def holders(state, env):
    from everturn.rules.run_states import SLOTTED
    from everturn.storage.ports.rows import (RunFilter)
    page = await state.runs(env, RunFilter(states=tuple(SLOTTED)), limit=100)
    return len(page.items)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.mark.processes
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_processes_that_claim_at_once_share_the_runs_and_never_exceed_the_limit(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    if engine == "postgresql":
        url = request.getfixturevalue("postgres_url")
    state = await SqlState.open(url)
    env = await environment(state)
    for n in range(3):
        await register(state, env, f"w{n}", queues={"task/chat": 3})
    for n in range(60):
        await create(state, env, f"run_c{n}")

    results: list[tuple[list[str], int]] = []

    async def run_claimer(worker_id: str) -> None:
        program = [sys.executable, "-c", CLAIMER, url, worker_id, str(NOW)]
        ended = await anyio.run_process(program, stderr=None)
        results.append(tuple(json.loads(ended.stdout)))

    async with anyio.create_task_group() as claimers:
        for n in range(3):
            claimers.start_soon(run_claimer, f"w{n}")

    assert sorted(run for claimed, _ in results for run in claimed) == sorted(
        f"run_c{n}" for n in range(60)
    )
    assert max(most for _, most in results) <= 3
    left = await state.runs(env, RunFilter(), limit=100)
    assert all(run.finished_at_ms is not None for run in left.items)
    await state.close()
