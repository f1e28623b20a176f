"""Guards that are behind other guards: each is asked directly, because the road never gets there.

What a link has in its hand, what a row says, what a cache holds: whoever acts on one of them may be
late by an await. These tests stand in that gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from engine_kit import Kit, chunk, cursors_in, errors_in, in_state

from everturn.errors import Fenced
from everturn.protocol.link import HeldRun
from everturn.protocol.runs import RunOutcome
from everturn.protocol.sessions import UpdateSession
from everturn.rules import limits
from everturn.rules.run_states import RunEvent, RunState
from everturn.server.sweeps import AT_START, OFTEN, sweep_once
from everturn.storage.ports.rows import Session

pytestmark = pytest.mark.anyio


def before(kit: Kit, monkeypatch: pytest.MonkeyPatch, verb: str, first: Callable[[], Any]) -> None:
    """Do something right before the next call of a verb of the state, once."""
    real = getattr(kit.state, verb)

    async def call(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(kit.state, verb, real)
        answer = first()
        if hasattr(answer, "__await__"):
            await answer
        return await real(*args, **options)

    monkeypatch.setattr(kit.state, verb, call)


# --- fences ---------------------------------------------------------------------------------------


async def test_the_end_of_an_attempt_is_refused_under_a_fence_that_moved_on() -> None:
    """P-4: also when a link still holds the run, or another server was told."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        with pytest.raises(Fenced):
            await kit.services.finishing.report(
                info.run_id, info.fence - 1, RunOutcome(kind="completed")
            )
        assert (await kit.run(info.run_id)).state is RunState.RUNNING


async def test_whoever_read_a_run_before_its_next_attempt_cannot_end_it() -> None:
    """P-4: the row that was read names the fence, and the fence guards the change."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
    stale = await kit.run(info.run_id)
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker("worker_2") as worker:
        again = await worker.claim()
        await in_state(kit, again.run_id, RunState.RUNNING)
        assert await kit.services.finishing.end(stale, RunEvent.COMPLETE) is None
        assert (await kit.run(again.run_id)).state is RunState.RUNNING


async def test_a_call_is_refused_when_the_row_moved_on_and_the_link_was_not_told() -> None:
    """P-4: with several servers another one may have given the run away."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        run = await kit.run(info.run_id)
        await kit.state.requeue_run(
            run.id,
            RunEvent.INTERRUPT,
            now_ms=kit.clock.now_ms(),
            fence=run.fence,
            interruptions=0,
        )
        async with kit.worker("worker_2") as other:
            again = await other.claim()
            assert again.fence > info.fence
            result = await worker.call_raw(info, "consumed", seq_num=7)
    assert result.error is not None
    assert result.error["code"] == Fenced.code
    assert await kit.state.consumed(session.id, "chatty") is None


async def test_a_run_that_was_superseded_stores_no_snapshot_any_more() -> None:
    """P-4, P-9: a snapshot has no fence of its own."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.call(info, "snapshot.put", data=b"mine", part=0)
        await worker.call(info, "continue", reason="upgrade")
        result = await worker.call_raw(info, "snapshot.put", data=b"late", part=0)
    assert result.error is not None
    assert result.error["code"] == Fenced.code
    assert await kit.services.snapshots.get(session.environment_id, session.id) == b"mine"


async def test_a_run_that_was_woken_while_its_eviction_was_decided_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P-10, rulings §1.18: it was suspended when the eviction looked, and is awake when it acts."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        await in_state(kit, info.run_id, RunState.SUSPENDED)
        before(kit, monkeypatch, "finish_run", lambda: kit.say(session, "hi"))
        assert await worker.call(info, "evict") == {"evicted": False}
    assert (await kit.run(info.run_id)).state is RunState.RUNNING


async def test_a_worker_cannot_carry_on_a_run_that_another_holds() -> None:
    """P-4, P-12: naming a run and its fence is not holding it."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        held = [HeldRun(info.run_id, info.fence)]
        async with kit.worker("worker_2", held=held) as thief:
            assert thief.welcome.lost == [info.run_id]
        assert (await kit.run(info.run_id)).worker_id == "worker_1"


# --- presence -------------------------------------------------------------------------------------


async def test_a_check_that_an_ending_overtook_marks_nobody_as_live() -> None:
    """P-3: it saw the run running, and the run has been suspended or ended since."""
    kit = await Kit().open()
    session = await kit.session()
    links = kit.services.links
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        seen = await kit.run(info.run_id)
        intent = links.intend(session.id)
        links.not_live(session.id)
        links.mark(session.id, seen, intent)
        assert not links.is_live(session.id)


async def test_presence_is_gone_before_the_state_says_that_the_run_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P-3: else an append that comes between the two would look after nobody."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    seen: list[bool] = []
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.services.dispatch.ensure_run(session)
        assert kit.services.links.is_live(session.id)
        before(
            kit,
            monkeypatch,
            "finish_run",
            lambda: seen.append(kit.services.links.is_live(session.id)),
        )
        run = await kit.run(info.run_id)
        await kit.services.finishing.end(run, RunEvent.COMPLETE)
    assert seen == [False]


