"""A wake always reaches its run: whatever is lost, late or doubled on the way (rulings §1.1, §3).

By the state a woken run is RUNNING, and nobody else looks after it. So each test here asks at the
far end: whether the worker is told.
"""

from __future__ import annotations

import anyio
import pytest
from engine_kit import Kit, in_state

from everturn.errors import Unavailable
from everturn.protocol.link import Claim, HeldRun, Wake
from everturn.protocol.runs import RunInfo
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.storage.ports.rows import Run, Session

pytestmark = pytest.mark.anyio


async def test_a_record_is_stored_when_its_reader_is_looked_after() -> None:
    """rulings §1.1: the other way round, a crash between the two leaves a reader of nothing."""
    kit = await Kit().open()
    session = await kit.session()
    channel = kit.channel(session, "in")
    stored_by_then: list[int] = []
    ensure_run = kit.services.dispatch.ensure_run

    async def look(session: Session) -> None:
        stored_by_then.append(len(await kit.streams.read(channel, after=None)))
        await ensure_run(session)

    kit.services.dispatch.ensure_run = look  # type: ignore[method-assign]  # the seam of this test
    await kit.services.inbox.append(session, "in", b'{"kind":"message","payload":{}}', "p1")

    assert stored_by_then == [1]


async def test_a_run_is_found_although_every_hint_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """P-3: wake-ups are hints, so a waiting worker also looks by itself."""
    monkeypatch.setattr(limits, "SWEEP_MS", 20)
    kit = await Kit().open()
    kit.wakeups.notify = lambda topic: None  # type: ignore[method-assign]  # hints are lost
    async with kit.worker() as worker:
        # What connecting itself made it look for is over when nothing moves any more.
        await anyio.wait_all_tasks_blocked()
        session = await kit.session()
        claim = await worker.expect(Claim)

    assert claim.run.session_id == session.id


async def test_a_wake_whose_answer_the_store_lost_reaches_its_run() -> None:
    """The state says RUNNING, and the server was told that the store is away."""
    kit = await Kit().open()
    session = await kit.session()
    wake_run = kit.state.wake_run

    async def answer_lost(run_id: str, *, now_ms: int) -> Run | None:
        kit.state.wake_run = wake_run  # type: ignore[method-assign]  # back again
        await wake_run(run_id, now_ms=now_ms)
        raise Unavailable("the answer is lost")

    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        kit.state.wake_run = answer_lost  # type: ignore[method-assign,assignment]  # once
        seq = await kit.say(session, "hi")
        assert (await kit.run(info.run_id)).state is RunState.RUNNING
        wake = await worker.expect(Wake)

    assert [record.seq_num for record in wake.records] == [seq]


async def test_a_suspend_that_is_sent_again_does_not_count_as_being_awake() -> None:
    """A worker that lost its connection repeats what was not answered, before it is told again."""
    kit = await Kit().open()
    session = await kit.session()
    wait = {"kind": "channel", "after": None}
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.call_raw(info, "suspend", id="s1", wait=wait)
    seq = await kit.say(session, "hi")
    resent = _hold_back_time(kit)
    async with kit.worker(held=[_held(info)]) as worker:
        await worker.call_raw(info, "suspend", id="s1", wait=wait)
        resent.set()
        wake = await worker.expect(Wake)

    assert [record.seq_num for record in wake.records] == [seq]


async def test_a_run_that_went_on_by_itself_is_not_told_again() -> None:
    """A new call of the run says that it is awake: a second Wake could end its next wait."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        await kit.say(session, "hi")
        await worker.expect(Wake)
    resent = _hold_back_time(kit)
    async with kit.worker(held=[_held(info)]) as worker:
        await worker.call_raw(info, "tags", id="t1", tags=["x"])
        resent.set()
        await anyio.wait_all_tasks_blocked()

    assert not [frame for frame in worker.frames if isinstance(frame, Wake)]


def _held(info: RunInfo) -> HeldRun:
    return HeldRun(info.run_id, info.fence)


def _hold_back_time(kit: Kit) -> anyio.Event:
    """Sleeps of the server end when the event is set."""
    over = anyio.Event()

    async def sleep(seconds: float) -> None:
        await over.wait()

    kit.clock.sleep = sleep  # type: ignore[method-assign]  # time stands still
    return over
