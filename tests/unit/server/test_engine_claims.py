"""Claims, fences and appends over the link."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from engine_kit import Kit, chunk, in_state, turn_complete

from everturn.errors import Fenced
from everturn.protocol.link import (
    Acked,
    Append,
    Credit,
    HeldRun,
    Lost,
    Refused,
    Started,
)
from everturn.protocol.records import NewRecord, parse_input
from everturn.protocol.runs import TaskDeclaration
from everturn.protocol.sessions import CreateSession, TriggerConfig
from everturn.rules.run_states import RunState

pytestmark = pytest.mark.anyio


async def test_a_session_run_is_claimed_started_and_its_chunks_are_stored() -> None:
    kit = await Kit().open()
    async with kit.worker() as worker:
        session = await kit.session()
        info = await worker.claim()
        acked = await worker.write(info, 0, chunk("a"), chunk("b"))

    assert info.session_key == "chat-1"
    assert acked.seq_nums == [0, 1]
    assert [record.part for record in await kit.out(session)] == [0, 1]


async def test_the_fence_is_raised_before_the_claim_is_sent() -> None:
    """rulings §1.2: the previous holder can write nothing once the claim is out."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        first = await worker.claim()
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker("worker_2") as worker:
        second = await worker.claim(start=False)
        refused = None
        try:
            await kit.streams.append(
                kit.channel(session, "out"), [chunk()], fence=first.fence, first_part=0
            )
        except Fenced as error:
            refused = error

    assert second.fence == first.fence + 1
    assert refused is not None


async def test_frames_of_one_run_are_acknowledged_in_order() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        for part in range(50):
            worker.send(Append(info.run_id, info.fence, part, [chunk(str(part))]))
        acked = [await worker.expect(Acked) for _ in range(50)]

    assert [frame.first_part for frame in acked] == list(range(50))
    assert [record.part for record in await kit.out(session)] == list(range(50))


async def test_a_resent_append_adds_nothing_and_gets_the_same_numbers() -> None:
    """P-5, and rulings §3: part numbers make resending harmless."""
    # L-4
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        first = await worker.write(info, 0, chunk("a"))
        again = await worker.write(info, 0, chunk("a"))

    assert again.seq_nums == first.seq_nums
    assert len(await kit.out(session)) == 1


async def test_an_append_of_a_run_that_is_not_held_is_refused() -> None:
    """P-4: a run whose lease was taken over writes nothing."""
    kit = await Kit().open()
    await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        worker.send(Append(info.run_id, info.fence + 1, 0, [chunk()]))
        refused = await worker.expect(Refused)

    assert refused.code == "fenced"


async def test_a_record_over_its_limit_is_refused_alone() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        worker.send(Append(info.run_id, info.fence, 0, [chunk("fine")]))
        worker.send(Append(info.run_id, info.fence, 1, [NewRecord(b"x" * (1 << 20))]))
        refused = await worker.expect(Refused)

    assert (refused.first_part, refused.code) == (1, "too_large")
    assert len(await kit.out(session)) == 1


async def test_the_first_message_is_in_the_log_before_the_claim_is_sent() -> None:
    """R-010, rulings §1.4: stripped from the payload, stored as `boot:<run>`, once."""
    kit = await Kit().open()
    session = await kit.session(
        trigger="submit-message", message={"id": "m1", "role": "user", "parts": []}
    )
    async with kit.worker() as worker:
        info = await worker.claim()
        stored = await kit.streams.read(kit.channel(session, "in"), after=None)

    assert b'"m1"' not in info.payload
    assert b"trigger" not in info.payload
    assert [parse_input(record).payload["message"]["id"] for record in stored] == ["m1"]
    assert (await kit.run(info.run_id)).boot_input is None


async def test_the_first_message_survives_a_crash_right_after_the_session_row() -> None:
    """rulings §1.4: the claim appends it again, harmlessly."""
    kit = await Kit().open()
    created = kit.services.dispatch.created

    async def crash(*_: object) -> None:
        return None

    kit.services.dispatch.created = crash  # type: ignore[method-assign,assignment]
    session = await kit.session(trigger="submit-message", message={"id": "m1"})
    kit.services.dispatch.created = created  # type: ignore[method-assign]
    async with kit.worker() as worker:
        await worker.claim()
        stored = await kit.streams.read(kit.channel(session, "in"), after=None)

    assert len(stored) == 1


