"""Signals of an author's that outlive the turns they are given to: nothing is kept per turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel

from everturn import chat
from everturn.tasks.signals import Signal
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Counting(Signal):
    """Counts who listens."""

    def __init__(self) -> None:
        super().__init__()
        self.listening = 0

    def on_abort(self, callback: Callable[[str], object]) -> Callable[[], None]:
        undo = super().on_abort(callback)
        self.listening += 1

        def counted() -> None:
            self.listening -= 1
            undo()

        return counted


async def test_the_signal_of_a_session_and_of_a_pipe_is_let_go_with_the_turn() -> None:
    own = Counting()
    counts: list[int] = []

    @chat.custom_agent("loop")
    async def loop(payload: Any) -> None:
        async with chat.create_session(payload, signal=own) as session:
            async for turn in session:
                await chat.pipe(f"re {turn.text}", signal=own)
                await turn.done()
                counts.append(own.listening)

    async with mock_chat_agent(loop) as h:
        for number in range(3):
            await h.send_message(f"m{number}")
    assert counts == [0, 0, 0]


async def test_the_signal_of_a_model_stream_is_let_go_with_the_stream() -> None:
    own = Counting()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "answer"

    model = Agent(FunctionModel(stream_function=answer))

    @chat.agent("streaming")
    async def streaming(turn: Any) -> Any:
        return turn.stream(model, stop=own)

    async with mock_chat_agent(streaming) as h:
        for number in range(3):
            await h.send_message(f"m{number}")
        await h.settled()
        assert own.listening == 0


async def test_a_model_stream_with_a_signal_of_its_own_is_still_stopped_with_its_turn() -> None:
    own = Signal()
    began = False

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        nonlocal began
        yield "half"
        began = True
        await own.wait()
        yield "whole"

    model = Agent(FunctionModel(stream_function=answer))

    @chat.agent("streaming")
    async def streaming(turn: Any) -> Any:
        return turn.stream(model, stop=own)

    async with mock_chat_agent(streaming) as h:
        await h.post_message("m1")
        await h.reached(lambda: began)
        await h.send_stop("enough")
        turn = await h.turn_after(-1)
    assert turn.text == "half"
    assert turn.chunks[-1] == {"type": "abort", "reason": "enough"}
