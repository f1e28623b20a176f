"""A model run inside a tool of a turn: what of the turn it may not touch (chat-agent §4.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from everturn import Compaction, chat
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


def said(messages: list[ModelMessage]) -> str:
    return " | ".join(
        str(part.content)
        for message in messages
        for part in message.parts
        if part.part_kind in ("user-prompt", "text")
    )


def used(messages: list[ModelMessage], tool: str) -> bool:
    """Whether a tool was called since the newest message of the user."""
    parts = [part for message in messages for part in message.parts]
    places = [n for n, part in enumerate(parts) if part.part_kind == "user-prompt"]
    return any(getattr(part, "tool_name", None) == tool for part in parts[places[-1] :])


async def test_compacting_a_sub_agents_history_is_not_taken_for_that_of_the_chat() -> None:
    """Its summary in the place of the conversation would make the chat forget everything."""
    heard: list[str] = []
    summarised: list[str] = []

    async def outer(
        messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        heard.append(said(messages))
        if "delegate" in heard[-1].split(" | ")[-1] and not used(messages, "ask"):
            yield {0: DeltaToolCall(name="ask", json_args="{}")}
        else:
            yield "understood"

    def inner(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if used(messages, "look"):
            return ModelResponse(parts=[TextPart("found")])
        return ModelResponse(parts=[ToolCallPart("look", {})])

    helper: Agent[None, str] = Agent(FunctionModel(inner))

    @helper.tool_plain
    async def look() -> str:
        return "seen"

    main: Agent[None, str] = Agent(FunctionModel(stream_function=outer))

    @main.tool_plain
    async def ask() -> str:
        return (await helper.run("look around", **chat.run_options())).output

    def should_compact(event: Any) -> bool:
        return event.source == "inner" and "look around" in said(event.messages)

    def summarize(event: Any) -> str:
        summarised.append(said(event.messages))
        return "somebody looked around"

    @chat.agent(
        "delegating", compaction=Compaction(should_compact=should_compact, summarize=summarize)
    )
    async def delegating(turn: Any) -> Any:
        return turn.stream(main)

    async with mock_chat_agent(delegating) as h:
        await h.send_message("my name is Ada")
        await h.send_message("please delegate")
        await h.send_message("who am I?")
        await h.settled()
    assert "my name is Ada" in heard[-1]
    assert summarised == []
