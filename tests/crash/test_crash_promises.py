"""Promises under kill -9 of real processes. The records are read back and judged afterwards."""

from __future__ import annotations

import random
import signal
import uuid
from functools import partial

import anyio
import pytest
from conversation import Conversations

from everturn import sessions
from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.protocol.records import open_envelope

pytestmark = [pytest.mark.anyio, pytest.mark.processes]


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def test_p1_an_acknowledged_append_survives_kill_9_of_the_server(
    conversations: Conversations,
) -> None:
    """P-1: whatever was acknowledged before the kill is there after it, in order."""
    key = fresh("p1")
    await sessions.start(type="inbox", task="inbox", external_id=key)
    acknowledged: list[tuple[int, str]] = []

    async def append_until_refused() -> None:
        api = Api(tries=1)
        for n in range(100_000):
            try:
                seq = await api.append(key, "in", f"message {n}", part_id=f"part-{n}")
            except Exception:
                return
            assert seq is not None
            acknowledged.append((seq, f"message {n}"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_until_refused)
        while len(acknowledged) < random.randint(20, 200):
            await anyio.lowlevel.checkpoint()
        conversations.system.kill_server()
    await conversations.in_thread(conversations.system.start_server)

    stored = {
        record.seq_num: opened[0]
        for record in await conversations.records(key, "in")
        if (opened := open_envelope(record.body)) is not None
    }
    assert len(acknowledged) >= 20
    for seq, text in acknowledged:
        assert stored[seq] == text


@pytest.mark.parametrize("victim", ["worker", "server", "both"])
async def test_p2_a_reader_sees_every_record_once_while_processes_are_killed(
    conversations: Conversations, victim: str
) -> None:
    """P-2, P-3: one reader over the kill, against the log read afterwards."""
    async with AgentChat("slow", id=fresh("p2")) as chat:
        stream = await chat.send_message("count")
        seen: list[dict[str, object]] = []
        async for chunk in stream:
            seen.append(chunk)
            if len(seen) == 12:
                await getattr(conversations, f"restart_{victim}")()
        assert stream.complete
        (turn,) = await conversations.settled(chat.id, 1)

    assert seen == turn.chunks
    assert turn.text == "".join(f"w{n} " for n in range(40))


@pytest.mark.parametrize("victim", ["worker", "server", "both"])
async def test_p3_a_message_is_answered_exactly_once_whenever_processes_are_killed(
    conversations: Conversations, victim: str
) -> None:
    """P-3: kills at random moments over a conversation of six messages."""
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    async with AgentChat("counting", id=fresh("p3")) as chat:
        for n in range(6):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(kill_after, rng.uniform(0, 0.12), conversations, victim)
                answer = await conversations.ask(chat, f"m{n}")
            assert answer == f"you said m{n}", f"seed {seed}"
        history = await conversations.settled(chat.id, 6)
    assert [turn.text for turn in history] == [f"you said m{n}" for n in range(6)], f"seed {seed}"


async def kill_after(seconds: float, conversations: Conversations, victim: str) -> None:
    """The moment is what is being chosen: this sleep is the fault, not a wait for an effect."""
    await anyio.sleep(seconds)
    await getattr(conversations, f"restart_{victim}")()


async def test_p3_a_turn_that_kills_its_worker_three_times_ends_with_a_visible_error(
    conversations: Conversations,
) -> None:
    """P-3, rulings §1.8: bounded; and the session goes on with the next message."""
    system = conversations.system
    async with AgentChat("deadly", id=fresh("deadly")) as chat:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(revive, conversations, tasks.cancel_scope)
            stream = await chat.send_message("die")
            await stream.text()
            assert stream.complete, system.logs()
            assert stream.error
            assert await conversations.ask(chat, "live") == "before after live"
            tasks.cancel_scope.cancel()
        first, second = await conversations.settled(chat.id, 2)
    assert first.error
    assert first.restarts == 2
    assert second.text == "before after live"


async def revive(conversations: Conversations, scope: anyio.CancelScope) -> None:
    """Start a worker whenever the last one has died, ten times at the most."""
    for _ in range(10):
        while conversations.system.workers[-1].running:
            await anyio.sleep(0.05)
        await conversations.in_thread(conversations.system.start_worker)


@pytest.mark.slow
async def test_p4_a_worker_that_slept_through_its_lease_writes_nothing_when_it_wakes(
    conversations: Conversations,
) -> None:
    """P-4: stopped for longer than its lease while it streams, then continued.

    Its connection stays open all the while, so only the lease can tell that it is gone.
    """
    system = conversations.system
    async with AgentChat("slow", id=fresh("p4")) as chat:
        stream = await chat.send_message("count")
        seen = 0
        sleeper = system.workers[0]
        async for chunk in stream:
            seen += chunk["type"] == "text-delta"
            if seen == 5 and len(system.workers) == 1:
                sleeper.signal(signal.SIGSTOP)
                await conversations.in_thread(partial(system.start_worker, wait=False))
        sleeper.signal(signal.SIGCONT)
        assert stream.complete
        assert await conversations.ask(chat, "short") == "short"
        first, second = await conversations.settled(chat.id, 2)
    assert first.restarts == 1
    assert first.text.endswith("w39 ")
    assert second.text == "short"


async def test_p5_a_repeated_part_gets_its_first_answer_also_after_a_restart(
    conversations: Conversations,
) -> None:
    """P-5."""
    key = fresh("p5")
    await sessions.start(type="inbox", task="inbox", external_id=key)
    first = await Api().append(key, "in", '"one"', part_id="same")
    await Api().append(key, "in", '"two"', part_id="other")
    await conversations.restart_server()
    again = await Api().append(key, "in", '"one"', part_id="same")

    assert again == first
    assert len(await conversations.records(key, "in")) == 2


async def test_p6_a_stop_ends_its_own_turn_and_leaving_a_stream_stops_nothing(
    conversations: Conversations,
) -> None:
    """P-6."""
    async with AgentChat("slow", id=fresh("p6")) as chat:
        stream = await chat.send_message("count")
        async for chunk in stream:
            if chunk["type"] == "text-delta":
                break
        await stream.aclose()  # a closed tab
        (turn,) = await conversations.settled(chat.id, 1)
        assert turn.text.endswith("w39 ")

        stream = await chat.send_message("count")
        async for chunk in stream:
            if chunk["type"] == "text-delta":
                await chat.stop()
        assert stream.complete
        assert await conversations.ask(chat, "short") == "short"
        history = await conversations.settled(chat.id, 3)
    assert "w39" not in history[1].text
    assert history[1].text.startswith("w0 ")


async def test_p7_a_finished_turn_is_settled_for_a_reader_after_everything_was_killed(
    conversations: Conversations,
) -> None:
    """P-7: the end of a turn is a record, so a restarted system knows it at once."""
    async with AgentChat("echo", id=fresh("p7")) as chat:
        await conversations.ask(chat, "hello")
        conversations.system.kill_server()
        conversations.system.kill_worker()
        await conversations.in_thread(conversations.system.start_server)
        response = await Api().open_stream(chat.id, "out", after=None, peek_settled=True)
        body = await response.aread()
        await response.aclose()

    assert response.headers["x-session-settled"] == "true"
    assert body.endswith(b"data: [DONE]\n\n")


async def test_p9_history_survives_kills_although_the_stream_was_trimmed(
    conversations: Conversations,
) -> None:
    """P-9: the answer counts the messages the agent knows of."""
    async with AgentChat("eager", id=fresh("p9")) as chat:
        for n in range(5):
            assert await conversations.ask(chat, f"m{n}") == f"answer {2 * n + 1}"
        visible = await Api().read_records(chat.id, "out")
        everything = await conversations.records(chat.id, "out")
        assert len(visible) < len(everything), "turns before the last two are trimmed"
        await conversations.restart_both()
        assert await conversations.ask(chat, "m5") == "answer 11"
        await conversations.settled(chat.id, 6)


async def test_p10_a_suspended_session_continues_on_a_new_run_when_its_worker_is_gone(
    conversations: Conversations,
) -> None:
    """P-10."""
    async with AgentChat("eager", id=fresh("p10")) as chat:
        await conversations.ask(chat, "one")
        first_run = (await sessions.retrieve(chat.id)).current_run_id
        with anyio.fail_after(20):
            while (await Api().retrieve_run(str(first_run)))["status"] != "WAITING":
                await anyio.sleep(0.05)
        await conversations.restart_worker()
        with anyio.fail_after(20):
            while (await Api().retrieve_run(str(first_run)))["status"] == "WAITING":
                await anyio.sleep(0.05)
        assert await conversations.ask(chat, "two") == "answer 3"
        second_run = (await sessions.retrieve(chat.id)).current_run_id
        await conversations.settled(chat.id, 2)

    assert second_run != first_run
    assert (await Api().retrieve_run(str(first_run)))["status"] == "COMPLETED"


async def test_p11_callers_that_create_one_external_id_converge_while_the_server_is_killed(
    conversations: Conversations,
) -> None:
    """P-11: twenty callers, retrying through a restart, get one session and one run."""
    key = fresh("p11")
    found: list[tuple[str, str]] = []

    async def create() -> None:
        started = await sessions.start(type="chat.agent", task="echo", external_id=key)
        found.append((started.id, started.run_id))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(create)
        await conversations.restart_server()

    assert len(found) == 20
    assert len(set(found)) == 1
