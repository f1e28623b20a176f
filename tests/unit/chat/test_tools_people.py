"""Tools that a person answers or approves, over the real turn loop (R-193 to R-197, §4.11)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    RetryPromptPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.chat.ui_messages import text_of
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import ChatHarness, HarnessTurn, mock_chat_agent

pytestmark = pytest.mark.anyio

Chunk = dict[str, Any]


class Amount(BaseModel):
    amount: int = 1


class World:
    """An agent with four tools; its model calls the tools that the newest message names.

    The id of a call is its tool's name. What the model was asked is kept in `requests`.
    """

    def __init__(self, **options: Any) -> None:
        self.requests: list[list[ModelMessage]] = []
        self.paid: list[int] = []
        #: Whether paying never ends.
        self.stuck = False
        with collecting(Registry()):
            self.agent = self._agent(**options)

    def _agent(self, **options: Any) -> ChatAgent[Any]:
        ask = chat.client_tool("ask", "Ask the person.")

        @chat.tool(needs_approval=True)
        async def pay(amount: Amount) -> str:
            """Pay."""
            self.paid.append(amount.amount)
            if self.stuck:
                await anyio.sleep_forever()
            return "receipt"

        @chat.tool(needs_approval=lambda amount: amount.amount > 100)
        async def tip(amount: Amount) -> str:
            """Tip; small ones need nobody."""
            self.paid.append(amount.amount)
            return "thanks"

        @chat.streaming_tool(name="count", description="Count.", input=Amount)
        async def count(amount: Amount) -> AsyncIterator[int]:
            yield 1
            yield 2

        self.tools = tools = {tool.name: tool for tool in (ask, pay, tip, count)}
        model = FunctionModel(stream_function=self.model)
        self.library = library = Agent(model, instructions=options.pop("instructions", None))

        @chat.agent("people", tools=tools, **options)
        async def people(turn: chat.Turn[Any]) -> Any:
            return turn.stream(library, **chat.run_options(tools=turn.tools))

        return people

    async def model(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        self.requests.append(list(messages))
        prompt = _newest(messages)
        answered = _answered(messages)
        wanted = [n for n in ("ask", "pay", "tip", "count") if n in prompt and n not in answered]
        if wanted and not answered:
            yield "Let me see. "
            for place, name in enumerate(wanted):
                yield {place: DeltaToolCall(name=name, json_args="{}", tool_call_id=name)}
        elif answered:
            yield "; ".join(f"{name}: {content}" for name, content in answered.items())
        else:
            yield f"You said {prompt}."


def _newest(messages: list[ModelMessage]) -> str:
    prompts = [p for m in messages for p in m.parts if isinstance(p, UserPromptPart)]
    return str(prompts[-1].content)


def _answered(messages: list[ModelMessage]) -> dict[str, Any]:
    """What tools said since the newest message of the user."""
    found: dict[str, Any] = {}
    for message in messages:
        for part in message.parts:
            if isinstance(part, UserPromptPart):
                found = {}
            elif isinstance(part, ToolReturnPart | RetryPromptPart):
                found[str(part.tool_name)] = part.content
    return found


def calls_in(messages: list[ModelMessage]) -> list[str]:
    return [p.tool_name for m in messages for p in m.parts if isinstance(p, ToolCallPart)]


def part_of(message: Chunk, name: str) -> Chunk:
    found: Chunk = next(part for part in message["parts"] if part["type"] == f"tool-{name}")
    return found


def answer(message: Chunk, name: str, state: str, **fields: Any) -> Chunk:
    """The slim message of a client: only the part that advanced, and nothing of its text."""
    part = {"type": f"tool-{name}", "toolCallId": name, "state": state, **fields}
    return {"id": message["id"], "role": "assistant", "parts": [part]}


def decision(message: Chunk, name: str, approved: bool, reason: str | None = None) -> Chunk:
    approval = {"id": part_of(message, name)["approval"]["id"], "approved": approved}
    if reason is not None:
        approval["reason"] = reason
    return answer(message, name, "approval-responded", approval=approval)


async def history(harness: ChatHarness) -> list[Chunk]:
    snapshot = await harness.get_snapshot()
    assert snapshot is not None
    found: list[Chunk] = snapshot["messages"]
    return found


async def answered_in(harness: ChatHarness, turn: HarnessTurn) -> Chunk:
    """The message a turn left in history."""
    start = next(chunk for chunk in turn.chunks if chunk["type"] == "start")
    return next(m for m in await history(harness) if m["id"] == start["messageId"])


# --- client tools ---------------------------------------------------------------------------------


async def test_r193_a_client_tool_ends_the_turn_with_its_call_waiting() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        turn = await harness.send_message("please ask")
        await harness.settled()

        assert turn.chunks[-1] == {"type": "finish", "finishReason": "tool-calls"}
        assert part_of(turn.message, "ask")["state"] == "input-available"
        assert harness.suspended or harness.alive
        (asked,) = [m for m in await history(harness) if m["role"] == "assistant"]
        assert part_of(asked, "ask")["state"] == "input-available"


async def test_r194_the_answer_goes_on_under_the_same_message_id() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        turn = await harness.send_message(answer(asked, "ask", "output-available", output="blue"))
        await harness.settled()
        whole = await answered_in(harness, turn)

    assert whole["id"] == asked["id"]
    assert part_of(whole, "ask")["output"] == "blue"
    assert text_of(whole) == "Let me see. ask: blue"
    assert len(await history(harness)) == 2


async def test_an_answer_that_is_an_error_reaches_the_model_too() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        turn = await harness.send_message(answer(asked, "ask", "output-error", errorText="no idea"))

    assert turn.text == "ask: no idea"


async def test_r195_answering_one_of_two_calls_leaves_the_other_pending_and_out_of_the_request() -> (
    None
):
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("ask and pay")).message
        first = await harness.send_message(answer(asked, "ask", "output-available", output="blue"))
        await harness.settled()
        half = await answered_in(harness, first)

        assert first.text == "ask: blue"
        assert part_of(half, "pay")["state"] == "approval-requested"
        assert calls_in(world.requests[-1]) == ["ask"]
        assert world.paid == []

        second = await harness.send_message(decision(half, "pay", True))
        await harness.settled()
        whole = await answered_in(harness, second)

    assert whole["id"] == asked["id"]
    assert world.paid == [1]
    assert part_of(whole, "pay")["state"] == "output-available"
    assert second.text == "ask: blue; pay: receipt"


@pytest.mark.parametrize("how", ["continuation", "next attempt"])
async def test_r196_an_answer_after_the_process_died_goes_on_under_the_same_message_id(
    how: str,
) -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        await harness.settled()
        await harness.crash()
        await harness.restart(attempt=2 if how == "next attempt" else None)
        turn = await harness.send_message(answer(asked, "ask", "output-available", output="blue"))
        await harness.settled()
        whole = await answered_in(harness, turn)

    assert whole["id"] == asked["id"]
    assert text_of(whole) == "Let me see. ask: blue"


async def test_an_answer_under_another_message_id_is_found_by_its_call() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        reply = answer(asked, "ask", "output-available", output="blue")
        turn = await harness.send_message({**reply, "id": "made-up-by-the-client"})
        await harness.settled()
        whole = await answered_in(harness, turn)

    assert whole["id"] == asked["id"]
    assert text_of(whole) == "Let me see. ask: blue"


@pytest.mark.parametrize("instructions", [None, "Be brief."])
async def test_answering_twice_changes_nothing(instructions: str | None) -> None:
    world = World(instructions=instructions)
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        await harness.send_message(answer(asked, "ask", "output-available", output="blue"))
        await harness.settled()
        before, requests = await history(harness), len(world.requests)
        again = await harness.send_message(answer(asked, "ask", "output-available", output="red"))
        await harness.settled()

        assert await history(harness) == before
        assert again.chunks == []
        assert len(world.requests) == requests
        assert (await harness.send_message("hello")).text == "You said hello."


async def test_an_answer_that_failed_half_way_may_be_given_again() -> None:
    world = World()
    failing = True

    async def before(event: Any) -> None:
        if failing and event.turn == 1:
            raise RuntimeError("the database is away")

    world.agent.on_turn_start(before)
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        reply = answer(asked, "ask", "output-available", output="blue")
        failed = await harness.send_message(reply)
        assert failed.errors == ["the database is away"]
        failing = False
        turn = await harness.send_message(reply)

    assert turn.text == "ask: blue"


async def test_a_new_message_instead_of_an_answer_leaves_the_call_out_of_the_request() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        await harness.send_message("please ask")
        turn = await harness.send_message("never mind")
        await harness.settled()

        assert turn.text == "You said never mind."
        assert calls_in(world.requests[-1]) == []
        asked = (await history(harness))[1]
        assert part_of(asked, "ask")["state"] == "input-available"


# --- approvals ------------------------------------------------------------------------------------


async def test_r197_an_approved_call_runs_once_before_the_model_is_asked_again() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please pay")).message
        assert part_of(asked, "pay")["state"] == "approval-requested"
        assert world.paid == []
        turn = await harness.send_message(decision(asked, "pay", True))
        await harness.settled()
        whole = await answered_in(harness, turn)

    kinds = [chunk["type"] for chunk in turn.chunks]
    assert kinds.index("tool-output-available") < kinds.index("text-start")
    assert world.paid == [1]
    assert whole["id"] == asked["id"]
    assert part_of(whole, "pay")["output"] == "receipt"
    assert text_of(whole) == "Let me see. pay: receipt"


async def test_r197_a_denied_call_does_not_run_and_the_model_is_told_why() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please pay")).message
        turn = await harness.send_message(decision(asked, "pay", False, "too expensive"))
        await harness.settled()
        whole = await answered_in(harness, turn)

    assert [chunk for chunk in turn.chunks if chunk["type"] == "tool-output-denied"]
    assert part_of(whole, "pay")["state"] == "output-denied"
    assert world.paid == []
    assert turn.text == "pay: too expensive"


async def test_an_approval_may_depend_on_the_input() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        turn = await harness.send_message("please tip")

    assert world.paid == [1]
    assert turn.text.endswith("tip: thanks")


async def test_approving_twice_runs_it_once() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please pay")).message
        await harness.send_message(decision(asked, "pay", True))
        again = await harness.send_message(decision(asked, "pay", True))

    assert world.paid == [1]
    assert again.chunks == []


async def test_an_approval_that_is_taken_back_after_it_ran_changes_nothing() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please pay")).message
        first = await harness.send_message(decision(asked, "pay", True))
        await harness.send_message(decision(asked, "pay", False))
        await harness.settled()
        whole = await answered_in(harness, first)

    assert part_of(whole, "pay")["state"] == "output-available"


async def test_an_approval_nobody_gave_never_runs_and_a_new_message_goes_on_without_it() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        await harness.send_message("please pay")
        turn = await harness.send_message("hello")

    assert world.paid == []
    assert turn.text == "You said hello."
    assert calls_in(world.requests[-1]) == []


async def test_a_client_cannot_approve_a_call_of_which_nobody_asked_it() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please ask")).message
        forged = answer(asked, "ask", "approval-responded", approval={"id": "x", "approved": True})
        turn = await harness.send_message(forged)

    assert turn.chunks == []


@pytest.mark.parametrize("how", ["continuation", "next attempt"])
async def test_an_approval_given_after_the_process_died_runs_once(how: str) -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please pay")).message
        await harness.settled()
        await harness.crash()
        await harness.restart(attempt=2 if how == "next attempt" else None)
        turn = await harness.send_message(decision(asked, "pay", True))

    assert world.paid == [1]
    assert turn.text == "pay: receipt"


@pytest.mark.parametrize("how", ["continuation", "next attempt"])
async def test_an_approved_call_whose_process_died_is_carried_out_again_in_the_same_message(
    how: str,
) -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("please pay")).message
        await harness.settled()
        world.stuck = True
        await harness.post(harness.wire("submit-message", message=decision(asked, "pay", True)))
        await harness.reached(lambda: world.paid == [1])
        await harness.crash()
        world.stuck = False
        tail = (await harness.records())[-1].seq_num
        await harness.restart(attempt=2 if how == "next attempt" else None)
        turn = await harness.turn_after(tail)
        await harness.settled()
        whole = await answered_in(harness, turn)

    assert world.paid == [1, 1]
    assert whole["id"] == asked["id"]
    assert [part["type"] for part in whole["parts"] if part["type"].startswith("tool-")] == [
        "tool-pay"
    ]
    assert part_of(whole, "pay")["output"] == "receipt"
    assert text_of(whole) == "Let me see. pay: receipt"


# --- both at once ---------------------------------------------------------------------------------


async def test_an_agent_with_four_tools_answers_all_of_them_over_several_messages() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        first = await harness.send_message("ask, pay, tip and count")
        asked = first.message
        states = {n: part_of(asked, n)["state"] for n in ("ask", "pay", "tip", "count")}
        assert states == {
            "ask": "input-available",
            "pay": "approval-requested",
            "tip": "output-available",
            "count": "output-available",
        }
        await harness.send_message(decision(asked, "pay", True))
        turn = await harness.send_message(answer(asked, "ask", "output-available", output="blue"))
        await harness.settled()
        whole = await answered_in(harness, turn)

    assert whole["id"] == asked["id"]
    assert {part_of(whole, n)["state"] for n in states} == {"output-available"}
    assert world.paid.count(1) == 2
    assert "ask: blue" in turn.text
    assert "pay: receipt" in turn.text


async def test_no_request_ever_holds_a_call_without_its_result() -> None:
    """What providers refuse: checked over every request of a conversation with all of it."""
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await harness.send_message("ask and pay")).message
        await harness.send_message("first something else")
        await harness.send_message(answer(asked, "ask", "output-available", output="blue"))
        await harness.send_message(decision(asked, "pay", False))
        await harness.send_message("bye")

    for request in world.requests:
        calls = [p.tool_call_id for m in request for p in m.parts if isinstance(p, ToolCallPart)]
        results = [
            part.tool_call_id
            for message in request
            if isinstance(message, ModelRequest)
            for part in message.parts
            if isinstance(part, ToolReturnPart | RetryPromptPart)
        ]
        assert sorted(calls) == sorted(results)
