"""Calls that wait for a person, and streams that are cut off around them (R-195; P-8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio


class TwoQuestions:
    """Asks `a` and `b` at once; speaks on at each answer, and hangs or fails the first time."""

    def __init__(self, ending: str) -> None:
        self.ending = ending
        self.hung = anyio.Event()
        self.heard: list[list[str]] = []
        model = Agent(FunctionModel(stream_function=self._answer))
        tools = [chat.client_tool("a", "Ask a."), chat.client_tool("b", "Ask b.")]

        @chat.agent("asking", tools=tools)
        async def asking(turn: chat.Turn[Any]) -> AsyncIterator[Any]:
            stream = turn.stream(model, **chat.run_options(tools=turn.tools))
            async with aclosing(stream):
                async for chunk in stream:
                    yield chunk
                    if chunk["type"] == "text-delta" and not self.hung.is_set():
                        self.hung.set()
                        if self.ending == "fails":
                            raise ValueError("broken")
                        await anyio.sleep_forever()

        self.agent: ChatAgent[Any] = asking

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        parts = [part for message in messages for part in message.parts]
        results = [str(p.tool_name) for p in parts if isinstance(p, ToolReturnPart)]
        self.heard.append(results)
        if results:
            yield f"heard {results}"
        else:
            for place, name in enumerate("ab"):
                yield {place: DeltaToolCall(name=name, json_args="{}", tool_call_id=name)}


def answer(message: dict[str, Any], name: str) -> dict[str, Any]:
    part = {"type": f"tool-{name}", "toolCallId": name, "state": "output-available", "output": 1}
    return {"id": message["id"], "role": "assistant", "parts": [part]}


async def states(h: ChatHarness) -> dict[str, str]:
    snapshot = await h.get_snapshot()
    assert snapshot is not None
    parts = snapshot["messages"][1]["parts"]
    return {p["toolCallId"]: p["state"] for p in parts if "toolCallId" in p}


@pytest.mark.parametrize("ending", ["is stopped", "fails"])
async def test_a_call_that_waits_for_its_answer_outlives_a_turn_that(ending: str) -> None:
    asking = TwoQuestions(ending)
    async with mock_chat_agent(asking.agent) as h:
        asked = (await h.send_message("go")).message
        await h.post_message(answer(asked, "a"))
        await asking.hung.wait()
        if ending == "is stopped":
            await h.send_stop()
        await h.settled()
        assert await states(h) == {"a": "output-available", "b": "input-available"}
        await h.send_message(answer(asked, "b"))
        await h.settled()
        assert await states(h) == {"a": "output-available", "b": "output-available"}
    assert asking.heard[-1] == ["a", "b"]


async def test_it_outlives_a_crash_between_the_turn_complete_and_the_snapshot() -> None:
    asking = TwoQuestions("is stopped")
    stuck = anyio.Event()

    @asking.agent.on_turn_complete
    async def hang(event: Any) -> None:
        if event.stopped and not stuck.is_set():
            stuck.set()
            await anyio.sleep_forever()

    async with mock_chat_agent(asking.agent) as h:
        asked = (await h.send_message("go")).message
        await h.post_message(answer(asked, "a"))
        await asking.hung.wait()
        await h.send_stop()
        await h.reached(stuck.is_set)
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        await h.send_message(answer(asked, "b"))
        await h.settled()
        assert await states(h) == {"a": "output-available", "b": "output-available"}
