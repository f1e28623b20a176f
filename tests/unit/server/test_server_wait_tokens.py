"""A run and its wait token: whoever is late sees the other (tasks-and-runs §12)."""

from __future__ import annotations

from typing import Any

import pytest
from engine_kit import FakeWorker, Kit, in_state

from everturn.protocol.runs import RunInfo, TaskDeclaration
from everturn.protocol.waitpoints import CreateToken
from everturn.rules.run_states import RunState
from everturn.server.sweeps import relatives, timers

pytestmark = pytest.mark.anyio


async def opened() -> Kit:
    return await Kit(tasks=[TaskDeclaration(task_id="job")]).open()


async def started(kit: Kit, worker: FakeWorker) -> RunInfo:
    await kit.services.runs.trigger(kit.environment, "job", {})
    info = await worker.claim()
    await in_state(kit, info.run_id, RunState.RUNNING)
    return info


async def token(kit: Kit, **members: Any) -> str:
    made, _ = await kit.services.waitpoints.create(kit.environment.id, CreateToken(**members))
    return made.id


async def suspend(worker: FakeWorker, info: RunInfo, token_id: str) -> None:
    await worker.call(info, "suspend", wait={"kind": "token", "ref": token_id})


async def test_completing_a_token_wakes_every_run_that_waits_for_it() -> None:
    kit = await opened()
    token_id = await token(kit)
    async with kit.worker(credit=2) as worker:
        runs = [await started(kit, worker) for _ in range(2)]
        for info in runs:
            await suspend(worker, info, token_id)
        await kit.services.waitpoints.complete(kit.environment.id, token_id, {"n": 1})
        for info in runs:
            await in_state(kit, info.run_id, RunState.RUNNING)
        found = await worker.call(runs[0], "wait.token", token=token_id)

    assert found["status"] == "COMPLETED"
    assert found["output"] == b'{"json":{"n":1}}'


async def test_a_token_completed_before_the_run_suspended_ends_the_wait_at_once() -> None:
    kit = await opened()
    token_id = await token(kit)
    async with kit.worker(credit=1) as worker:
        info = await started(kit, worker)
        await kit.services.waitpoints.complete(kit.environment.id, token_id, None)
        await suspend(worker, info, token_id)

        await in_state(kit, info.run_id, RunState.RUNNING)


async def test_a_crash_between_completion_and_wake_is_repaired_when_the_server_starts() -> None:
    kit = await opened()
    token_id = await token(kit)
    async with kit.worker(credit=1) as worker:
        info = await started(kit, worker)
        await suspend(worker, info, token_id)
        await kit.state.complete_waitpoint(
            kit.environment.id, token_id, now_ms=kit.clock.now_ms(), output=b"1"
        )
        assert (await kit.run(info.run_id)).state is RunState.SUSPENDED

        assert await relatives.wake_parents(kit.services) == 1
        await in_state(kit, info.run_id, RunState.RUNNING)


async def test_a_repeated_completion_wakes_what_the_first_one_left_asleep() -> None:
    kit = await opened()
    token_id = await token(kit)
    async with kit.worker(credit=1) as worker:
        info = await started(kit, worker)
        await suspend(worker, info, token_id)
        await kit.state.complete_waitpoint(
            kit.environment.id, token_id, now_ms=kit.clock.now_ms(), output=b"1"
        )
        await kit.services.waitpoints.complete(kit.environment.id, token_id, "other")

        await in_state(kit, info.run_id, RunState.RUNNING)
        found = await worker.call(info, "wait.token", token=token_id)
    assert found["output"] == b"1"


async def test_a_token_whose_time_is_up_wakes_the_run_with_a_timeout() -> None:
    kit = await opened()
    token_id = await token(kit, timeout="10s")
    async with kit.worker(credit=1) as worker:
        info = await started(kit, worker)
        await suspend(worker, info, token_id)
        assert await timers.due(kit.services) == 0
        kit.clock.advance(10_000)
        assert await timers.due(kit.services) == 1

        await in_state(kit, info.run_id, RunState.RUNNING)
        found = await worker.call(info, "wait.token", token=token_id)
    assert found["status"] == "TIMED_OUT"
