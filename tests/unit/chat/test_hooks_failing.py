"""Hooks that raise, one after another: the message is answered or visibly failed (§2.8, P-3).

And the log says which hook of which agent it was, because the error a client sees does not.
"""

from __future__ import annotations

from typing import Any

import pytest

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import ChatHarness, HarnessTurn, mock_chat_agent

pytestmark = pytest.mark.anyio

#: Their failure is logged, and the answer comes all the same.
LOOKING_ON = ("on_turn_complete", "on_chat_suspend", "on_chat_resume")
OF_A_TURN = (
    "on_validate_messages",
    "hydrate_messages",
    "on_chat_start",
    "on_turn_start",
    "prepare_messages",
    "on_before_turn_complete",
)


def failing(name: str) -> ChatAgent[Any]:
    """An agent whose hook of that name always fails."""
    with collecting(Registry()):

        @chat.agent("breaking", idle_timeout="1s")
        async def breaking(turn: Any) -> str:
            return f"re {turn.text}"

    def broken(event: Any) -> Any:
        raise ValueError("the hook is broken")

    breaking.hooks.add(name, broken)
    return breaking


async def second_of_two(h: ChatHarness) -> HarnessTurn:
    """The turn of a message that comes after the run has been suspended."""
    await h.send_message("m1")
    await h.settled()
    await h.advance(5)
    await h.settled()
    return await h.send_message("m2")


def told(caplog: pytest.LogCaptureFixture, name: str) -> bool:
    return f"in {name} of agent 'breaking'" in caplog.text


@pytest.mark.parametrize("name", LOOKING_ON)
async def test_a_hook_that_only_looks_on_costs_no_answer(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with mock_chat_agent(failing(name)) as h:
        turn = await second_of_two(h)
        await h.settled()

    assert (turn.text, turn.errors) == ("re m2", [])
    assert told(caplog, name)


@pytest.mark.parametrize("name", OF_A_TURN)
async def test_a_hook_of_a_turn_fails_that_turn_visibly_and_no_other(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with mock_chat_agent(failing(name)) as h:
        turn = await h.send_message("m1")
        await h.settled()
        assert h.alive

    assert turn.errors == ["the hook is broken"]
    assert told(caplog, name)


async def test_an_action_that_fails_fails_visibly(caplog: pytest.LogCaptureFixture) -> None:
    async with mock_chat_agent(failing("on_action")) as h:
        turn = await h.send_action({"do": 1})
        after = await h.send_message("m1")

    assert turn.errors == ["the hook is broken"]
    assert after.text == "re m1"
    assert told(caplog, "on_action")


@pytest.mark.parametrize("name", ["on_boot", "on_preload"])
async def test_a_hook_of_the_boot_fails_the_run_which_says_where(name: str) -> None:
    """The server then fails the oldest open message (rulings §1.10)."""
    async with mock_chat_agent(failing(name)) as h:
        await h.settled()

    assert [how for _, how in h.outcomes] == ["failed"]
    assert h.error is not None
    assert f"in {name} of agent 'breaking'" in h.error.__notes__
