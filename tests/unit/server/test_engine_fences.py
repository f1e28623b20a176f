"""P-4: each way a run can lose its session, looked at in the store itself (rulings §1.2).

The fence is raised in several places on purpose, because each covers a moment the others do not.
Every test here asks at the moment only its own place has acted.
"""

from __future__ import annotations

from typing import Any

import pytest
from engine_kit import Kit, chunk, cursors_in, errors_in, in_state

from everturn.errors import Fenced
from everturn.protocol.runs import RunInfo
from everturn.rules.run_states import RunState
from everturn.storage.ports.rows import Session

pytestmark = pytest.mark.anyio


async def refused(kit: Kit, session: Session, info: RunInfo) -> bool:
    """Whether the store refuses the next part of this attempt."""
    try:
        await kit.streams.append(
            kit.channel(session, "out"), [chunk("late")], fence=info.fence, first_part=0
        )
    except Fenced:
        return True
    return False


async def test_the_claim_of_a_successor_fences_its_predecessor() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        old = await worker.claim()
        await in_state(kit, old.run_id, RunState.RUNNING)
        await worker.finish(old)
        await kit.say(session, "hi")
        await worker.claim(start=False)
        assert await refused(kit, session, old)


async def test_a_lost_run_is_fenced_before_anybody_claims_it_again() -> None:
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
    await kit.services.recovery.worker_gone("worker_1")

    assert await refused(kit, session, info)


async def test_a_run_whose_turn_the_server_closed_is_fenced() -> None:
    """rulings §1.9: nothing may follow the turn-complete under the dead run's fence."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.finish(info, "failed", error={"type": "STRING_ERROR", "raw": "x"})

    assert await refused(kit, session, info)


async def test_a_cancelled_run_is_fenced_although_no_turn_was_open() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.services.runs.cancel(kit.environment.id, info.run_id, "no")

    assert await refused(kit, session, info)


async def test_a_run_swapped_from_outside_is_fenced_before_its_successor_is_claimed() -> None:
    """rulings §1.11"""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.services.dispatch.end_and_continue(session, info.run_id, "upgrade")

    assert await refused(kit, session, info)


async def test_the_failure_of_a_superseded_run_touches_nothing_of_the_session() -> None:
    """rulings §1.11: its successor owns the open message now."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker(credit=1) as worker:
        old = await worker.claim()
        await in_state(kit, old.run_id, RunState.RUNNING)
        await kit.say(session, "hi")
        answer = await worker.call(old, "continue", reason="upgrade")
        await worker.finish(old, "failed", error={"type": "STRING_ERROR", "raw": "x"}, turns=1)

    assert errors_in(await kit.out(session)) == []
    assert cursors_in(await kit.out(session)) == []
    assert (await kit.current(session)).id == answer["runId"]


async def test_a_record_that_arrives_while_an_eviction_is_decided_wins() -> None:
    """rulings §1.18: compare-and-set from SUSPENDED, not a look followed by a write."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        look_up = kit.state.task

        async def record_arrives(environment_id: str, task_id: str) -> Any:
            kit.state.task = look_up  # type: ignore[method-assign]
            await kit.say(session, "hi")
            return await look_up(environment_id, task_id)

        kit.state.task = record_arrives  # type: ignore[method-assign]
        assert await worker.call(info, "evict") == {"evicted": False}

    assert (await kit.run(info.run_id)).state is RunState.RUNNING
