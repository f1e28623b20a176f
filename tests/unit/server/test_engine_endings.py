"""How session runs end, and what the session needs then."""

from __future__ import annotations

import msgspec
import pytest
from engine_kit import Kit, chunk, cursors_in, errors_in, in_state, turn_complete

from everturn.protocol.link import Append, Cancel, Lost, Refused, Wake
from everturn.protocol.runs import RunOutcome
from everturn.rules.run_states import RunEvent, RunState
from everturn.server.sweeps import OFTEN, runs, sweep_once

pytestmark = pytest.mark.anyio


async def test_a_run_that_ends_with_nothing_open_starts_no_successor() -> None:
    """rulings §1.10"""
    kit = await Kit().open()
    session = await kit.session()
    seq = await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk(), turn_complete(seq))
        await worker.finish(info, cursor=seq, turns=1)

    assert (await kit.current(session)).id == info.run_id
    assert (await kit.row(session)).cursor.seq_num == seq
    assert list(await kit.state.unchecked_sessions(limit=10)) == []


async def test_a_message_that_arrives_as_the_run_ends_gets_a_successor() -> None:
    """rulings §1.1: the state is set first, the tail read afterwards."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await kit.say(session, "late", check=False)
        await worker.finish(info)
        successor = await worker.claim()

    assert successor.run_id != info.run_id
    assert b'"continuation":true' in successor.payload
    assert b'"previousRunId":"' + info.run_id.encode() in successor.payload


async def test_a_crash_between_the_end_and_the_successor_is_found_by_a_sweep() -> None:
    """rulings §1.10: a session stays unchecked between the two steps."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await kit.say(session, "late", check=False)
        await kit.state.finish_run(info.run_id, RunEvent.COMPLETE, now_ms=kit.clock.now_ms())
        assert await sweep_once(kit.services, {"unchecked": OFTEN["unchecked_sessions"]}) == 1
        successor = await worker.claim()

    assert successor.run_id == (await kit.row(session)).current_run_id


async def test_a_run_that_fails_in_mid_turn_closes_the_turn_visibly_and_goes_on() -> None:
    """rulings §1.9, §1.21: error chunk and turn-complete in one append; the rest is answered."""
    # W-83
    kit = await Kit().open()
    session = await kit.session()
    first = await kit.say(session, "first")
    await kit.say(session, "second")
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("half an ans"))
        await worker.finish(info, "failed", error={"type": "STRING_ERROR", "raw": "x"}, turns=1)
        successor = await worker.claim()
        out = await kit.out(session)

    assert len(errors_in(out)) == 1
    assert cursors_in(out) == [first]
    assert successor.run_id != info.run_id


async def test_settling_again_fails_no_second_message() -> None:
    """rulings §1.9: every step may be repeated by a sweep after a crash."""
    kit = await Kit().open()
    session = await kit.session()
    first = await kit.say(session, "first")
    await kit.say(session, "second")
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("half"))
        run = await kit.run(info.run_id)
        kit.services.dispatch.continue_session = _nothing  # type: ignore[method-assign,assignment]
        await worker.finish(info, "failed", error={"type": "STRING_ERROR", "raw": "x"}, turns=1)
        del kit.services.dispatch.continue_session
        await kit.services.finishing.settle(await kit.run(run.id))

    assert cursors_in(await kit.out(session)) == [first]
    assert (await kit.row(session)).current_run_id != info.run_id


async def test_a_run_that_fails_before_its_first_turn_starts_no_successor() -> None:
    """rulings §1.10: a failing import fails the oldest message and waits for the next append."""
    kit = await Kit().open()
    session = await kit.session()
    first = await kit.say(session, "first")
    second = await kit.say(session, "second")
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.finish(info, "failed", error={"type": "STRING_ERROR", "raw": "boom"})
        assert (await kit.row(session)).current_run_id == info.run_id
        assert cursors_in(await kit.out(session)) == [first]
        await kit.say(session, "third")
        again = await worker.claim()

    assert again.run_id != info.run_id
    assert second == first + 1


async def test_what_the_server_tells_a_reader_holds_nothing_of_the_authors_error() -> None:
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.finish(
            info, "failed", error={"type": "BUILT_IN_ERROR", "message": "password=hunter2"}
        )

    assert "hunter2" not in errors_in(await kit.out(session))[0]


async def test_cancelling_in_mid_turn_is_final_at_once_and_fails_the_turn_visibly() -> None:
    """rulings §1.9"""
    kit = await Kit().open()
    session = await kit.session()
    seq = await kit.say(session, "hi")
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.write(info, 0, chunk("half"))
        run = await kit.services.runs.cancel(kit.environment.id, info.run_id, "enough")
        cancel = await worker.expect(Cancel)
        again = await kit.services.runs.cancel(kit.environment.id, info.run_id, "enough")

    assert run is not None
    assert run.state is RunState.CANCELED
    assert again == run
    assert cancel.reason == "enough"
    assert cursors_in(await kit.out(session)) == [seq]
    assert (await kit.row(session)).current_run_id == info.run_id


async def test_a_cancelled_run_writes_nothing_more() -> None:
    """P-4: the fence is raised before the turn is closed."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("half"))
        await kit.services.runs.cancel(kit.environment.id, info.run_id, "enough")
        before = len(await kit.out(session))
        worker.send(Append(info.run_id, info.fence, 1, [chunk("more")]))
        refused = await worker.expect(Refused)

    assert refused.code == "fenced"
    assert len(await kit.out(session)) == before


async def test_a_run_cancelled_before_anybody_ran_it_leaves_its_message_to_a_successor() -> None:
    """P-3: nobody began a turn, so nothing has failed."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    queued = await kit.current(session)
    await kit.services.runs.cancel(kit.environment.id, queued.id, "no")

    assert errors_in(await kit.out(session)) == []
    assert (await kit.current(session)).state is RunState.QUEUED


