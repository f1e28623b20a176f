"""What a person does with an agent, as scenarios that must come out right whatever fails once.

Each takes a running cluster, talks over its network with the official Python client, and asserts
what the person sees. Afterwards `play` waits until everything has settled, lets the judge look at
the log of each session, and asserts what the answers in the log are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio

from everturn import AgentChat, ChatStream
from everturn.chat.reducer import MessageReducer
from everturn.testing.checker import Turn
from everturn.testing.cluster import Cluster
from everturn.testing.faults import Fault, FaultyCalls
from everturn.testing.virtual_loop import run_virtual
from everturn.worker.loading import App, load_app

APP: Final = Path(__file__).parent.parent / "apps" / "simulated.py"

#: What the log must hold afterwards, by session.
Expected = dict[str, Callable[[list[Turn]], None]]
Scenario = Callable[[Cluster], Awaitable[Expected]]
SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(play: Scenario) -> Scenario:
    SCENARIOS[play.__name__] = play
    return play


def texts(*expected: str) -> Callable[[list[Turn]], None]:
    def check(turns: list[Turn]) -> None:
        assert [turn.text for turn in turns] == list(expected)
        assert [turn.error for turn in turns] == [None] * len(turns)

    return check


async def ask(chat: AgentChat, text: str) -> str:
    stream = await chat.send_message(text)
    answer = await stream.text()
    assert stream.complete, f"the answer to {text!r} was cut off: {answer!r}"
    stream.raise_for_error()
    return answer


async def message_of(stream: ChatStream) -> dict[str, Any]:
    reducer = MessageReducer()
    async for chunk in stream:
        if chunk["type"] == ChatStream.RESTARTED:
            reducer = MessageReducer()  # what came before does not count any more
        reducer.feed(chunk)
    stream.raise_for_error()
    assert stream.complete
    return reducer.snapshot()


# --- scenarios ----------------------------------------------------------------------------------


@scenario
async def first_message(cluster: Cluster) -> Expected:
    async with cluster.chat("echo", "chat") as chat:
        assert await ask(chat, "hi") == "you said hi"
    return {"chat": texts("you said hi")}


@scenario
async def follow_up(cluster: Cluster) -> Expected:
    async with cluster.chat("echo", "chat") as chat:
        assert await ask(chat, "one") == "you said one"
        assert await ask(chat, "two") == "you said two"
    return {"chat": texts("you said one", "you said two")}


@scenario
async def stop(cluster: Cluster) -> Expected:
    async with cluster.chat("slow", "chat") as chat:
        # Longer than any single fault can hold up the stop.
        stream = await chat.send_message("long")
        deltas = 0
        async for chunk in stream:
            deltas += chunk["type"] == "text-delta"
            if deltas == 3:
                await chat.stop()
        assert stream.complete
        assert await ask(chat, "short") == "short"

    def check(turns: list[Turn]) -> None:
        stopped, after = turns
        assert "w3999" not in stopped.text, "the stop ended the turn it was meant for"
        assert after.text == "short", "and no other"

    return {"chat": check}


@scenario
async def steer(cluster: Cluster) -> Expected:
    async with cluster.chat("looking", "chat") as chat:
        stream = await chat.send_message("look")
        steered = False
        async for chunk in stream:
            if chunk["type"] == "tool-input-available" and not steered:
                steered = await chat.steer("hurry")
        assert stream.complete
        assert steered

    def check(turns: list[Turn]) -> None:
        assert [seq for turn in turns for seq in turn.answers] == [0, 1]
        assert "hurry" in turns[-1].text

    return {"chat": check}


@scenario
async def action(cluster: Cluster) -> Expected:
    async with cluster.chat("forgetful", "chat") as chat:
        assert await ask(chat, "one") == "knows 1"
        assert await ask(chat, "two") == "knows 3"
        stream = await chat.send_action({"type": "forget"})
        await stream.text()
        assert stream.complete
        assert await ask(chat, "three") == "knows 1"
    return {"chat": texts("knows 1", "knows 3", "", "knows 1")}


@scenario
async def approval(cluster: Cluster) -> Expected:
    async with cluster.chat("paying", "chat") as chat:
        asked = await message_of(await chat.send_message("pay"))
        part = next(p for p in asked["parts"] if p["type"] == "tool-pay")
        assert part["state"] == "approval-requested"
        said = {**part, "state": "approval-responded"}
        said["approval"] = {**part["approval"], "approved": True}
        stream = await chat.send_raw([{**asked, "parts": [said]}])
        assert "paid" in await stream.text()
        assert stream.complete

    def check(turns: list[Turn]) -> None:
        assert [turn.answers for turn in turns] == [[0], [1]]
        assert "paid" in turns[1].text

    return {"chat": check}


@scenario
async def upgrade(cluster: Cluster) -> Expected:
    async with cluster.chat("moving", "chat") as chat:
        assert await ask(chat, "one") == "answer 1"
        assert await ask(chat, "two") == "answer 3"
    return {"chat": texts("answer 1", "answer 3")}


@scenario
async def suspend_and_resume(cluster: Cluster) -> Expected:
    async with cluster.chat("eager", "chat") as chat:
        assert await ask(chat, "one") == "answer 1"
        await anyio.sleep(1)
        assert await ask(chat, "two") == "answer 3"
        await anyio.sleep(1)
        assert await ask(chat, "three") == "answer 5"
    return {"chat": texts("answer 1", "answer 3", "answer 5")}


@scenario
async def continuation(cluster: Cluster) -> Expected:
    """The worker dies while the session sleeps; the next message begins a new run."""
    async with cluster.chat("eager", "chat") as chat:
        assert await ask(chat, "one") == "answer 1"
        await anyio.sleep(1)
        cluster.lives[0].kill()
        await anyio.sleep(8)
        assert await ask(chat, "two") == "answer 3"
    return {"chat": texts("answer 1", "answer 3")}


@scenario
async def close(cluster: Cluster) -> Expected:
    """The run ends itself when it is asked to; the next message begins another."""
    async with cluster.chat("eager", "chat") as chat:
        assert await ask(chat, "one") == "answer 1"
        assert await chat.close()
        assert await ask(chat, "two") == "answer 3"
    return {"chat": texts("answer 1", "answer 3")}


@scenario
async def sub_agent(cluster: Cluster) -> Expected:
    async with cluster.chat("asking", "chat") as chat:
        assert await ask(chat, "hi") == "it says: you said hi"
    return {"chat": texts("it says: you said hi")}


@scenario
async def stop_in_a_tool(cluster: Cluster) -> Expected:
    """What a stop cuts off stays in history, mended so that the model takes it (P-8)."""
    async with cluster.chat("strict", "chat") as chat:
        stream = await chat.send_message("look")
        async for chunk in stream:
            if chunk["type"] == "tool-input-available":
                await chat.stop()
        assert stream.complete
        assert await ask(chat, "well") == "2 prompts and some answers"

    def check(turns: list[Turn]) -> None:
        assert turns[0].answers == [0]
        assert [turn.text for turn in turns][1:] == ["2 prompts and some answers"]

    return {"chat": check}


@scenario
async def two_at_once(cluster: Cluster) -> Expected:
    """Two clients start the same chat in the same moment: one session, one run (P-11)."""
    runs: list[str] = []
    first, second = (
        cluster.chat("echo", "chat", on_triggered=lambda started: runs.append(started.run_id))
        for _ in range(2)
    )
    async with first, second:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.preload)
            tasks.start_soon(second.preload)
        assert len(runs) == 2
        assert len(set(runs)) == 1
        assert await ask(first, "one") == "you said one"
        assert await ask(first, "two") == "you said two"
    return {"chat": texts("you said one", "you said two")}


# --- playing one --------------------------------------------------------------------------------

_app: App | None = None


def the_app() -> App:
    """Imported once: a definition may not be made twice."""
    global _app
    if _app is None:
        _app = load_app(str(APP))
    return _app


def play(
    name: str, fault: Fault | None = None, nth: int = 0, *, only: str | None = None
) -> FaultyCalls:
    """One scenario, with one fault at the n-th call; the counts. Raises for what went wrong."""
    faults = FaultyCalls(fault, nth, only=only)

    async def main() -> None:
        async with Cluster(the_app(), seed=1, faults=faults).running() as cluster:
            expected = await SCENARIOS[name](cluster)
            for session, check in expected.items():
                check(await cluster.settled(session))

    run_virtual(main)
    return faults
