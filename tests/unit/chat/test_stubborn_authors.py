"""Author code that does not let go: each turn ends all the same, in bounded time (P-3, P-6)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from everturn import chat
from everturn.chat import closing
from everturn.chat.definition import ChatAgent
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio

DEADLINE_S = 10.0


def agent_of(first: Callable[[], AsyncIterator[str]]) -> ChatAgent[Any]:
    """An agent that answers its first message with `first`, and the others at once."""
    answered: list[str] = []
    with collecting(Registry()):

        @chat.agent("stubborn")
        async def stubborn(turn: Any) -> Any:
            answered.append(turn.text)
            return first() if len(answered) == 1 else f"re {turn.text}"

    return stubborn


async def stopped(h: ChatHarness, reached: anyio.Event) -> None:
    """Stop the first answer when its generator has said so, and wait for the turn's end."""
    await h.post_message("m1")
    with anyio.fail_after(DEADLINE_S):
        await reached.wait()
        await h.send_stop()
        while not await h.turns():
            await h.advance(1)


async def test_a_generator_whose_cleanup_never_ends_does_not_keep_its_turn(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed where it stands, and its `finally` may await: for a bounded time."""

    monkeypatch.setattr(closing, "CLOSE_S_MAX", 0.05)

    async def first() -> AsyncIterator[Any]:
        try:
            yield {"type": None}
        finally:
            await anyio.sleep_forever()

    async with mock_chat_agent(agent_of(first)) as h:
        await h.post_message("m1")
        with anyio.fail_after(DEADLINE_S):
            while not await h.turns():
                await h.advance(1)
        [turn] = await h.turns()
        after = await h.send_message("m2")

    assert turn.errors
    assert after.text == "re m2"
    [line] = [record for record in caplog.records if "stream.unclosed" in record.getMessage()]
    assert line.levelno == logging.ERROR
    assert "first" in line.getMessage()


async def test_a_generator_that_goes_on_after_its_end_was_asked_for_stops_all_the_same() -> None:
    """Python calls it an error that it yields then; for the chat it was stopped, and no more."""
    reached = anyio.Event()

    async def first() -> AsyncIterator[str]:
        while True:
            try:
                yield "x"
                reached.set()
                await anyio.sleep(1)
            except GeneratorExit:
                yield "not yet"  # the end that Python asks for when it is collected is taken
            except BaseException:  # what an author may write around everything
                reached.set()

    async with mock_chat_agent(agent_of(first)) as h:
        await stopped(h, reached)
        [turn] = await h.turns()
        after = await h.send_message("m2")
    assert turn.errors == []
    assert turn.chunks[-1]["type"] == "abort"
    assert after.text == "re m2"


async def test_a_generator_that_fails_in_its_cleanup_fails_a_turn_that_was_not_stopped() -> None:
    """Nothing is hidden: what an author's code raises by itself is the turn's error."""

    async def first() -> AsyncIterator[str]:
        try:
            yield "x"
        finally:
            raise ValueError("no connection to close")

    async with mock_chat_agent(agent_of(first)) as h:
        turn = await h.send_message("m1")

    assert turn.errors == ["no connection to close"]
