"""A model that needs no network and no key: for examples, tests and first steps.

It streams a short answer word by word and calls a declared tool when the question names it. It is
no toy imitation of a language model: what it says depends on nothing but the conversation, so a
test may assert it.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import ToolDefinition

DELAY_MS_DEFAULT: Final = 30
#: Questions whose words do not contain the tool's name and mean it all the same.
_PHRASES: Final = {"current_time": ("what time", "the time", "which time")}
_WORD: Final = re.compile(r"\S+\s*")
_NUMBER: Final = re.compile(r"\d+")


def offline_model(*, delay_ms: float | None = None) -> FunctionModel:
    """The offline model.

    Args:
        delay_ms: the pause before each word; by default `EVERTURN_OFFLINE_DELAY_MS`, else 30.
            A setting that is no number counts as not set.
    """
    delay_s = (_delay_ms() if delay_ms is None else delay_ms) / 1000

    async def stream(
        messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        call = _wanted_call(messages, info.function_tools)
        if call is not None:
            yield {0: DeltaToolCall(name=call.tool_name, json_args=call.args_as_json_str())}
            return
        for word in _WORD.findall(answer(messages)):
            if delay_s > 0:
                await anyio.sleep(delay_s)
            yield word

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        call = _wanted_call(messages, info.function_tools)
        return ModelResponse(parts=[call or TextPart(answer(messages))])

    return FunctionModel(respond, stream_function=stream, model_name="offline")


def answer(messages: Sequence[ModelMessage]) -> str:
    """What the offline model says to a conversation."""
    returned = _returns_since_prompt(messages)
    if returned:
        said = "; ".join(f"{part.tool_name} says {part.model_response_str()}" for part in returned)
        return f"{said}. (Turn {_turn(messages)}, from the offline model.)"
    question = _question(messages)
    heard = f"You said: {question!r}." if question else "You said nothing."
    return (
        f"{heard} This is turn {_turn(messages)} of our conversation. I am the offline model: "
        "I repeat what I hear, so that everything around me can be tried without a key."
    )


def _delay_ms() -> float:
    try:
        return max(0.0, float(os.environ.get("EVERTURN_OFFLINE_DELAY_MS", DELAY_MS_DEFAULT)))
    except ValueError:
        return DELAY_MS_DEFAULT


def _prompts(messages: Sequence[ModelMessage]) -> list[tuple[int, UserPromptPart]]:
    return [
        (index, part)
        for index, message in enumerate(messages)
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]


def _turn(messages: Sequence[ModelMessage]) -> int:
    return max(1, len(_prompts(messages)))


def _question(messages: Sequence[ModelMessage]) -> str:
    prompts = _prompts(messages)
    return _text(prompts[-1][1].content) if prompts else ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(item for item in content if isinstance(item, str))


def _returns_since_prompt(messages: Sequence[ModelMessage]) -> list[ToolReturnPart]:
    prompts = _prompts(messages)
    since = prompts[-1][0] if prompts else 0
    return [
        part
        for message in messages[since:]
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]


def _wanted_call(
    messages: Sequence[ModelMessage], tools: Sequence[ToolDefinition]
) -> ToolCallPart | None:
    """A call of the first tool the newest question names, unless this turn has called one."""
    question = _question(messages)
    if not question or _returns_since_prompt(messages):
        return None
    for tool in tools:
        names = (tool.name, tool.name.replace("_", " "), *_PHRASES.get(tool.name, ()))
        if any(name.lower() in question.lower() for name in names):
            return ToolCallPart(tool.name, _arguments(tool.parameters_json_schema, question))
    return None


def _arguments(schema: dict[str, Any], question: str) -> dict[str, Any]:
    """What a tool cannot do without: the question for texts, and the first number it names."""
    number = _NUMBER.search(question)
    values = {
        "string": question,
        "integer": int(number.group()) if number else 1,
        "number": int(number.group()) if number else 1,
    }
    properties = schema.get("properties", {})
    kinds = {name: properties.get(name, {}).get("type") for name in schema.get("required", ())}
    return {name: values[kind] for name, kind in kinds.items() if kind in values}