async def test_a_worker_that_comes_back_keeps_its_runs() -> None:
    """rulings §3: held runs are kept over a lost connection; resending is harmless."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("a"))
    async with kit.worker(held=[HeldRun(info.run_id, info.fence)]) as worker:
        assert worker.welcome.lost == []
        await worker.write(info, 1, chunk("b"), turn_complete(None))

    assert [record.part for record in await kit.out(session)] == [0, 1, 2]


async def test_welcome_names_the_runs_that_were_given_away_meanwhile() -> None:
    # L-2
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
    await kit.services.recovery.worker_gone("worker_1")
    async with kit.worker(held=[HeldRun(info.run_id, info.fence)], credit=0) as worker:
        assert worker.welcome.lost == [info.run_id]


async def test_a_late_confirmation_of_a_lost_claim_is_told_that_it_is_lost() -> None:
    kit = await Kit().open()
    await kit.session()
    async with kit.worker(credit=1) as worker:
        info = await worker.claim(start=False)
        await kit.services.runs.cancel(kit.environment.id, info.run_id, "no")
        worker.send(Started(info.run_id, info.fence))
        lost = await worker.expect(Lost)

    assert lost.run_id == info.run_id


async def test_what_a_run_asks_for_waits_until_its_start_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database overtakes: to suspend was refused, and the run was RUNNING with nobody at it."""
    kit = await Kit().open()
    await kit.session()
    start_run, stored = kit.state.start_run, anyio.Event()

    async def slowly(*args: Any, **options: Any) -> bool:
        await stored.wait()
        return await start_run(*args, **options)

    monkeypatch.setattr(kit.state, "start_run", slowly)
    async with kit.worker() as worker, anyio.create_task_group() as tasks:
        info = await worker.claim()
        tasks.start_soon(worker.suspend, info, None)
        with anyio.move_on_after(0.05):
            await in_state(kit, info.run_id, RunState.SUSPENDED)
        assert (await kit.run(info.run_id)).state is RunState.CLAIMED
        stored.set()
    assert (await kit.run(info.run_id)).state is RunState.SUSPENDED


async def test_credit_bounds_what_is_claimed() -> None:
    # L-3
    kit = await Kit().open()
    async with kit.worker(credit=1) as worker:
        for name in ("one", "two"):
            await kit.session(name)
        first = await worker.claim()
        await in_state(kit, first.run_id, RunState.RUNNING)
        queued = await kit.state.claim_runs("nobody", limit=5, now_ms=kit.clock.now_ms())
        assert list(queued) == []
        worker.send(Credit(1))
        second = await worker.claim()

    assert {first.session_key, second.session_key} == {"one", "two"}


async def test_a_new_session_goes_to_the_declared_queue_of_its_task_after_a_restart_too() -> None:
    """The server that makes the run has not seen the worker that declared the queue."""
    agent = TaskDeclaration(task_id="chatty", kind="agent", queue="shared")
    kit = await Kit(tasks=[agent]).open()
    async with kit.worker(credit=0):
        pass
    body = CreateSession(
        type="chat.agent", taskIdentifier="chatty", triggerConfig=TriggerConfig(basePayload={})
    )
    opened = await kit.new_server().sessions.create(kit.environment.id, body)

    assert opened.run.queue == "shared"


async def test_suspending_again_while_the_wait_is_over_already_is_no_loss_of_the_run() -> None:
    """A worker repeats the call after a restart of the server, which has woken the run meanwhile
    without a slot to give it."""
    kit = await Kit().open()
    async with kit.worker() as worker:
        session = await kit.session()
        info = await worker.claim()
        await worker.suspend(info, None)
        await in_state(kit, info.run_id, RunState.SUSPENDED)
        woken = await kit.state.wake_run(info.run_id, now_ms=kit.clock.now_ms(), take_slot=False)
        assert woken is not None
        await worker.suspend(info, None)
        assert (await kit.current(session)).id == info.run_id
