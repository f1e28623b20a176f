"""Answers to tool calls that come when their message is not the newest any more (R-138, R-194).

Whoever approved something, or answered, must see what came of it: it is carried out once, its
result stands in the message that asked, and the model speaks to it.
"""

from __future__ import annotations

from typing import Any

import pytest
from strict_provider import problems
from test_tools_people import World, answer, answered_in, decision, history, part_of

from everturn import chat
from everturn.chat.ui_messages import text_of
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import ChatHarness, HarnessTurn, mock_chat_agent

pytestmark = pytest.mark.anyio

REPLIES = {
    "approved": ("pay", "output-available", "pay: receipt"),
    "denied": ("pay", "output-denied", "pay: "),
    "answered": ("ask", "output-available", "ask: blue"),
}


def reply_to(asked: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "answered":
        return answer(asked, "ask", "output-available", output="blue")
    return decision(asked, "pay", how == "approved")


async def settled_turn(harness: ChatHarness, message: Any) -> HarnessTurn:
    turn = await harness.send_message(message)
    await harness.settled()
    return turn


@pytest.mark.parametrize("how", REPLIES)
async def test_an_answer_after_another_message_goes_on_in_the_message_that_asked(how: str) -> None:
    name, state, text = REPLIES[how]
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await settled_turn(harness, f"please {name}")).message
        other = (await settled_turn(harness, "hello")).message
        turn = await settled_turn(harness, reply_to(asked, how))
        whole = await answered_in(harness, turn)
        order = [m["id"] for m in await history(harness) if m["role"] == "assistant"]
        goes_on = await settled_turn(harness, "bye")

    assert world.paid == ([1] if how == "approved" else [])
    assert part_of(whole, name)["state"] == state
    assert text_of(whole).startswith(f"Let me see. {text}")
    assert order == [asked["id"], other["id"]]
    assert goes_on.text == "You said bye."
    assert [problems(request) for request in world.requests] == [[]] * 4


async def test_an_approval_after_a_message_whose_turn_failed_is_carried_out() -> None:
    """The history ends in what the user said, and not in an answer."""
    world = World()
    failing: list[str] = []

    @world.agent.on_turn_start
    def fails_once(event: chat.TurnStartEvent) -> None:
        if not failing and event.ui_messages[-1].text == "hello":
            failing.append("hello")
            raise ValueError("no")

    async with mock_chat_agent(world.agent) as harness:
        asked = (await settled_turn(harness, "please pay")).message
        assert (await settled_turn(harness, "hello")).errors
        turn = await settled_turn(harness, decision(asked, "pay", True))
        whole = await answered_in(harness, turn)

    assert world.paid == [1]
    assert whole["id"] == asked["id"]
    assert problems(world.requests[-1]) == []


async def test_a_late_approval_that_is_repeated_runs_once() -> None:
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await settled_turn(harness, "please pay")).message
        await settled_turn(harness, "hello")
        await settled_turn(harness, decision(asked, "pay", True))
        again = await settled_turn(harness, decision(asked, "pay", True))

    assert world.paid == [1]
    assert again.chunks == []


@pytest.mark.parametrize("how", ["approved", "answered"])
async def test_a_late_answer_whose_turn_failed_may_be_given_again(how: str) -> None:
    """What is stored without an effect is not taken for something that was dealt with."""
    name, _, text = REPLIES[how]
    world = World()
    failing: list[str] = []

    @world.agent.on_turn_start
    def fails_once(event: chat.TurnStartEvent) -> None:
        if len(failing) < 3:
            failing.append("turn")
            if len(failing) == 3:
                raise ValueError("no")

    async with mock_chat_agent(world.agent) as harness:
        asked = (await settled_turn(harness, f"please {name}")).message
        await settled_turn(harness, "hello")
        failed = await settled_turn(harness, reply_to(asked, how))
        turn = await settled_turn(harness, reply_to(asked, how))
        whole = await answered_in(harness, turn)

    assert failed.errors
    assert text_of(whole) == f"Let me see. {text}"


@pytest.mark.parametrize("attempt", [None, 2], ids=["a continuation", "the next attempt"])
async def test_a_late_approval_is_carried_out_after_the_process_died(attempt: int | None) -> None:
    """Replay finds the message by its id, and the call in it."""
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await settled_turn(harness, "please pay")).message
        await settled_turn(harness, "hello")
        turn = await settled_turn(harness, decision(asked, "pay", True))
        await harness.crash()
        await harness.restart(attempt)
        await settled_turn(harness, "bye")
        whole = await answered_in(harness, turn)

    assert world.paid == [1]
    assert part_of(whole, "pay")["output"] == "receipt"
    assert problems(world.requests[-1]) == []


async def test_a_late_approval_is_carried_out_in_an_authors_loop_too() -> None:
    world = World()
    with collecting(Registry()):

        @chat.custom_agent("loop")
        async def loop(payload: Any) -> None:
            async with chat.create_session(payload) as session:
                async for turn in session:
                    made = turn.stream(world.library, **chat.run_options(tools=world.tools))
                    await turn.complete(made)

    async with mock_chat_agent(loop) as harness:
        asked = (await settled_turn(harness, "please pay")).message
        await settled_turn(harness, "hello")
        turn = await settled_turn(harness, decision(asked, "pay", True))

    assert world.paid == [1]
    assert turn.message["id"] == asked["id"]
    assert text_of(turn.message) == "Let me see. pay: receipt"


async def test_an_approval_of_a_call_that_nobody_knows_fails_visibly() -> None:
    """A client decides about calls that were put to it; it does not make them up."""
    world = World()
    async with mock_chat_agent(world.agent) as harness:
        asked = (await settled_turn(harness, "hello")).message
        forged = answer(
            {"id": "forged"},
            "pay",
            "approval-responded",
            input={"amount": 1000},
            approval={"id": "pay", "approved": True},
        )
        turn = await settled_turn(harness, forged)
        ids = [m["id"] for m in await history(harness) if m["role"] == "assistant"]

    assert world.paid == []
    assert turn.errors
    assert ids == [asked["id"]]
