"""Plain tasks under kill -9 of their worker: the journal brings them back to where they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn import runs
from everturn.client.config import configure
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "longtasks.py"
DEADLINE_S = 60.0


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def tasks(tmp_path: Path, ledger: Path) -> Iterator[System]:
    environment = {"EVERTURN_TEST_LEDGER": str(ledger)}
    with System(tmp_path / "data", APP, environment=environment) as running:
        configure(url=running.url, secret_key=running.key)
        try:
            yield running
        finally:
            configure()


async def start(task_id: str, name: str) -> str:
    return (await runs.trigger(task_id, {"name": name})).id


async def retrieved(run_id: str, *statuses: str) -> Any:
    """The run once it has one of these statuses."""
    with anyio.fail_after(DEADLINE_S):
        while (run := await runs.retrieve(run_id)).status not in statuses:
            await anyio.sleep(0.05)
        return run


async def suspended(system: System, run_id: str) -> None:
    await retrieved(run_id, "WAITING")


async def kill_and_replace(system: System) -> None:
    system.kill_worker()
    await anyio.to_thread.run_sync(lambda: system.start_worker(wait=False))


def done(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines()


async def test_a_task_that_waits_for_time_completes_once_and_repeats_no_step(
    tasks: System, ledger: Path
) -> None:
    run_id = await start("waits-for-time", "a")
    await suspended(tasks, run_id)
    await kill_and_replace(tasks)
    run = await retrieved(run_id, "COMPLETED", "FAILED", "CRASHED")

    assert run.status == "COMPLETED", tasks.logs()
    assert run.output == ["before a", "after a"]
    assert done(ledger) == ["before a", "after a"]
    # What was left of the wait, and not the whole of it again.
    waited_s = (run.finished_at - run.created_at).total_seconds()
    assert 8.0 <= waited_s < 14.0


async def test_a_task_that_waits_for_its_child_completes_once_and_starts_it_once(
    tasks: System, ledger: Path
) -> None:
    run_id = await start("waits-for-child", "b")
    await suspended(tasks, run_id)
    with anyio.fail_after(DEADLINE_S):
        while "child b" not in done(ledger):
            await anyio.sleep(0.02)
    await kill_and_replace(tasks)
    run = await retrieved(run_id, "COMPLETED", "FAILED", "CRASHED")

    assert run.status == "COMPLETED", tasks.logs()
    assert run.output == "child of b"
    assert done(ledger) == ["before b", "child b", "after b"]


async def test_a_task_whose_worker_dies_twice_while_it_waits_completes_once(
    tasks: System, ledger: Path
) -> None:
    run_id = await start("waits-for-time", "c")
    await suspended(tasks, run_id)
    for _ in range(2):
        await kill_and_replace(tasks)
    run = await retrieved(run_id, "COMPLETED", "FAILED", "CRASHED")

    assert run.status == "COMPLETED", tasks.logs()
    assert done(ledger) == ["before c", "after c"]


async def test_a_killed_server_forgets_no_wait(tasks: System, ledger: Path) -> None:
    run_id = await start("waits-for-time", "d")
    await suspended(tasks, run_id)
    tasks.kill_server()
    await anyio.to_thread.run_sync(tasks.start_server)
    run = await retrieved(run_id, "COMPLETED", "FAILED", "CRASHED")

    assert run.status == "COMPLETED", tasks.logs()
    assert done(ledger) == ["before d", "after d"]
