"""The link itself: handshake, tails, slices, calls, heartbeats."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from engine_kit import FakeWorker, Kit, chunk, in_state, until

from everturn.errors import InvalidRequest, ProtocolError, TaskNotFound, TooLarge, Unprocessable
from everturn.protocol.link import (
    SUBPROTOCOL,
    Acked,
    Beat,
    Claim,
    HeldRun,
    Hello,
    Lost,
    Packer,
    Records,
    ServerFrame,
    Started,
    Tail,
    Unpacker,
    Untail,
    Wake,
)
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.server.routes.link import link_endpoint
from everturn.server.services.link_sender import Sender
from everturn.server.sweeps import runs

pytestmark = pytest.mark.anyio


async def test_a_tail_delivers_what_is_stored_and_what_comes() -> None:
    kit = await Kit().open()
    session = await kit.session()
    stored = await kit.say(session, "before")
    async with kit.worker() as worker:
        info = await worker.claim()
        worker.send(Tail(1, info.run_id, "in", None))
        first = await worker.expect(Records)
        coming = await kit.say(session, "after")
        second = await worker.expect(Records)
        worker.send(Untail(1))

    assert [r.seq_num for r in (*first.records, *second.records)] == [stored, coming]


async def test_a_tail_resumes_exactly_after_its_cursor() -> None:
    """P-2"""
    # L-11
    kit = await Kit().open()
    session = await kit.session()
    for text in ("a", "b", "c"):
        await kit.say(session, text)
    async with kit.worker() as worker:
        info = await worker.claim()
        worker.send(Tail(7, info.run_id, "in", 1))
        frame = await worker.expect(Records)

    assert (frame.sub, [r.seq_num for r in frame.records]) == (7, [2])


async def test_a_heartbeat_renews_the_lease_and_is_answered_with_its_number() -> None:
    # L-5
    kit = await Kit().open()
    async with kit.worker() as worker:
        kit.clock.advance(limits.HEARTBEAT_MS)
        worker.send(Beat(3))
        answer = await worker.expect(Beat)
        row = await kit.state.worker("worker_1")

    assert answer.n == 3
    assert row is not None
    assert row.lease_until_ms == kit.clock.now_ms() + limits.LEASE_MS


async def test_a_heartbeat_of_a_worker_that_was_given_up_ends_the_link() -> None:
    """Its runs were given away; when it connects again, Welcome names them."""
    kit = await Kit().open()
    with anyio.fail_after(5):
        async with kit.worker() as worker:
            await kit.state.remove_worker("worker_1")
            worker.send(Beat(1))
            while kit.services.links.connected("worker_1"):
                await anyio.lowlevel.checkpoint()


async def test_a_call_that_is_sent_again_is_carried_out_once() -> None:
    """rulings §3: also on the next connection."""
    # L-10
    kit = await Kit().open()
    await kit.session()
    add = [{"type": "increment", "key": "n", "value": 1}]
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.call_raw(info, "metadata", id="m1", operations=add)
    held = [HeldRun(info.run_id, info.fence)]
    async with kit.worker(held=held) as worker:
        again = await worker.call_raw(info, "metadata", id="m1", operations=add)

    assert again.value == {"metadata": b'{"n":1}'}


async def test_a_call_under_a_lost_fence_fails() -> None:
    # L-10
    kit = await Kit().open()
    await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await kit.services.runs.cancel(kit.environment.id, info.run_id, "no")
        result = await worker.call_raw(info, "tags", tags=["x"])

    assert result.error is not None
    assert result.error["code"] == "fenced"


async def test_a_call_that_does_not_exist_or_is_malformed_is_answered() -> None:
    kit = await Kit().open()
    await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        unknown = await worker.call_raw(info, "dance")
        malformed = await worker.call_raw(info, "tags", tags=7)

    assert unknown.error is not None
    assert unknown.error["code"] == "protocol_error"
    assert malformed.error is not None
    assert malformed.error["code"] == "invalid_request"


async def test_a_run_reads_back_and_keeps_its_snapshot() -> None:
    kit = await Kit().open()
    await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await worker.write(info, 0, chunk("a"), chunk("b"), chunk("c"))
        page = await worker.call(info, "read", io="out", after=0, limit=1)
        back = await worker.call(info, "read", io="out", before=2, limit=5)
        assert await worker.call(info, "snapshot.get") == {"data": None, "patched": 0, "part": 0}
        await worker.call(info, "snapshot.put", data=b"{}", part=0)
        kept = await worker.call(info, "snapshot.get")

    assert kept == {"data": b"{}", "patched": 0, "part": 1}
    assert ([record[0] for record in page["records"]], page["tail"]) == ([1], 3)
    assert [record[0] for record in back["records"]] == [1, 0]


async def test_a_wake_that_a_lost_connection_swallowed_is_sent_again() -> None:
    """The state says RUNNING while the worker still waits."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        info = await worker.claim()
        await in_state(kit, info.run_id, RunState.RUNNING)
        await worker.suspend(info, None)
    await kit.say(session, "hi")
    assert (await kit.run(info.run_id)).state is RunState.RUNNING
    async with kit.worker(held=[HeldRun(info.run_id, info.fence)]) as worker:
        wake = await worker.expect(Wake)

    assert len(wake.records) == 1


