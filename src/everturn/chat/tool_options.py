"""What a run knows of the tool call it carries out (chat-agent §4.11.5).

A task called as a tool is a run of its own, possibly in another process. What it is told of the
chat travels in its metadata under one key, written by `ai.tool_execute` and read here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from everturn.errors import ChatContextError
from everturn.tasks import runtime as runtimes
from everturn.tasks.runtime import RunRuntime

METADATA_KEY: Final = "tool.execute.options"


class ToolOptions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The call a run carries out, and the chat that made it.

    Attributes:
        turn: the turn's index in its run; None for a custom agent, which has only its chat.
        chat_locals: the chat's locals by id, as plain data.
    """

    tool_call_id: str
    chat_id: str | None = None
    turn: int | None = None
    continuation: bool | None = None
    client_data: Any = None
    chat_locals: dict[str, Any] = msgspec.field(default_factory=dict)


class ChatContext(msgspec.Struct, frozen=True, kw_only=True):
    """The chat that called this run as a tool; attributes as of `ToolOptions`."""

    chat_id: str
    turn: int | None = None
    continuation: bool | None = None
    client_data: Any = None


def options_of(runtime: RunRuntime) -> ToolOptions | None:
    """What the parent sent along; None for a run that is no tool call."""
    stored = runtime.info.metadata
    if not stored or METADATA_KEY.encode() not in stored:
        return None
    try:
        found = msgspec.json.decode(stored)
        return msgspec.convert(found.get(METADATA_KEY), ToolOptions)
    except (msgspec.DecodeError, msgspec.ValidationError, AttributeError):
        return None  # metadata is an author's to write too: what does not fit is not ours


def current_tool_options() -> ToolOptions | None:
    """The call this run carries out; None outside of a run and in runs that are no tool call."""
    runtime = runtimes.current_or_none()
    return options_of(runtime) if runtime is not None else None


def tool_call_id() -> str | None:
    """The id of the call this run carries out, None where there is none."""
    options = current_tool_options()
    return options.tool_call_id if options is not None else None


def chat_context() -> ChatContext | None:
    """The chat that called this run as a tool, None where there is none."""
    options = current_tool_options()
    if options is None or options.chat_id is None:
        return None
    return ChatContext(
        chat_id=options.chat_id,
        turn=options.turn,
        continuation=options.continuation,
        client_data=options.client_data,
    )


def chat_context_or_raise() -> ChatContext:
    """The chat that called this run as a tool. Raises ChatContextError where there is none."""
    context = chat_context()
    if context is None:
        raise ChatContextError("this run was not called as a tool of a chat")
    return context
