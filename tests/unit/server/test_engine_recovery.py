"""What becomes of runs whose process is gone, and of records whose run check never happened."""

from __future__ import annotations

import msgspec
import pytest
from engine_kit import Kit, chunk, cursors_in, errors_in, in_state, turn_complete

from everturn.errors import Unavailable
from everturn.protocol.link import HeldRun, Wake
from everturn.protocol.records import InputCursor, NewRecord
from everturn.protocol.runs import TaskDeclaration
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.server.sweeps import AT_START, OFTEN, inputs, runs, sweep_once, timers

pytestmark = pytest.mark.anyio


async def test_a_run_with_nothing_open_whose_process_dies_is_finalised() -> None:
    """rulings §1.8: a thousand warm chats must not boot at once."""
    kit = await Kit().open()
    session = await kit.session()
    seq = await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.write(info, 0, chunk(), turn_complete(seq))
    await kit.services.recovery.worker_gone("worker_1")

    assert (await kit.current(session)).id == info.run_id
    assert (await kit.run(info.run_id)).state is RunState.COMPLETED


async def test_a_run_that_dies_in_mid_turn_is_queued_again_at_once() -> None:
    """rulings §1.6, §1.8: the same run, the next attempt, nothing written for it."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        first = await worker.claim()
        await worker.write(first, 0, chunk("half"))
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker("worker_2") as worker:
        second = await worker.claim()

    assert (second.run_id, second.attempt) == (first.run_id, 2)
    assert second.recovered
    assert errors_in(await kit.out(session)) == []


async def test_the_third_death_in_a_row_without_progress_ends_the_run_visibly() -> None:
    """rulings §1.8, §1.9"""
    kit = await Kit().open()
    session = await kit.session()
    poison = await kit.say(session, "poison")
    for number in range(limits.INTERRUPTIONS_MAX):
        async with kit.worker(f"worker_{number}") as worker:
            info = await worker.claim()
            await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.services.recovery.worker_gone(f"worker_{number}")

    assert info.attempt == limits.INTERRUPTIONS_MAX
    assert (await kit.run(info.run_id)).state is RunState.CRASHED
    assert cursors_in(await kit.out(session)) == [poison]
    assert len(errors_in(await kit.out(session))) == 1
    assert (await kit.row(session)).current_run_id == info.run_id


async def test_a_committed_turn_starts_the_count_of_deaths_anew() -> None:
    """rulings §1.8: progress is a turn-complete written by this run."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "one")
    for number in range(2):
        async with kit.worker(f"worker_{number}") as worker:
            info = await worker.claim()
            await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.services.recovery.worker_gone(f"worker_{number}")
    assert (await kit.current(session)).interruptions == 2
    async with kit.worker("worker_9") as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.write(info, 0, turn_complete(0))
        await kit.say(session, "two")
    await kit.services.recovery.worker_gone("worker_9")

    run = await kit.current(session)
    assert (run.state, run.interruptions) == (RunState.QUEUED, 1)