async def test_a_second_connection_of_a_worker_ends_the_first() -> None:
    # L-9
    kit = await Kit().open()
    await kit.session()
    with anyio.fail_after(5):
        async with kit.worker() as old:
            info = await old.claim()
            async with kit.worker(held=[HeldRun(info.run_id, info.fence)]) as new:
                assert new.welcome.lost == []
                await new.write(info, 0, chunk())


# --- a worker that comes back without a run -------------------------------------------------


async def test_a_worker_that_comes_back_without_its_run_gets_it_again_at_once() -> None:
    """rulings §3: it stopped its runs when it could not trust its lease, and the Hello says so.

    The worker is alive and its lease is fresh again, so no sweep would ever find the run.
    """
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        first = await worker.claim()
        await in_state(kit, first.run_id, RunState.RUNNING)
        await worker.write(first, 0, chunk("half"))
    async with kit.worker(held=()) as worker:
        again = await worker.claim()

    assert (again.run_id, again.attempt, again.recovered) == (first.run_id, 2, True)
    assert again.fence > first.fence
    assert (await kit.run(first.run_id)).interruptions == 1


async def test_of_several_runs_only_the_unnamed_is_taken_from_a_worker_that_comes_back() -> None:
    # L-6
    kit = await Kit().open()
    first, second = await kit.session("chat-1"), await kit.session("chat-2")
    async with kit.worker() as worker:
        kept = await worker.claim()
        dropped = await worker.claim()
        for session in (first, second):
            await kit.say(session, "hi")
        for info in (kept, dropped):
            await in_state(kit, info.run_id, RunState.RUNNING)
    async with kit.worker(held=[HeldRun(kept.run_id, kept.fence)]) as worker:
        again = await worker.claim()
        await worker.write(kept, 0, chunk("still mine"))

    assert worker.welcome.lost == []
    assert again.run_id == dropped.run_id
    assert (await kit.run(kept.run_id)).attempt == 1


async def test_a_claim_that_never_reached_its_worker_is_no_death() -> None:
    """rulings §1.8: an unnamed run that was not started costs nothing."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        first = await worker.claim(start=False)
    async with kit.worker(held=()) as worker:
        again = await worker.claim()

    assert again.run_id == first.run_id
    assert (await kit.run(first.run_id)).interruptions == 0


# --- the same run, given to the same worker again -------------------------------------------


async def test_a_late_started_of_an_older_claim_leaves_the_newer_claim_alone() -> None:
    """P-3: the newer claim is the run's only one; taken away, nobody would answer."""
    # L-3
    kit = await Kit().open()
    await kit.session()
    async with kit.worker() as worker:
        old = await worker.claim(start=False)
        kit.clock.advance(limits.START_MS_MAX + 1)
        assert await runs.unstarted(kit.services) == 1
        await worker.expect(Lost)
        new = await worker.claim()
        await in_state(kit, new.run_id, RunState.RUNNING)
        worker.send(Started(old.run_id, old.fence))
        await anyio.wait_all_tasks_blocked()
        await worker.write(new, 0, chunk("mine"))
        await worker.call(new, "tags", tags=["x"])

    assert (new.run_id, new.fence > old.fence) == (old.run_id, True)
    assert not [frame for frame in worker.frames if isinstance(frame, Lost)]


