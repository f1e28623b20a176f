"""Tools over real processes: people who answer late, tasks, sub-agents (chat-agent §4.11, §4.12)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from conversation import Conversations

from everturn import AgentChat, ChatSessionState, ChatStream, runs, sessions
from everturn.chat.reducer import MessageReducer
from everturn.chat.ui_messages import text_of
from everturn.client.config import configure
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "tools.py"
Chunk = dict[str, Any]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    return path


@pytest.fixture
def system(tmp_path: Path, ledger: Path) -> Iterator[System]:
    environment = {"EVERTURN_TEST_LEDGER": str(ledger)}
    with System(tmp_path / "data", APP, environment=environment) as running:
        configure(url=running.url, secret_key=running.key)
        try:
            yield running
        finally:
            configure()


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def message_of(stream: ChatStream, seed: Chunk | None = None) -> Chunk:
    """The message a client ends up with, `seed` being the one it shows so far."""
    reducer = MessageReducer(seed)
    async for chunk in stream:
        reducer.feed(chunk)
    stream.raise_for_error()
    assert stream.complete
    return reducer.snapshot()


def part_of(message: Chunk, name: str) -> Chunk:
    found: Chunk = next(part for part in message["parts"] if part["type"] == f"tool-{name}")
    return found


def answer(message: Chunk, name: str, state: str, **fields: Any) -> Chunk:
    return {**message, "parts": [{**part_of(message, name), "state": state, **fields}]}


def decision(message: Chunk, name: str, approved: bool, **more: Any) -> Chunk:
    approval = {**part_of(message, name)["approval"], "approved": approved, **more}
    return answer(message, name, "approval-responded", approval=approval)


def as_another_client(chat: AgentChat) -> AgentChat:
    """A client that comes back: it has stored its cursor, and nothing of the old connection."""
    return AgentChat(chat.agent, chat.id, session=ChatSessionState(chat.session.last_event_id))


async def test_four_tools_survive_a_restart_of_everything_between_question_and_answer(
    conversations: Conversations, ledger: Path
) -> None:
    chat = AgentChat("people", fresh("people"))
    asked = await message_of(await chat.send_message("pay, erase, count, ask"))
    assert {name: part_of(asked, name)["state"] for name in ("pay", "erase", "count", "ask")} == {
        "pay": "approval-requested",
        "erase": "approval-requested",
        "count": "output-available",
        "ask": "input-available",
    }
    assert ledger.read_text() == ""

    await conversations.restart_both()
    chat = as_another_client(chat)
    stream = await chat.send_raw([decision(asked, "pay", True)])
    paid = await message_of(stream, asked)
    assert paid["id"] == asked["id"]
    assert part_of(paid, "pay")["output"] == {"paid": "tea"}
    assert part_of(paid, "erase")["state"] == "approval-requested"
    assert ledger.read_text() == f"pay {chat.id}\n"

    again = [chunk async for chunk in await chat.send_raw([decision(asked, "pay", True)])]
    assert again == [], "answered twice: nothing new"

    await conversations.restart_both()
    chat = as_another_client(chat)
    reason = {"reason": "not that one"}
    stream = await chat.send_raw([decision(asked, "erase", False, **reason)])
    denied = await message_of(stream, paid)
    assert part_of(denied, "erase")["state"] == "output-denied"
    assert "not that one" in text_of(denied)

    other = await message_of(await chat.send_message("never mind the question"))
    assert text_of(other) == "you said never mind the question"
    assert ledger.read_text() == f"pay {chat.id}\n", "paid once, erased never"
    await conversations.settled(chat.id, 5)


async def test_r198_r199_a_task_carries_out_a_tool_and_writes_to_the_chat(
    conversations: Conversations,
) -> None:
    chat = AgentChat("cook", fresh("cook"), client_data={"user": "u1"})
    chunks = [chunk async for chunk in await chat.send_message("brew and grind")]
    outputs = [chunk for chunk in chunks if chunk["type"] == "tool-output-available"]
    (output,) = [chunk for chunk in outputs if chunk["output"] != "ground"]

    assert len(outputs) == 2, "both tasks ran beside each other"
    call = output["toolCallId"]
    assert output["output"] == {
        "brewed": "tea",
        "call": call,
        "chat": chat.id,
        "user": {"user": "u1"},
        "cups": 7,
        "tags": [f"toolCallId:{call}"],
    }
    assert {"type": "data-brewing", "data": {"what": "tea"}, "transient": True} in chunks
    assert chunks[-1]["type"] == "finish"
    (child,) = [run async for run in runs.list(tag=f"toolCallId:{call}")]
    assert (child.task_identifier, child.status) == ("brew", "COMPLETED")


async def test_r198_a_stop_ends_the_wait_and_cancels_the_task(
    conversations: Conversations,
) -> None:
    chat = AgentChat("cook", fresh("cook"))
    call = ""
    async for chunk in (stream := await chat.send_message("simmer")):
        if chunk["type"] == "tool-input-available":
            call = chunk["toolCallId"]
            await started(call)
            await chat.stop()
    assert stream.complete

    with anyio.fail_after(20):
        while [run.status async for run in runs.list(tag=f"toolCallId:{call}")] != ["CANCELED"]:
            await anyio.sleep(0.05)
    assert text_of(await message_of(await chat.send_message("hello"))) == "you said hello"


async def test_an_approved_task_is_carried_out_by_one_run_although_its_chat_dies_meanwhile(
    conversations: Conversations,
) -> None:
    chat = AgentChat("cook", fresh("cook"))
    asked = await message_of(await chat.send_message("roast"))
    call = part_of(asked, "roast")["toolCallId"]
    stream = await chat.send_raw([decision(asked, "roast", True)])
    async with anyio.create_task_group() as tasks:

        async def kill() -> None:
            await started(call)
            await conversations.restart_worker()

        tasks.start_soon(kill)
        result = await stream.result()

    assert result.complete
    assert "roast: " in result.text
    children = [run async for run in runs.list(tag=f"toolCallId:{call}")]
    assert [run.status for run in children] == ["COMPLETED"]


async def started(call: str) -> None:
    with anyio.fail_after(20):
        while not [run async for run in runs.list(tag=f"toolCallId:{call}", status="EXECUTING")]:
            await anyio.sleep(0.05)


async def test_r200_r202_a_sub_agent_shows_its_progress_and_remembers_over_turns(
    conversations: Conversations,
) -> None:
    chat = AgentChat("lead", fresh("lead"))
    chunks = [chunk async for chunk in await chat.send_message("consult")]
    outputs = [chunk for chunk in chunks if chunk["type"] == "tool-output-available"]
    assert all(chunk.get("preliminary") for chunk in outputs[:-1])
    assert len(outputs) > 1
    assert "preliminary" not in outputs[-1]
    assert text_of(outputs[-1]["output"]) == "answer 1"

    second = await message_of(await chat.send_message("consult again"))
    assert text_of(second) == "One moment. consult: answer 2"
    first_run = (await sessions.retrieve(f"{chat.id}-helper")).current_run_id
    assert await status_of(first_run) in ("EXECUTING", "WAITING")


async def test_r202_a_sub_agent_opened_for_one_answer_ends_its_run(
    conversations: Conversations,
) -> None:
    chat = AgentChat("lead", fresh("lead"))
    answered = await message_of(await chat.send_message("once"))
    assert text_of(part_of(answered, "once")["output"]) == "answer 1"
    run_id = (await sessions.retrieve(f"{chat.id}-once")).current_run_id
    with anyio.fail_after(20):
        while await status_of(run_id) != "COMPLETED":
            await anyio.sleep(0.05)


async def test_r201_stopping_the_parent_stops_the_sub_agents_turn_and_leaves_its_run_alive(
    conversations: Conversations,
) -> None:
    chat = AgentChat("lead", fresh("lead"))
    async for chunk in (stream := await chat.send_message("dawdle")):
        if chunk["type"] == "tool-output-available" and "." in text_of(chunk["output"]):
            await chat.stop()
    assert stream.complete

    helper = f"{chat.id}-helper"
    (turn,) = await conversations.settled(helper, 1)
    assert turn.text.startswith("answer 1.")
    assert turn.text.count(".") < 400
    assert [record.body for record in await conversations.records(helper, "in")][-1].find(
        b"stop"
    ) > 0
    run_id = (await sessions.retrieve(helper)).current_run_id
    assert await status_of(run_id) in ("EXECUTING", "WAITING")
    again = await message_of(await chat.send_message("consult"))
    assert text_of(again) == "One moment. consult: answer 2"


async def status_of(run_id: str | None) -> str:
    assert run_id is not None
    return str((await runs.retrieve(run_id)).status)