async def test_a_drain_costs_nothing() -> None:
    """rulings §1.8: drains do not count as deaths."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    for number in range(limits.INTERRUPTIONS_MAX + 2):
        async with kit.worker(f"worker_{number}", credit=1) as worker:
            info = await worker.claim()
            await in_state(kit, info.run_id, RunState.RUNNING)
            await worker.finish(info, "interrupted")

    run = await kit.current(session)
    assert (run.state, run.interruptions) == (RunState.QUEUED, 0)


async def test_a_parked_run_whose_process_dies_is_continued_by_the_next_record() -> None:
    """P-10, rulings §1.18"""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
    await kit.services.recovery.worker_gone("worker_1")
    assert (await kit.run(info.run_id)).state is RunState.COMPLETED
    await kit.say(session, "hi")
    async with kit.worker("worker_2") as worker:
        successor = await worker.claim()

    assert successor.run_id != info.run_id


async def test_a_parked_task_whose_process_dies_waits_on_and_keeps_its_journal() -> None:
    """rulings §1.18: other runs get their next attempt with the journal."""
    kit = await Kit().open()
    async with kit.worker() as worker:
        await kit.services.runs.trigger(kit.environment, "plain", {"payload": 1})
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.call(info, "journal.put", position=0, key="step", result=b"7")
        until_ms = kit.clock.now_ms() + 10_000
        await worker.call(info, "suspend", wait={"kind": "until", "until_ms": until_ms})
    await kit.services.recovery.worker_gone("worker_1")
    assert (await kit.run(info.run_id)).state is RunState.SUSPENDED
    async with kit.worker("worker_2") as worker:
        kit.clock.advance(10_000)
        assert await timers.due(kit.services) == 1
        again = await worker.claim()

    assert (again.run_id, again.attempt, again.recovered) == (info.run_id, 2, True)
    assert again.journal == ((0, "step", b"7"),)


async def test_a_link_that_stays_away_past_its_grace_loses_its_runs() -> None:
    """rulings §2.6: 3 s without reconnecting."""
    # L-6
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
    assert await timers.lost(kit.services) == 0
    assert (await kit.run(info.run_id)).state is RunState.RUNNING
    kit.clock.advance(limits.LINK_GRACE_MS)

    assert await timers.lost(kit.services) == 1
    assert (await kit.run(info.run_id)).state is RunState.QUEUED


async def test_it_is_the_grace_of_the_link_that_gives_them_away_and_no_later_sweep() -> None:
    """rulings §2.6: a lease ends much later, and only an end of the lease is seen by a sweep."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
    assert kit.services.links.next_grace_s() == limits.LINK_GRACE_MS / 1000
    kit.clock.advance(limits.LINK_GRACE_MS)

    assert await sweep_once(kit.services, OFTEN) == 0
    assert (await kit.run(info.run_id)).state is RunState.RUNNING
    # The timer of the link: it is due now, so this does not wait for the next sweep.
    assert kit.services.links.next_grace_s() == 0
    await timers.until_lost(kit.services, 0)
    assert await timers.lost(kit.services) == 1
    async with kit.worker("worker_2") as worker:
        again = await worker.claim()

    assert (again.run_id, again.attempt) == (info.run_id, 2)
    assert await kit.state.worker("worker_1") is None


async def test_a_lease_that_runs_out_takes_the_runs_away() -> None:
    """rulings §2.6: 30 s without a heartbeat, connected or not."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        kit.clock.advance(limits.LEASE_MS + 1)
        assert await runs.expired_workers(kit.services) == 1

    assert (await kit.run(info.run_id)).state is RunState.QUEUED


async def test_a_claim_that_nobody_confirms_is_queued_again() -> None:
    """rulings §2.6: 10 s to start a claimed run; it is no death."""
    # L-3
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker(credit=1) as worker:
        info = await worker.claim(start=False)
        kit.clock.advance(limits.START_MS_MAX + 1)
        assert await runs.unstarted(kit.services) == 1

    run = await kit.current(session)
    assert (run.id, run.state, run.interruptions) == (info.run_id, RunState.QUEUED, 0)


async def test_a_recovery_that_was_cut_short_is_finished_by_a_sweep() -> None:
    """rulings §1.8: the worker is forgotten, its runs are not decided yet."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
    await kit.state.remove_worker("worker_1")

    assert await runs.orphaned(kit.services) == 1
    assert (await kit.run(info.run_id)).state is RunState.QUEUED
    assert await runs.orphaned(kit.services) == 0


async def test_a_queued_session_run_whose_version_nobody_serves_moves_on_after_5_s() -> None:
    """rulings §1.19"""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker(version="old") as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("half"))
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker("worker_2", version="new") as worker:
        assert await runs.stranded(kit.services) == 0
        kit.clock.advance(limits.VERSION_WAIT_MS + 1)
        assert await runs.stranded(kit.services) == 1
        successor = await worker.claim()

    assert successor.version == "new"
    assert successor.run_id != info.run_id
    assert errors_in(await kit.out(session)) == []
    # rulings §1.5: the half answer above is to be given again, and the successor is told so.
    assert msgspec.json.decode(successor.payload)["answersAgain"] is True


# --- records and their readers --------------------------------------------------------------


async def test_a_record_wakes_the_suspended_run_and_is_in_the_wake() -> None:
    """rulings §1.1"""
    # L-12
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        seq = await kit.say(session, "hi")
        wake = await worker.expect(Wake)

    assert [record.seq_num for record in wake.records] == [seq]
    assert not wake.timed_out
    assert (await kit.run(info.run_id)).state is RunState.RUNNING