async def test_a_row_that_was_read_before_a_change_is_not_kept_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P-12: a session that was closed meanwhile would go on taking input."""
    kit = await Kit().open()
    session = await kit.session()
    sessions = kit.services.sessions
    real = kit.state.session

    async def slow(environment_id: str, key: str) -> Session | None:
        row = await real(environment_id, key)
        monkeypatch.setattr(kit.state, "session", real)
        await sessions.update(environment_id, key, UpdateSession(tags=["new"]))
        return row

    monkeypatch.setattr(kit.state, "session", slow)
    await sessions.find(kit.environment.id, session.key)
    found = await sessions.find(kit.environment.id, session.key)
    assert found is not None
    assert found.tags == ("new",)


# --- written once ---------------------------------------------------------------------------------


async def test_a_turn_that_is_closed_twice_holds_one_error_and_one_end() -> None:
    """P-5: the parts are named after run and message."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("half"))
    run = await kit.run(info.run_id)
    for _ in range(2):
        await kit.services.outbox.fail_open_turn(session, run, "It broke.")
    records = await kit.out(session)
    assert errors_in(records) == ["It broke."]
    assert len(cursors_in(records)) == 1


async def test_a_first_message_that_is_put_into_the_log_twice_is_there_once() -> None:
    """P-5: once by the create call, once more before the first claim is sent."""
    kit = await Kit().open()
    message = {"id": "m", "role": "user", "parts": []}
    session = await kit.session(trigger="submit-message", message=message)
    run = await kit.current(session)
    again = msgspec.structs.replace(run, boot_input=b'{"kind":"message","payload":{}}')
    await kit.services.dispatch.store_boot_input(again, session)
    records = await kit.streams.read(kit.channel(session, "in"), after=None)
    assert len(records) == 1


# --- sweeps ---------------------------------------------------------------------------------------


async def running(kit: Kit) -> str:
    """A session's run in the middle of its turn, whose worker has gone without a word."""
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.write(info, 0, chunk("half"))
    return info.run_id


async def test_the_usual_sweeps_find_a_lease_that_ran_out() -> None:
    """P-3"""
    kit = await Kit().open()
    run_id = await running(kit)
    kit.clock.advance(limits.LEASE_MS + 1)
    assert await sweep_once(kit.services, OFTEN) > 0
    assert (await kit.run(run_id)).state is RunState.QUEUED


async def test_the_usual_sweeps_find_a_claim_that_nobody_confirmed() -> None:
    """P-3"""
    kit = await Kit().open()
    await kit.session()
    async with kit.worker(credit=1) as worker:
        info = await worker.claim(start=False)
        kit.clock.advance(limits.START_MS_MAX + 1)
        await sweep_once(kit.services, OFTEN)
        assert (await kit.run(info.run_id)).state is RunState.QUEUED


async def test_the_usual_sweeps_find_runs_of_a_worker_that_was_forgotten() -> None:
    """P-3"""
    kit = await Kit().open()
    run_id = await running(kit)
    await kit.state.remove_worker("worker_1")
    await sweep_once(kit.services, OFTEN)
    assert (await kit.run(run_id)).state is RunState.QUEUED


async def test_the_usual_sweeps_find_a_version_that_nobody_serves() -> None:
    """P-3, rulings §1.19"""
    kit = await Kit().open()
    run_id = await running(kit)
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker("worker_2", version="new") as worker:
        kit.clock.advance(limits.VERSION_WAIT_MS + 1)
        await sweep_once(kit.services, OFTEN)
        assert (await worker.claim()).run_id != run_id


async def test_the_usual_sweeps_find_a_run_past_its_longest_duration() -> None:
    """P-3"""
    kit = await Kit().open()
    async with kit.worker() as worker:
        await kit.services.runs.trigger(
            kit.environment, "plain", {"payload": 1, "options": {"maxDuration": 5}}
        )
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        kit.clock.advance(66_000)
        # Its worker is alive and well; it only does not stop the run.
        lease_until_ms = kit.clock.now_ms() + limits.LEASE_MS
        await kit.state.renew_worker("worker_1", lease_until_ms=lease_until_ms)
        await sweep_once(kit.services, OFTEN)
        assert (await kit.run(info.run_id)).state is RunState.TIMED_OUT


async def test_after_a_restart_a_worker_that_stays_away_loses_its_runs_after_its_grace() -> None:
    """P-3: long before its lease is over."""
    kit = await Kit().open()
    run_id = await running(kit)
    restarted = kit.new_server()
    await sweep_once(restarted, AT_START)
    assert restarted.links.next_grace_s() == limits.RESTART_GRACE_MS / 1000
    kit.clock.advance(limits.RESTART_GRACE_MS)
    assert await restarted.links.give_up_lost() == 1
    assert (await kit.run(run_id)).state is RunState.QUEUED