async def test_the_end_of_an_older_claim_leaves_the_newer_claim_alone() -> None:
    """P-3: what a worker gives up may be claimed by it again before its report is answered."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    report = kit.services.finishing.report
    async with kit.worker() as worker:
        old = await worker.claim()
        await in_state(kit, old.run_id, RunState.RUNNING)

        async def report_and_be_slow(*arguments: Any) -> None:
            await report(*arguments)
            await until(lambda: any(isinstance(frame, Claim) for frame in worker.frames))

        kit.services.finishing.report = report_and_be_slow  # type: ignore[method-assign]  # slow
        await worker.finish(old, "interrupted")
        new = await worker.claim()
        await worker.write(new, 0, chunk("mine"))
        await worker.call(new, "tags", tags=["x"])

    assert (new.run_id, new.fence > old.fence) == (old.run_id, True)


async def test_news_of_an_older_claims_loss_leaves_the_newer_claim_alone() -> None:
    """P-3: a recovery says that a run is lost after it has queued it, which may be too late."""
    kit = await Kit().open()
    session = await kit.session()
    await kit.say(session, "hi")
    async with kit.worker() as worker:
        old = await worker.claim()
        await in_state(kit, old.run_id, RunState.RUNNING)
        row = await kit.run(old.run_id)
        await worker.finish(old, "interrupted")
        new = await worker.claim()
        worker.frames.clear()
        kit.services.links.lost(row)
        await worker.write(new, 0, chunk("mine"))

    assert not [frame for frame in worker.frames if isinstance(frame, Lost)]


async def test_a_link_that_does_not_begin_with_hello_is_a_protocol_error() -> None:
    # L-8
    kit = await Kit().open()
    worker = FakeWorker("w")
    worker.send(Beat(1))
    with pytest.raises(ProtocolError):
        await kit.services.links.serve(kit.environment, worker)


# --- sending --------------------------------------------------------------------------------


async def test_small_frames_pass_between_the_slices_of_a_large_one() -> None:
    """rulings §3: a large record does not hold up heartbeats."""
    # L-7
    messages: list[bytes] = []

    async def keep(message: bytes) -> None:
        messages.append(message)
        if len(messages) == 1:
            sender.send(Beat(9))

    sender = Sender(keep)
    large = Acked("r", 1, 0, list(range(100_000)))
    sender.send(large, "run:r")
    sender.send(Acked("r", 1, 1, [7]), "run:r")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sender.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    unpacker: Unpacker[ServerFrame] = Unpacker(ServerFrame, 16 << 20)
    frames = [frame for message in messages for frame in unpacker.decode(message)]

    assert frames == [Beat(9), large, Acked("r", 1, 1, [7])]
    assert len(messages) > 2
    assert max(map(len, messages)) < 2 * limits.LINK_SLICE_BYTES_MAX


async def test_what_is_waiting_travels_in_one_message() -> None:
    messages: list[bytes] = []

    async def keep(message: bytes) -> None:
        messages.append(message)

    sender = Sender(keep)
    for n in range(20):
        sender.send(Beat(n))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sender.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert len(messages) == 1


# --- the handshake --------------------------------------------------------------------------


class Socket:
    """The ASGI end of a WebSocket, by hand."""

    def __init__(self, *, key: str, protocol: str = SUBPROTOCOL) -> None:
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
            "subprotocols": [protocol],
            "extensions": {"websocket.http.response": {}},
        }
        self.events: list[Any] = [{"type": "websocket.connect"}]
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return self.events.pop(0) if self.events else {"type": "websocket.disconnect"}

    async def send(self, event: Any) -> None:
        self.sent.append(event)


async def _key(kit: Kit) -> str:
    _, secret = await kit.services.keys.create(kit.environment)
    return secret


async def test_a_bad_key_is_answered_401_before_the_connection() -> None:
    # L-8
    kit = await Kit().open()
    socket = Socket(key="tr_dev_" + "x" * 24)
    await link_endpoint(kit.services, socket.scope, socket.receive, socket.send)

    assert socket.sent[0]["status"] == 401


async def test_another_protocol_version_is_answered_400() -> None:
    # L-8
    kit = await Kit().open()
    socket = Socket(key=await _key(kit), protocol="everturn.link.v9")
    await link_endpoint(kit.services, socket.scope, socket.receive, socket.send)

    assert socket.sent[0]["status"] == 400


async def test_a_good_key_is_accepted_and_a_broken_frame_ends_the_link() -> None:
    # L-1, L-8
    kit = await Kit().open()
    socket = Socket(key=await _key(kit))
    hello = Packer(1 << 16).encode(Hello("w", "v1", kit.tasks, {}, []))
    socket.events.append({"type": "websocket.receive", "bytes": Packer.message(hello)})
    socket.events.append({"type": "websocket.receive", "bytes": b"\xc1"})
    await link_endpoint(kit.services, socket.scope, socket.receive, socket.send)

    assert socket.sent[0] == {"type": "websocket.accept", "subprotocol": SUBPROTOCOL}
    assert socket.sent[-1]["type"] == "websocket.close"
    assert socket.sent[-1]["code"] == 1002


# --- triggers -------------------------------------------------------------------------------


async def test_a_trigger_of_a_task_nobody_registered_is_not_found() -> None:
    kit = await Kit().open()
    with pytest.raises(TaskNotFound):
        await kit.services.runs.trigger(kit.environment, "ghost", {})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tags": [str(n) for n in range(11)]}, Unprocessable),
        ({"tags": ["x" * 129]}, Unprocessable),
        ({"maxAttempts": 0}, Unprocessable),
        ({"maxDuration": 4}, Unprocessable),
        ({"delay": "soon"}, Unprocessable),
        ({"idempotencyKey": "x" * 2049}, InvalidRequest),
        ({"queue": 7}, InvalidRequest),
        ({"metadata": {"x": "y" * (256 * 1024)}}, TooLarge),
    ],
)
async def test_a_trigger_that_breaks_a_rule_stores_nothing(
    options: dict[str, Any], error: type[Exception]
) -> None:
    """tasks-and-runs §4.3"""
    kit = await Kit().open()
    async with kit.worker(credit=0):
        pass
    with pytest.raises(error):
        await kit.services.runs.trigger(kit.environment, "plain", {"options": options})
    assert await kit.state.claim_runs("worker_1", limit=5, now_ms=kit.clock.now_ms()) == ()


async def test_an_idempotency_key_answers_the_first_run() -> None:
    """tasks-and-runs §9"""
    kit = await Kit().open()
    async with kit.worker(credit=0):
        pass
    body = {"payload": {"a": 1}, "options": {"idempotencyKey": "k", "tags": "t"}}
    first, cached = await kit.services.runs.trigger(kit.environment, "plain", body)
    again, cached_again = await kit.services.runs.trigger(kit.environment, "plain", body)

    assert (cached, cached_again) == (False, True)
    assert first.id == again.id
    assert (first.payload, first.tags, first.queue) == (b'{"a":1}', ("t",), "task/plain")


async def test_a_one_time_token_starts_one_run() -> None:
    kit = await Kit().open()
    async with kit.worker(credit=0):
        pass
    await kit.services.runs.trigger(kit.environment, "plain", {}, token_otu="abc")
    with pytest.raises(Unprocessable):
        await kit.services.runs.trigger(kit.environment, "plain", {}, token_otu="abc")