async def test_finish_may_be_repeated() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        outcome = msgspec.to_builtins(RunOutcome(kind="completed"))
        first = await worker.call_raw(info, "finish", id="same", outcome=outcome)
        again = await worker.call_raw(info, "finish", id="same", outcome=outcome)

    assert first == again
    assert first.error is None
    assert (await kit.current(session)).state is RunState.COMPLETED


async def test_a_swap_from_outside_ends_and_fences_the_old_run() -> None:
    """rulings §1.11"""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        old = await worker.claim()
        await in_state(kit, old.run_id, RunState.RUNNING)
        run_id, swapped = await kit.services.dispatch.end_and_continue(
            session, old.run_id, "upgrade"
        )
        new = await worker.claim()
        lost = await worker.expect(Lost)
        repeated = await kit.services.dispatch.end_and_continue(session, old.run_id, "upgrade")

    assert swapped
    assert new.run_id == run_id
    assert lost.run_id == old.run_id
    assert repeated == (run_id, False)
    assert (await kit.run(old.run_id)).state is RunState.COMPLETED


async def test_a_run_that_swaps_itself_ends_completed_and_touches_nothing() -> None:
    """rulings §1.11: a superseded run ends COMPLETED, whatever is open."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        old = await worker.claim()
        await in_state(kit, old.run_id, RunState.RUNNING)
        await kit.say(session, "hi")
        answer = await worker.call(old, "continue", reason="upgrade")
        new = await worker.claim()
        await worker.finish(old)

    assert answer == {"runId": new.run_id, "swapped": True}
    assert (await kit.run(old.run_id)).state is RunState.COMPLETED
    assert (await kit.row(session)).current_run_id == new.run_id


async def test_a_closed_session_gets_no_successor() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await kit.say(session, "hi", check=False)
        await kit.state.close_session(
            kit.environment.id, session.key, reason=None, now_ms=kit.clock.now_ms()
        )
        await worker.finish(info)

    assert (await kit.row(session)).current_run_id == info.run_id


async def test_a_parent_that_waits_gets_the_result_of_its_child() -> None:
    kit = await Kit().open()
    async with kit.worker() as worker:
        parent_run, _ = await kit.services.runs.trigger(kit.environment, "plain", {"payload": 1})
        parent = await worker.claim()
        started = await worker.call(
            parent,
            "trigger",
            task_id="plain",
            payload=b"2",
            payload_type="application/json",
            options={},
            wait=True,
        )
        child = await worker.claim()
        await in_state(kit, parent.run_id, RunState.RUNNING)
        await worker.call(parent, "suspend", wait={"kind": "run", "ref": started["runId"]})
        await in_state(kit, child.run_id, RunState.RUNNING)
        await worker.finish(child, output=b"42")
        wake = await worker.expect(Wake)

    assert wake.run_id == parent_run.id
    assert wake.result is not None
    assert wake.result["output"] == b"42"


async def test_children_of_a_cancelled_run_are_cancelled() -> None:
    """tasks-and-runs §5.5"""
    kit = await Kit().open()
    await _register(kit)
    run, _ = await kit.services.runs.trigger(kit.environment, "plain", {"payload": 1})
    child, _ = await kit.services.runs.trigger(
        kit.environment, "plain", {"payload": 1, "options": {"parentRunId": run.id}}
    )
    await kit.services.runs.cancel(kit.environment.id, run.id, "no")

    assert (await kit.run(child.id)).state is RunState.CANCELED


async def test_a_failing_task_is_tried_again_after_its_delay_and_then_fails() -> None:
    """tasks-and-runs §7: three attempts by default."""
    kit = await Kit().open()
    error = {"type": "BUILT_IN_ERROR", "message": "no"}
    async with kit.worker() as worker:
        run, _ = await kit.services.runs.trigger(kit.environment, "plain", {"payload": 1})
        for attempt in (1, 2, 3):
            info = await worker.claim()
            assert info.attempt == attempt
            await in_state(kit, info.run_id, RunState.RUNNING)
            await worker.finish(info, "failed", error=error)
            kit.clock.advance(5_000)  # past the delay, within the lease
            kit.services.links.kick()

    assert (await kit.run(run.id)).state is RunState.FAILED


async def _nothing(*_: object) -> None:
    return None


async def test_a_run_past_its_longest_duration_is_timed_out_and_its_turn_failed() -> None:
    """rulings §1.9: also when its worker does not stop it."""
    kit = await Kit().open()
    async with kit.worker(credit=0):
        pass
    session = await kit.session()
    await kit.state.continue_session(
        session.id,
        replacing=(await kit.current(session)).id,
        make_run=lambda row, previous: msgspec.structs.replace(
            kit.services.dispatch.session_run(row, previous), max_duration_s=5
        ),
        reason="manual",
        now_ms=kit.clock.now_ms(),
    )
    seq = await kit.say(session, "hi")
    async with kit.worker("worker_2", credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        assert await runs.overdue(kit.services) == 0
        kit.clock.advance(66_000)
        assert await runs.overdue(kit.services) == 1
        cancel = await worker.expect(Cancel)

    assert cancel.run_id == info.run_id
    assert (await kit.run(info.run_id)).state is RunState.TIMED_OUT
    assert cursors_in(await kit.out(session)) == [seq]


async def _register(kit: Kit) -> None:
    """Make the tasks known; the worker goes away again."""
    async with kit.worker(credit=0):
        pass
