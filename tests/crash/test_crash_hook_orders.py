"""The hook orders of §3.5 once more, through a real server and a real worker process."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from conversation import Conversations
from hook_orders import ORDERS, RECOVERIES, without_records

from everturn import chat_server
from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.config import configure
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "hooked.py"
WORDS = {
    "follow-up": "two",
    "an error in run": "fail in run",
    "an error in validation": "fail in validation",
    "an error at turn start": "fail at turn start",
    "an upgrade at turn start": "upgrade",
    "a follow-up with hydration": "two",
    "an error in hydration": "fail in hydration",
    "out of memory, and a larger machine": "out of memory",
}


class Ledger:
    """What the agent wrote down of one chat: its hook calls, in their order."""

    def __init__(self, folder: Path) -> None:
        self.chat_id = f"orders-{uuid.uuid4().hex[:8]}"
        self._path = folder / self.chat_id
        self._path.touch()

    def rename(self, chat_id: str) -> None:
        """Watch another chat instead."""
        self.chat_id = chat_id
        self._path = self._path.with_name(chat_id)
        self._path.touch()

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    def names(self) -> list[str]:
        return [name for name in self.lines() if name != "paused"]

    def clear(self, *kept: str) -> None:
        self._path.write_text("".join(f"{name}\n" for name in kept))

    def let_go(self) -> None:
        """Long answers of this chat go on."""
        self._path.with_name(f"{self.chat_id}.go").touch()

    async def holds(self, name: str) -> None:
        """Return when the agent has written `name`."""
        with anyio.fail_after(30):
            while name not in self.lines():
                await anyio.sleep(0.02)

    async def has(self, count: int) -> list[str]:
        """The names, when there are that many; what there is after ten seconds."""
        with anyio.move_on_after(10):
            while len(self.names()) < count:
                await anyio.sleep(0.02)
        return self.names()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Path]]:
    folder = tmp_path_factory.mktemp("orders")
    with System(folder / "data", APP, environment={"EVERTURN_TEST_LEDGER": str(folder)}) as system:
        configure(url=system.url, secret_key=system.key)
        try:
            yield system, folder
        finally:
            configure()


@pytest.fixture
def ledger(running: tuple[System, Path]) -> Ledger:
    return Ledger(running[1])


@pytest.fixture
def system(running: tuple[System, Path]) -> System:
    return running[0]


async def begun(ledger: Ledger, agent: str = "hooked") -> AgentChat:
    """A chat after its first turn, with an empty ledger."""
    chat = AgentChat(agent, id=ledger.chat_id)
    await (await chat.send_message("one")).text()
    await ledger.holds("on_turn_complete")
    if agent != "hooked-short":
        ledger.clear()
    return chat


async def play(scenario: str, ledger: Ledger) -> None:
    """Drive one scenario to its end."""
    if scenario == "preload, then a message":
        chat = AgentChat("hooked", id=ledger.chat_id)
        await (await chat.send_message("hello")).text()
    elif scenario == "preload, suspended, then a message":
        chat = AgentChat("hooked-short", id=ledger.chat_id)
        await chat.preload()
        await ledger.holds("on_chat_suspend")
        await (await chat.send_message("hello")).text()
    elif scenario == "first message":
        await created_with_a_message(ledger.chat_id)
    elif scenario == "suspend and resume":
        chat = await begun(ledger, "hooked-short")
        with anyio.fail_after(10):
            while ledger.lines()[-1] != "on_chat_suspend":
                await anyio.sleep(0.02)
        ledger.clear("on_chat_suspend")  # with the call that this scenario begins with
        await (await chat.send_message("two")).text()
    else:
        agent = "hydrating" if "hydration" in scenario else "hooked"
        if scenario == "out of memory, and a larger machine":
            agent = "hooked-larger"
        await drive(scenario, await begun(ledger, agent), ledger)


async def created_with_a_message(key: str) -> None:
    message = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
    payload = {"chatId": key, "trigger": "submit-message", "message": message}
    await Api().create_session(
        {
            "type": "chat.agent",
            "externalId": key,
            "taskIdentifier": "hooked",
            "triggerConfig": {"basePayload": payload},
        }
    )


async def drive(scenario: str, chat: AgentChat, ledger: Ledger) -> None:
    if scenario in WORDS:
        await (await chat.send_message(WORDS[scenario])).text()
    elif scenario == "a clean continuation":
        await chat.close()
        await (await chat.send_message("two")).text()
    elif scenario in ("an action", "an action with hydration"):
        await (await chat.send_action({"do": 1})).text()
    elif scenario == "an action that changes history":
        await (await chat.send_action({"do": "undo"})).text()
    elif scenario == "a stop in mid-stream":
        stream = await chat.send_message("wait")
        await ledger.holds("paused")
        await chat.stop()
        await stream.text()
    elif scenario == "close while idle":
        await chat.close()
    elif scenario == "close in mid-turn":
        await chat.send_message("wait")
        await ledger.holds("paused")
        await chat.close()
        ledger.let_go()


@pytest.mark.parametrize("scenario", ORDERS)
async def test_the_hooks_of_a_scenario_come_in_their_order(
    system: System, ledger: Ledger, scenario: str
) -> None:
    """R-257, R-038, R-070, R-071, R-091, R-101, R-102, R-103: as in the harness."""
    expected = without_records(ORDERS[scenario])
    await play(scenario, ledger)
    names = await ledger.has(len(expected))

    assert names[: len(expected)] == expected, system.logs()


async def test_a_death_in_mid_stream_is_answered_again_by_the_next_attempt(
    system: System, ledger: Ledger
) -> None:
    """R-257, R-111: kill -9; boot with the recovery hook first, then the turn anew."""
    chat = await begun(ledger)
    await chat.send_message("die")
    await ledger.holds("paused")
    ledger.clear()
    ledger.let_go()
    await Conversations(system).restart_worker()
    expected = without_records(RECOVERIES["a continuation after a death in mid-stream"])

    assert await ledger.has(len(expected)) == expected, system.logs()


async def test_a_run_out_of_memory_has_failed_and_the_next_message_goes_on(
    system: System, ledger: Ledger
) -> None:
    """R-257, R-112: the message that was open fails visibly, the next one has a run of its own."""
    chat = await begun(ledger)
    failed = await (await chat.send_message("out of memory")).result()
    assert failed.error is not None
    assert await (await chat.send_message("two")).text() == "half whole"
    expected = without_records(RECOVERIES["out of memory, and another message"])

    assert await ledger.has(len(expected)) == expected, system.logs()


async def first_step(head: chat_server.HeadStart) -> AsyncIterator[dict[str, Any]]:
    if head.chat_id.endswith("-call"):
        return said("Let me see.", "tool-calls")
    return said("It is noon.", "stop")


async def said(text: str, reason: str) -> AsyncIterator[dict[str, Any]]:
    yield {"type": "start"}
    yield {"type": "start-step"}
    yield {"type": "text-start", "id": "t"}
    yield {"type": "text-delta", "id": "t", "delta": text}
    yield {"type": "text-end", "id": "t"}
    if reason == "tool-calls":
        call = {"toolCallId": "c1", "toolName": "time", "input": {}}
        yield {"type": "tool-input-available", **call}
    yield {"type": "finish-step"}
    yield {"type": "finish", "finishReason": reason}


@pytest.mark.parametrize(
    "scenario", ["a head start with a tool call", "a head start that is the whole answer"]
)
async def test_a_head_start_has_the_hooks_of_its_first_turn(
    system: System, ledger: Ledger, scenario: str
) -> None:
    """R-257, R-213, R-214."""
    key = f"{ledger.chat_id}-{'call' if 'call' in scenario else 'all'}"
    ledger.rename(key)
    question = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "noon?"}]}
    _, completion = await chat_server.start_head_start("hooked", key, [question], first_step)
    await completion
    expected = without_records(RECOVERIES[scenario])

    assert await ledger.has(len(expected)) == expected, system.logs()
