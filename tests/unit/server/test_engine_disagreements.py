"""A worker and the state that believe different things of a run, and how that ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from engine_kit import Kit, chunk, errors_in, in_state

from everturn.errors import SessionClosedError, Unavailable
from everturn.protocol.link import Append, Cancel, Claim, Lost, Refused, Wake
from everturn.protocol.sessions import CreateSession
from everturn.protocol.waitpoints import CreateToken
from everturn.rules import limits
from everturn.rules.run_states import RunEvent, RunState
from everturn.server.sweeps import (
    AT_START,
    OFTEN,
    REGULARLY,
    SELDOM,
    run_sweeps,
    sweep_once,
    timers,
)
from everturn.server.sweeps import runs as runs_sweep
from everturn.storage.memory.state_claims import OVERDUE_GRACE_MS
from everturn.storage.ports.rows import NewRun, Run

pytestmark = pytest.mark.anyio


class Around:
    """A port; once, one of its verbs is carried out by `act`, which gets the real one."""

    def __init__(self, port: Any, verb: str, act: Callable[..., Awaitable[Any]]) -> None:
        self._port = port
        self._verb = verb
        self._act: Callable[..., Awaitable[Any]] | None = act

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._port, name)
        if name != self._verb or self._act is None:
            return verb

        async def call(*args: Any, **options: Any) -> Any:
            act, self._act = self._act, None
            return await (
                act(verb, *args, **options) if act is not None else verb(*args, **options)
            )

        return call


async def answer_lost(verb: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """The store does it, and nobody hears."""
    await verb(*args, **options)
    raise Unavailable("the answer was lost")


async def plain_run(kit: Kit) -> Run:
    new = NewRun(id=kit.services.ids.new("run"), task_id="plain", payload=b"{}", queue="task/plain")
    return (await kit.state.create_run(kit.environment.id, new, now_ms=kit.clock.now_ms()))[0]


async def compare_twice(kit: Kit) -> int:
    """What is found once may be a moment between two steps; twice, it is a disagreement."""
    assert await sweep_once(kit.services, REGULARLY) == 0
    return await sweep_once(kit.services, REGULARLY)


# --- in the worker's hands, and over --------------------------------------------------------


async def test_a_worker_is_told_to_stop_although_nobody_heard_that_the_run_was_cancelled() -> None:
    kit = await Kit().open()
    run = await plain_run(kit)
    async with kit.worker() as worker:
        await worker.claim()
        await in_state(kit, run.id, RunState.RUNNING)
        kit.services.state = Around(kit.services.state, "finish_run", answer_lost)
        with pytest.raises(Unavailable):
            await kit.services.runs.cancel(kit.environment.id, run.id, "no more")
        assert (await kit.run(run.id)).state is RunState.CANCELED
        again = await kit.services.runs.cancel(kit.environment.id, run.id, "no more")
        assert again is not None

        assert await compare_twice(kit) == 1

        assert await worker.expect(Cancel) == Cancel(run.id, "no more")


async def test_a_run_that_another_server_gave_away_is_taken_from_its_worker() -> None:
    kit = await Kit().open()
    run = await plain_run(kit)
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, run.id, RunState.RUNNING)
        other = kit.new_server()
        await other.recovery.recover(await kit.run(run.id), reason="orphaned", died=True)

        assert await compare_twice(kit) == 1

        assert await worker.expect(Lost) == Lost(info.run_id)
        assert not worker.frames


async def test_what_a_worker_holds_rightly_is_left_to_it() -> None:
    kit = await Kit().open()
    session = await kit.session()
    parked, running = await plain_run(kit), await plain_run(kit)
    async with kit.worker() as worker:
        infos = {info.run_id: info for info in [await worker.claim() for _ in range(3)]}
        for run_id in infos:
            await in_state(kit, run_id, RunState.RUNNING)
        await worker.suspend(infos[(await kit.current(session)).id], None)
        await worker.call(infos[parked.id], "suspend", wait={"kind": "until", "until_ms": 2**50})

        assert await compare_twice(kit) == 0

        assert (await kit.run(running.id)).state is RunState.RUNNING
        assert not [frame for frame in worker.frames if isinstance(frame, Lost | Cancel)]


async def test_the_comparison_is_one_of_the_sweeps() -> None:
    kit = await Kit().open()
    run = await plain_run(kit)
    async with kit.worker() as worker:
        await worker.claim()
        await in_state(kit, run.id, RunState.RUNNING)
        await kit.state.finish_run(run.id, RunEvent.CANCEL, now_ms=kit.clock.now_ms())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_sweeps, kit.services)
            await worker.expect(Cancel)
            tasks.cancel_scope.cancel()


# --- the worker's by its row, and let go of -------------------------------------------------


async def test_a_run_whose_append_was_refused_is_answered_by_its_next_attempt() -> None:
    """A server died after it raised the fence, and before it gave the run to somebody else."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await kit.streams.raise_fence(kit.channel(session, "out"), info.fence + 1)
        worker.send(Append(info.run_id, info.fence, 0, [chunk()]))
        await worker.expect(Refused)

        assert await compare_twice(kit) == 1

        again = (await worker.expect(Claim)).run
        assert (again.run_id, again.attempt) == (info.run_id, 2)
        assert (await worker.write(again, 0, chunk())).seq_nums == [0]


