"""What happens between two awaits of the server: another caller, or a store that was away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from engine_kit import PATIENCE_S, Kit, chunk, cursors_in, errors_in, in_state, until

from everturn.errors import EverturnError, StorageCorrupt, Unavailable
from everturn.protocol import history
from everturn.protocol.link import Call, HeldRun
from everturn.protocol.records import ChannelName
from everturn.protocol.runs import RunOutcome
from everturn.protocol.sessions import CreateSession
from everturn.protocol.waitpoints import CreateToken
from everturn.rules import limits
from everturn.rules.run_states import FINAL, RunState
from everturn.server.services.run_streams import channels_of
from everturn.server.sweeps import AT_START, OFTEN, SELDOM, run_sweeps, sweep_once, timers
from everturn.storage.ports.rows import NewRun, Run

pytestmark = pytest.mark.anyio

Act = Callable[[], Awaitable[object]]


class Meanwhile:
    """A port; once, just before one of its verbs, something else happens or the call fails."""

    def __init__(
        self,
        port: Any,
        verb: str,
        act: Act,
        *,
        when: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        self._port = port
        self._verb = verb
        self._act: Act | None = act
        self._when = when

    @property
    def happened(self) -> bool:
        return self._act is None

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._port, name)
        if name != self._verb:
            return verb

        async def call(*args: Any, **options: Any) -> Any:
            act = self._act
            if act is not None and self._when(*args, **options):
                self._act = None
                await act()
            return await verb(*args, **options)

        return call


def failing(error: EverturnError) -> Act:
    async def fail() -> None:
        raise error

    return fail


async def plain_run(kit: Kit, **members: Any) -> Run:
    new = NewRun(id=kit.services.ids.new("run"), task_id="plain", payload=b"{}", queue="task/plain")
    run, _ = await kit.state.create_run(
        kit.environment.id,
        msgspec.structs.replace(new, **members),
        now_ms=kit.clock.now_ms(),
    )
    return run


# --- histories ------------------------------------------------------------------------------


async def test_a_rewrite_that_is_repeated_late_leaves_the_newer_document_alone() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    first, second = (
        msgspec.json.encode({"version": 1, "messages": [{"id": name}]}) for name in ("old", "new")
    )
    await histories.rewrite(session, first, fence=1, part=0)
    await histories.rewrite(session, second, fence=1, part=1)

    await histories.rewrite(session, first, fence=1, part=0)

    assert (await histories.read(session)).data == second
    assert len(kit.objects.names()) == 1


async def test_documents_that_were_written_at_the_same_time_leave_one_object() -> None:
    kit = await Kit().open()
    session = await kit.session()
    histories = kit.services.histories
    document = msgspec.json.encode({"version": 1, "messages": []})
    await histories.rewrite(session, document)

    async def another() -> None:
        await histories.rewrite(session, document)

    kit.services.objects = Meanwhile(kit.objects, "put", another)
    await histories.rewrite(session, document)

    assert len(kit.objects.names()) == 1
    assert history.compose(document, []) == (await histories.read(session)).data


# --- parents and children -------------------------------------------------------------------


async def test_a_parent_is_woken_although_the_store_was_away_when_its_child_expired() -> None:
    kit = await Kit().open()
    async with kit.worker() as worker:
        parent = await plain_run(kit)
        info = await worker.claim()
        child = await plain_run(
            kit, task_id="plain", parent_run_id=parent.id, ttl_ms=1000, lock_version="nobody"
        )
        await worker.call(info, "suspend", wait={"kind": "run", "ref": child.id})
        await in_state(kit, parent.id, RunState.SUSPENDED)
        state = Meanwhile(kit.services.state, "waiting_on_run", failing(Unavailable("away")))
        kit.services.state = state
        kit.clock.advance(2000)

        await sweep_once(kit.services, OFTEN)
        assert state.happened
        assert (await kit.run(child.id)).state is RunState.EXPIRED
        await sweep_once(kit.services, OFTEN)

        assert (await kit.run(parent.id)).state is RunState.RUNNING


async def test_a_parent_is_woken_although_the_worker_of_its_child_died_while_that_ended() -> None:
    """Its link ends, and with it the call that had made the child final and would wake."""
    kit = await Kit().open()
    async with kit.worker("worker_1", credit=1) as one:
        parent = await plain_run(kit)
        waiting = await one.claim()
        child = await plain_run(kit, parent_run_id=parent.id)
        async with kit.worker("worker_2", credit=1) as two:
            info = await two.claim()
            await one.call(waiting, "suspend", wait={"kind": "run", "ref": child.id})

            async def die() -> None:
                kit.services.links.close("worker_2")
                await anyio.lowlevel.checkpoint()

            state = Meanwhile(kit.services.state, "waiting_on_run", die)
            kit.services.state = state
            outcome = msgspec.to_builtins(RunOutcome(kind="completed"))
            two.send(Call("last", info.run_id, info.fence, "finish", {"outcome": outcome}))
            await until(lambda: not kit.services.links.connected("worker_2"))
        assert state.happened

        await sweep_once(kit.services, OFTEN)

        assert (await kit.run(child.id)).state is RunState.COMPLETED
        assert (await kit.run(parent.id)).state is RunState.RUNNING


async def test_a_child_that_is_made_while_its_parent_is_cancelled_is_cancelled_too() -> None:
    kit = await Kit().open()
    async with kit.worker() as worker:
        parent = await plain_run(kit)
        info = await worker.claim()

        async def cancel() -> None:
            await kit.services.runs.cancel(kit.environment.id, parent.id, "no")

        kit.services.state = Meanwhile(kit.services.state, "create_run", cancel)
        made = await worker.call_raw(
            info,
            "trigger",
            task_id="plain",
            payload=b"{}",
            payload_type="application/json",
            options={},
        )

        assert made.error is None
        child = await kit.run(made.value["runId"])
        assert child.state is RunState.CANCELED


async def test_a_task_that_was_woken_while_it_was_let_go_of_goes_on() -> None:
    """Rulings §1.18: if the wake won, there is no eviction."""
    kit = await Kit().open()
    async with kit.worker() as worker:
        run = await plain_run(kit)
        info = await worker.claim()
        token, _ = await kit.services.waitpoints.create(kit.environment.id, CreateToken())
        await worker.call(info, "suspend", wait={"kind": "token", "ref": token.id})

        async def complete() -> None:
            await kit.services.waitpoints.complete(kit.environment.id, token.id, 1)

        kit.services.state = Meanwhile(kit.services.state, "requeue_run", complete)
        answer = await worker.call(info, "evict")

        assert answer == {"evicted": False}
        assert (await kit.run(run.id)).state is RunState.RUNNING


# --- starts ---------------------------------------------------------------------------------


async def test_a_store_that_is_away_at_the_start_delays_its_repairs_and_prevents_none() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.finish(info)
    await kit.say(session, "hello", check=False)
    server = kit.new_server()
    server.streams = Meanwhile(kit.streams, "recent_channels", failing(Unavailable("away")))

    async def has_successor() -> bool:
        return (await kit.current(session)).state not in FINAL

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_sweeps, server)
        await until(has_successor)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("sweeps", [AT_START, SELDOM], ids=["at start", "seldom"])
async def test_one_log_that_cannot_be_read_does_not_hold_up_the_other_sessions(
    sweeps: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kit = await Kit().open()
    broken, sound = await kit.session("chat-1"), await kit.session("chat-2")
    async with kit.worker() as worker:
        for _ in range(2):
            await worker.finish(await worker.claim())
    for session in (broken, sound):
        await kit.say(session, "hello", check=False)
    server = kit.new_server()
    out = kit.channel(broken, "out")

    def of_broken(channel: ChannelName, **_: Any) -> bool:
        return channel == out

    server.streams = Meanwhile(
        kit.streams, "read_back", failing(StorageCorrupt("damaged")), when=of_broken
    )
    await sweep_once(server, sweeps)

    assert not [r for r in caplog.records if r.message == "sweep.failed"]
    if sweeps is AT_START:
        assert (await kit.current(sound)).state is RunState.QUEUED


async def test_a_run_whose_stream_is_being_read_stays_and_does_not_keep_the_others() -> None:
    kit = await Kit().open()
    runs = [await plain_run(kit) for _ in range(2)]
    channels = []
    for run in runs:
        noted = await kit.state.note_stream(
            kit.environment.id, run.id, "s", now_ms=kit.clock.now_ms()
        )
        assert noted is not None
        channels += channels_of(noted)
        await kit.streams.append(channels[-1], [chunk()])
        await kit.services.runs.cancel(kit.environment.id, run.id, "no")
    kit.clock.advance(40 * 24 * 3600 * 1000)
    place = kit.streams.subscribe(channels[0], 0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(place.next)
        await anyio.wait_all_tasks_blocked()
        await sweep_once(kit.services, SELDOM)
        tasks.cancel_scope.cancel()

    left = [await kit.state.run(None, run.id) is not None for run in runs]
    assert left == [True, False]
    assert [(await kit.streams.bounds(channel)).tail for channel in channels] == [1, 0]


async def test_a_worker_that_comes_back_while_another_is_given_up_keeps_its_runs() -> None:
    kit = await Kit().open()
    runs = [await plain_run(kit) for _ in range(2)]
    infos = []
    for name in ("worker_1", "worker_2"):
        async with kit.worker(name, credit=1) as worker:
            infos.append(await worker.claim())
            await in_state(kit, infos[-1].run_id, RunState.RUNNING)
    kit.clock.advance(limits.LINK_GRACE_MS)
    held = [HeldRun(infos[1].run_id, infos[1].fence)]
    async with AsyncExitStack() as stack:

        async def come_back() -> None:
            await stack.enter_async_context(kit.worker("worker_2", credit=0, held=held))

        kit.services.state = Meanwhile(kit.services.state, "remove_worker", come_back)
        assert await sweep_once(kit.services, {"lost": timers.lost}) > 0

        states = {run.id: (await kit.run(run.id)).state for run in runs}
        assert states == {
            infos[0].run_id: RunState.QUEUED,
            infos[1].run_id: RunState.RUNNING,
        }


# --- endings --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["says something", "opens the session again"])
async def test_a_message_is_not_answered_by_a_successor_before_its_failure_is_told(
    how: str,
) -> None:
    """A run is cancelled while it answers; a message comes before that turn is closed."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await kit.say(session, "first")
        await worker.write(info, 0, chunk("partial"))

        async def second() -> None:
            if how == "says something":
                await kit.say(session, "second")
            else:
                await kit.services.sessions.create(kit.environment.id, again)
            await worker.claim()
            # Now it reads the log: what is open there it answers.
            found.extend(cursors_in(await kit.out(session)))
            booted.set()

        async def while_it_is_settled() -> None:
            tasks.start_soon(second)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()

        again = msgspec.convert(
            {
                "type": "chat.agent",
                "externalId": "chat-1",
                "taskIdentifier": "chatty",
                "triggerConfig": {"basePayload": {"trigger": "preload", "chatId": "chat-1"}},
            },
            CreateSession,
        )
        found: list[int | None] = []
        booted = anyio.Event()
        kit.services.state = Meanwhile(kit.services.state, "task", while_it_is_settled)
        async with anyio.create_task_group() as tasks:
            await kit.services.runs.cancel(kit.environment.id, info.run_id, "no")
            with anyio.fail_after(PATIENCE_S):
                await booted.wait()

        assert errors_in(await kit.out(session)) == ["The run was cancelled."]
        assert found == [0], "the first message was open when the successor looked"


async def test_a_worker_that_never_heard_of_its_suspension_may_still_fail() -> None:
    """P-3, seed 1310: left suspended in the store, the run would be woken for nobody."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        await worker.finish(info, "failed", error={"message": "the answer was lost"})
        await kit.say(session, "hi")
        successor = await worker.claim()

    assert (await kit.run(info.run_id)).state is RunState.FAILED
    assert successor.run_id != info.run_id


async def test_a_worker_that_never_heard_of_its_wake_may_still_fail() -> None:
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
        await kit.say(session, "hi")
        await worker.finish(info, "failed", error={"message": "the answer was lost"})

    assert (await kit.run(info.run_id)).state is RunState.FAILED
    assert errors_in(await kit.out(session)) != []
