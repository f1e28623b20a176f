"""Agents that are written to while they work, for tests with real processes."""

import asyncio
from collections.abc import AsyncIterator

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from everturn import chat


async def two_steps(
    messages: list[ModelMessage], info: AgentInfo
) -> AsyncIterator[str | DeltaToolCalls]:
    """Works for a second, then says what it was told, a word at a time."""
    parts = [part for message in messages for part in message.parts]
    if not any(part.part_kind == "tool-return" for part in parts):
        yield {0: DeltaToolCall(name="work", json_args="{}")}
        return
    yield "heard"
    for part in parts:
        if isinstance(part, UserPromptPart):
            await asyncio.sleep(0.3)
            yield f" {part.content}"


model = Agent(FunctionModel(stream_function=two_steps))


@model.tool_plain
async def work() -> str:
    await asyncio.sleep(1)
    return "done"


@chat.agent("steered", on_busy="steer")
async def steered(turn: chat.Turn):
    return turn.stream(model)


@chat.agent("interrupted", on_busy="interrupt")
async def interrupted(turn: chat.Turn):
    for word in range(100):
        yield f"{turn.text}{word} "
        await asyncio.sleep(0.05)
        if turn.text == "now":
            return


@chat.agent("rejecting", on_busy="reject")
async def rejecting(turn: chat.Turn):
    for word in range(10):
        yield f"w{word} "
        await asyncio.sleep(0.1)
