"""What ends by itself, and what stays its own trouble: silent links, clocks, logs that are broken,
attempts that give up."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from engine_kit import Kit, chunk, cursors_in, errors_in, in_state, turn_complete, until

from everturn.errors import StorageCorrupt, Unavailable
from everturn.protocol.link import Beat
from everturn.protocol.records import ChannelName
from everturn.protocol.runs import TaskDeclaration
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.server.sweeps import runs
from everturn.testing.virtual_loop import LoopClock, run_virtual

pytestmark = pytest.mark.anyio

GAVE_UP = {"type": "INTERNAL_ERROR", "code": "TASK_RUN_CRASHED", "message": "it could not read"}


async def test_attempts_that_give_up_are_counted_and_the_third_ends_the_run_visibly() -> None:
    """rulings §1.8: a history that can never be read must not boot for ever."""
    kit = await Kit().open()
    session = await kit.session()
    poison = await kit.say(session, "hi")
    for number in range(limits.INTERRUPTIONS_MAX):
        async with kit.worker(f"worker_{number}", credit=1) as worker:
            info = await worker.claim()
            await in_state(kit, info.run_id, RunState.RUNNING)
            await worker.finish(info, "interrupted", error=GAVE_UP)

    run = await kit.run(info.run_id)
    assert run.state is RunState.CRASHED
    assert run.error is not None
    assert run.error["message"] == "it could not read 3 times in a row"
    assert cursors_in(await kit.out(session)) == [poison]
    assert len(errors_in(await kit.out(session))) == 1


async def test_an_attempt_that_gives_up_after_progress_starts_the_count_anew() -> None:
    """rulings §1.8"""
    kit = await Kit().open()
    session = await kit.session()
    for number in range(limits.INTERRUPTIONS_MAX + 1):
        seq = await kit.say(session, "hi")
        async with kit.worker(f"worker_{number}", credit=1) as worker:
            info = await worker.claim()
            await worker.write(info, 0, chunk(), turn_complete(seq))
            await kit.say(session, "more")
            await worker.finish(info, "interrupted", error=GAVE_UP)

    run = await kit.current(session)
    assert (run.state, run.interruptions) == (RunState.QUEUED, 1)


class BrokenLog:
    """A stream store in which one channel cannot be read back."""

    def __init__(self, streams: Any, broken: ChannelName) -> None:
        self._streams = streams
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams, name)

    async def read_back(self, channel: ChannelName, **options: Any) -> Any:
        if channel == self._broken:
            raise StorageCorrupt("streams.db: segment 7 of channel 3")
        return await self._streams.read_back(channel, **options)


async def test_a_log_that_cannot_be_read_ends_its_own_run_and_holds_up_nobody_elses() -> None:
    """Load and bounds: a corrupt page is the trouble of the session it lies in."""
    kit = await Kit().open()
    sick, sound = await kit.session("sick"), await kit.session("sound")
    for session in (sick, sound):
        await kit.say(session, "hi")
    async with kit.worker() as worker:
        held = {}
        for _ in range(2):
            info = await worker.claim()
            await in_state(kit, info.run_id, RunState.RUNNING)
            held[info.session_id] = info
    kit.services.streams = BrokenLog(kit.streams, kit.channel(sick, "out"))

    await kit.services.recovery.worker_gone("worker_1")

    broken, other = await kit.run(held[sick.id].run_id), await kit.run(held[sound.id].run_id)
    assert (broken.state, other.state) == (RunState.SYSTEM_FAILURE, RunState.QUEUED)
    assert broken.error is not None
    assert broken.error["message"] == "streams.db: segment 7 of channel 3"
    # It stays unsettled, and is tried again beside the others.
    assert await runs.unchecked(kit.services) == 0


async def test_a_report_about_a_session_that_cannot_be_settled_is_taken() -> None:
    """The run is over. Refused, its worker would report it again and again."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        kit.services.streams = BrokenLog(kit.streams, kit.channel(session, "out"))
        await worker.finish(info, "completed")

    assert (await kit.run(info.run_id)).state is RunState.COMPLETED


async def test_a_worker_whose_lease_holds_by_the_stopwatch_survives_a_clock_set_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every answer there is would be interrupted at once."""
    kit = await Kit(tasks=[TaskDeclaration(task_id="plain", kind="task")]).open()
    began = kit.clock.monotonic()
    monkeypatch.setattr(kit.clock, "monotonic", lambda: began)
    async with kit.worker() as worker:
        kit.clock.advance(3_600_000)
        assert await runs.expired_workers(kit.services) == 0
        worker.send(Beat(1))
        await worker.expect(Beat)
        assert await kit.state.expired_workers(now_ms=kit.clock.now_ms()) == ()
        # By the stopwatch too, its lease is over.
        monkeypatch.setattr(kit.clock, "monotonic", lambda: began + limits.LEASE_MS / 1000)
        kit.clock.advance(limits.LEASE_MS)
        assert await runs.expired_workers(kit.services) == 1


async def test_a_worker_that_could_not_be_given_up_is_given_up_later_whatever_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its version counted as served for as long as its lease ran, by a clock that was set back."""
    kit = await Kit().open()
    async with kit.worker():
        pass
    await until(lambda: kit.services.links.next_grace_s() is not None)
    remove = kit.state.remove_worker

    async def away(worker_id: str) -> Any:
        raise Unavailable("the store is away")

    monkeypatch.setattr(kit.state, "remove_worker", away)
    kit.clock.advance(limits.LINK_GRACE_MS)
    with pytest.raises(Unavailable):
        await kit.services.links.give_up_lost()
    monkeypatch.setattr(kit.state, "remove_worker", remove)
    assert await kit.services.links.give_up_lost() == 0
    kit.clock.advance(limits.LINK_GRACE_MS)
    assert await kit.services.links.give_up_lost() == 1
    assert await kit.state.worker("worker_1") is None


def test_a_link_on_which_nothing_comes_is_ended_although_the_clock_was_set_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By its row alone, the lease of a worker behind a dead network would run for an hour."""

    async def main() -> float:
        kit = Kit()
        clock = LoopClock()
        kit.clock = clock  # type: ignore[assignment]  # time passes by itself here
        kit.services = kit.new_server()
        await kit.open()
        worker = kit.worker()
        await worker.__aenter__()
        clock.jump(-3_600_000)
        began = anyio.current_time()
        await kit.services.links._links["worker_1"].ended.wait()
        took = anyio.current_time() - began
        await worker.__aexit__(None, None, None)
        return took

    with caplog.at_level(logging.WARNING):
        took = run_virtual(main)
    assert limits.LEASE_MS / 1000 <= took <= (limits.LEASE_MS + limits.HEARTBEAT_MS) / 1000
    assert "link.silent" in caplog.text
