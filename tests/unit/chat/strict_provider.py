"""What the large providers refuse, as a model: it names every rule that a request breaks.

A request that breaks one of these is refused again with every further message of the chat, because
the history that broke it stays: that is what a poisoned history is. The rules are the union of
those of the providers' chat interfaces, so a history that passes may be sent to any of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from everturn.testing import scripted_model
from everturn.testing.models import ScriptedModel

#: Names of functions and ids of calls, as the strictest provider has them.
NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CALL_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ANSWER: Final = "here I am"


def problems(messages: Sequence[ModelMessage]) -> list[str]:
    """The rules that a request breaks; none for a history that can be sent."""
    found = [*_order(messages), *_calls(messages)]
    for place, message in enumerate(messages):
        if not message.parts:
            found.append(f"message {place} is empty")
        found += [f"message {place}: {said}" for part in message.parts for said in _part(part)]
    try:
        ModelMessagesTypeAdapter.dump_json(list(messages))
    except ValueError as error:
        found.append(f"it cannot be written: {error}")
    return found


def _order(messages: Sequence[ModelMessage]) -> list[str]:
    if not messages:
        return ["there is no message"]
    kinds = [message.kind for message in messages]
    found = [] if kinds[-1] == "request" else ["the last message is not the user's"]
    twice = [place for place in range(1, len(kinds)) if kinds[place] == kinds[place - 1]]
    return found + [f"message {place} has the role of the one before" for place in twice]


def _calls(messages: Sequence[ModelMessage]) -> list[str]:
    """Each call has a name, an id of its own, and one result, right after it."""
    found: list[str] = []
    seen: set[str] = set()
    open_: dict[str, str] = {}
    for place, message in enumerate(messages):
        if isinstance(message, ModelRequest):
            for part in message.parts:
                if not isinstance(part, ToolReturnPart | RetryPromptPart):
                    continue
                if open_.pop(part.tool_call_id, None) is None:
                    found.append(
                        f"message {place} answers {part.tool_call_id!r}, which is not open"
                    )
        found += [f"call {call_id!r} has no result right after it" for call_id in open_]
        open_.clear()
        if isinstance(message, ModelResponse):
            for call in message.parts:
                if not isinstance(call, ToolCallPart):
                    continue
                if call.tool_call_id in seen:
                    found.append(f"call id {call.tool_call_id!r} is used twice")
                if not CALL_ID.fullmatch(call.tool_call_id):
                    found.append(f"{call.tool_call_id[:70]!r} is no id of a call")
                if not NAME.fullmatch(call.tool_name):
                    found.append(f"{call.tool_name[:70]!r} is no name of a tool")
                seen.add(call.tool_call_id)
                open_[call.tool_call_id] = call.tool_name
    return found + [f"call {call_id!r} has no result" for call_id in open_]


def _part(part: Any) -> list[str]:
    if isinstance(part, TextPart) and not part.content.strip() and not part.provider_details:
        return ["blank text"]
    if isinstance(part, ThinkingPart) and not (part.content.strip() or part.signature or part.id):
        return ["blank reasoning"]
    if isinstance(part, UserPromptPart):
        items = [part.content] if isinstance(part.content, str) else part.content
        if not items or any(isinstance(item, str) and not item.strip() for item in items):
            return ["a blank prompt"]
    return []


def strict_model(answers: int) -> ScriptedModel:
    """A model that says ANSWER so many times, and refuses a request that breaks a rule."""

    def answer(messages: list[ModelMessage]) -> str:
        broken = problems(messages)
        if broken:
            raise AssertionError("; ".join(broken))
        return ANSWER

    return scripted_model([answer] * answers)


def said(messages: Sequence[ModelMessage]) -> str:
    """Everything a request holds, as text to look for something in."""
    return "\n".join(repr(part) for message in messages for part in message.parts)