async def test_a_record_stored_just_before_the_suspension_ends_it_at_once() -> None:
    """rulings §1.1: suspending sets the state first and reads the tail afterwards."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        seq = await kit.say(session, "hi")
        await worker.suspend(info, None)
        wake = await worker.expect(Wake)

    assert [record.seq_num for record in wake.records] == [seq]


async def test_an_append_to_a_run_that_is_live_here_asks_no_store() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.say(session, "one")
        assert kit.services.links.is_live(session.id)
        await worker.suspend(info, 0)
        assert not kit.services.links.is_live(session.id)


async def test_a_run_check_that_fails_does_not_fail_the_append_and_is_repeated() -> None:
    """rulings §1.1"""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.finish(info)
        found = kit.state.session

        async def away(*_: object) -> None:
            raise Unavailable("the store is away")

        kit.state.session = away  # type: ignore[method-assign,assignment]
        await kit.say(session, "hi")
        kit.state.session = found  # type: ignore[method-assign]
        assert (await kit.row(session)).current_run_id == info.run_id
        await inputs.repeat_checks(kit.services)
        successor = await worker.claim()

    assert successor.run_id != info.run_id


async def test_a_record_whose_run_check_a_crash_prevented_is_found_at_start() -> None:
    """rulings §1.1, §2.2"""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.finish(info)
        await kit.say(session, "hi", check=False)
        restarted = kit.new_server()
        assert await sweep_once(restarted, AT_START) == 1
        assert await sweep_once(restarted, AT_START) == 0
        successor = await worker.claim()

    assert successor.run_id != info.run_id


async def test_a_wake_that_a_crash_prevented_is_made_at_start() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        await kit.say(session, "hi", check=False)
    restarted = kit.new_server()
    await sweep_once(restarted, AT_START)
    held = [HeldRun(info.run_id, info.fence)]
    async with kit.worker(held=held, services=restarted) as worker:
        wake = await worker.expect(Wake)

    assert len(wake.records) == 1


async def test_a_wait_that_is_due_wakes_its_run() -> None:
    kit = await Kit().open()
    await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None, until_ms=kit.clock.now_ms() + 1_000)
        assert await timers.due(kit.services) == 0
        kit.clock.advance(1_000)
        assert await timers.due(kit.services) == 1
        wake = await worker.expect(Wake)

    assert wake.timed_out


async def test_eviction_lets_go_of_a_parked_run_and_the_next_record_continues() -> None:
    """rulings §1.18"""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        assert await worker.call(info, "evict") == {"evicted": True}
        assert (await kit.run(info.run_id)).state is RunState.COMPLETED
        await kit.say(session, "hi")
        successor = await worker.claim()

    assert successor.run_id != info.run_id


async def test_a_wake_that_was_faster_prevents_the_eviction() -> None:
    """rulings §1.18: compare-and-set from SUSPENDED."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        await kit.say(session, "hi")
        assert await worker.call(info, "evict") == {"evicted": False}


# --- raw tasks on a session -----------------------------------------------------------------


async def test_a_raw_task_on_a_session_gets_no_successor_by_itself() -> None:
    """rulings §1.16: only the next append starts another."""
    kit = await Kit().open()
    async with kit.worker() as worker:
        session = await kit.session(task_id="plain")
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.say(session, "one")
        await worker.call(info, "consumed", seq_num=0)
        await worker.finish(info)
        assert (await kit.row(session)).current_run_id == info.run_id
        await kit.say(session, "two")
        successor = await worker.claim()

    assert successor.consumed == 0


async def test_the_consumed_cursor_is_handed_to_the_next_attempt_too() -> None:
    """rulings §1.16"""
    kit = await Kit().open()
    async with kit.worker() as worker:
        session = await kit.session(task_id="plain")
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.say(session, "one")
        await worker.call(info, "consumed", seq_num=0)
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker("worker_2") as worker:
        again = await worker.claim()

    assert (again.run_id, again.attempt, again.consumed) == (info.run_id, 2, 0)


async def test_the_visible_start_of_in_follows_what_is_committed_in_steps() -> None:
    """rulings §1.17"""
    kit = await Kit().open()
    session = await kit.session()
    channel = kit.channel(session, "in")
    for _ in range(12):
        await kit.streams.append(channel, [NewRecord(b"{}")] * 1_000)
    outbox = kit.services.outbox
    assert not await outbox.trim_input(session, InputCursor(10_900))
    assert await outbox.trim_input(session, InputCursor(11_500))
    assert not await outbox.trim_input(session, InputCursor(11_600))
    assert (await kit.streams.bounds(channel)).first == 1_500


async def test_every_sweep_is_safe_to_run_when_there_is_nothing_to_repair() -> None:
    kit = await Kit(tasks=[TaskDeclaration(task_id="chatty", kind="agent")]).open()
    await kit.session()
    assert await sweep_once(kit.services, OFTEN) == 0