# --- runs that move on while they are to be ended -------------------------------------------


async def test_a_run_that_suspends_just_before_it_is_timed_out_may_go_on_when_it_is_woken() -> None:
    kit = await Kit().open()
    async with kit.worker() as worker:
        create = msgspec.convert(
            {
                "type": "chat.agent",
                "externalId": "chat-1",
                "taskIdentifier": "chatty",
                "triggerConfig": {
                    "basePayload": {"trigger": "preload", "chatId": "chat-1"},
                    "maxDuration": 10,
                },
            },
            CreateSession,
        )
        opened = await kit.services.sessions.create(kit.environment.id, create)
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)

        async def suspended(verb: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
            await worker.suspend(info, None)
            return await verb(*args, **options)

        kit.services.state = Around(kit.services.state, "finish_run", suspended)
        kit.clock.advance(10_000 + OVERDUE_GRACE_MS + 1)
        assert await sweep_once(kit.services, {"overdue": runs_sweep.overdue}) == 0
        assert (await kit.run(info.run_id)).state is RunState.SUSPENDED
        await kit.say(opened.session, "hi")

        assert (await worker.write(info, 0, chunk())).seq_nums == [0]


async def test_a_run_that_could_not_be_cancelled_goes_on() -> None:
    """The store was away: nothing of the run may have been taken from it."""
    kit = await Kit().open()
    session = await kit.session()

    async def away(verb: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        raise Unavailable("away")

    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        kit.services.state = Around(kit.services.state, "finish_run", away)
        with pytest.raises(Unavailable):
            await kit.services.runs.cancel(kit.environment.id, info.run_id, "no")

        assert (await worker.write(info, 0, chunk())).seq_nums == [0]
        assert errors_in(await kit.out(session)) == []


async def test_a_run_that_is_woken_while_its_worker_gives_it_up_is_given_to_another() -> None:
    """A worker that drains lets go of a parked run, which is to be ended; the wake wins."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker(credit=1) as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)

        async def woken(verb: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
            await kit.say(session, "hi")
            return await verb(*args, **options)

        kit.services.state = Around(kit.services.state, "finish_run", woken)
        await worker.finish(info, "interrupted")

        assert (await kit.run(info.run_id)).state is RunState.QUEUED
        async with kit.worker("worker_2", credit=1) as other:
            assert (await other.claim()).run_id == info.run_id


async def test_a_run_is_told_to_go_on_although_whoever_woke_it_was_cut_short() -> None:
    """The link ended that had brought the news; the store had set the run RUNNING by then."""
    kit = await Kit().open()
    run = await plain_run(kit)
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, run.id, RunState.RUNNING)
        token, _ = await kit.services.waitpoints.create(kit.environment.id, CreateToken())
        await worker.call(info, "suspend", wait={"kind": "token", "ref": token.id})
        scope = anyio.CancelScope()

        async def cut(verb: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
            await verb(*args, **options)
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        kit.services.state = Around(kit.services.state, "wake_run", cut)
        with scope:
            await kit.services.waitpoints.complete(kit.environment.id, token.id, 1)
        assert scope.cancelled_caught
        assert (await kit.run(run.id)).state is RunState.RUNNING

        assert (await worker.expect(Wake)).run_id == run.id


@pytest.mark.parametrize("how", ["completed", "timed out"])
async def test_a_token_that_was_completed_with_the_answer_lost_wakes_whoever_waits(
    how: str,
) -> None:
    kit = await Kit().open()
    run = await plain_run(kit)
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, run.id, RunState.RUNNING)
        create = CreateToken(timeout="5s")
        token, _ = await kit.services.waitpoints.create(kit.environment.id, create)
        await worker.call(info, "suspend", wait={"kind": "token", "ref": token.id})
        kit.services.state = Around(kit.services.state, "complete_waitpoint", answer_lost)
        tokens = kit.services.waitpoints
        completed = how == "completed"
        with pytest.raises(Unavailable):
            await (
                tokens.complete(kit.environment.id, token.id, 1)
                if completed
                else tokens.time_out(token)
            )
        assert (await kit.run(run.id)).state is RunState.SUSPENDED

        await sweep_once(kit.services, OFTEN)

        assert (await worker.expect(Wake)).run_id == run.id


async def test_a_session_that_was_closed_with_the_answer_lost_takes_no_more_input() -> None:
    """A row from before the change must not be trusted for what it says of it."""
    kit = await Kit().open()
    session = await kit.session()
    sessions = kit.services.sessions

    async def later(verb: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        """It is not done yet when the caller gives up."""
        undone.append(lambda: verb(*args, **options))
        raise Unavailable("the answer was lost")

    undone: list[Callable[[], Awaitable[Any]]] = []
    kit.services.state = Around(kit.services.state, "close_session", later)
    with pytest.raises(Unavailable):
        await sessions.close(kit.environment.id, "chat-1", None)
    before = await sessions.find(kit.environment.id, "chat-1")
    assert before is not None
    await undone.pop()()

    found = await sessions.find(kit.environment.id, session.key)

    assert found is not None
    with pytest.raises(SessionClosedError):
        kit.services.inbox.check_open(found)


# --- runs that their session has left behind ------------------------------------------------


@pytest.mark.parametrize("parked", [True, False], ids=["parked", "queued"])
async def test_a_run_that_a_crash_kept_from_being_ended_when_it_was_replaced_is_ended(
    parked: bool,
) -> None:
    kit = await Kit().open()
    session = await kit.session()
    old = await kit.current(session)
    async with kit.worker() if parked else nullcontext() as worker:
        if worker is not None:
            info = await worker.claim()
            await in_state(kit, old.id, RunState.RUNNING)
            await worker.suspend(info, None)
        # The server dies before the second step of the swap, which ends the old run.
        successor = await kit.services.dispatch.continue_session(await kit.row(session), "manual")
        assert successor is not None

        assert await sweep_once(kit.services, {"superseded": SELDOM["superseded_runs"]}) == 1

        assert (await kit.run(old.id)).state is RunState.COMPLETED
        if worker is not None:
            assert (await worker.expect(Lost)).run_id == old.id
    assert (await kit.current(session)).id == successor.id


# --- who serves -----------------------------------------------------------------------------


async def test_a_server_is_ready_while_a_worker_is_connected_or_was_a_moment_ago() -> None:
    kit = await Kit().open()
    links = kit.services.links
    assert not links.serving
    async with kit.worker():
        assert links.serving
    assert links.serving, "within the grace of its link"
    kit.clock.advance(limits.LINK_GRACE_MS + 1)
    await sweep_once(kit.services, {"lost": timers.lost})
    assert not links.serving


async def test_the_workers_of_an_earlier_process_do_not_make_a_server_ready() -> None:
    """Their rows look alive for as long as a lease, and their grace is theirs to come back in."""
    kit = await Kit().open()
    async with kit.worker():
        pass
    server = kit.new_server()
    await sweep_once(server, AT_START)
    assert not server.links.serving

    async with kit.worker(services=server):
        assert server.links.serving
