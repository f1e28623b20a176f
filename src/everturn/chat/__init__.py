"""`chat`: durable chat agents (`from everturn import chat`).

Define an agent with `@chat.agent("id")`; inside a run, the functions here find the run they
belong to by themselves. Outside of one they raise ChatContextError.
"""

from __future__ import annotations

from everturn.chat import context
from everturn.chat.context import (
    defer,
    end_run,
    history,
    is_stopped,
    pipe,
    pipe_and_capture,
    request_upgrade,
    response,
    set_idle_timeout,
    set_messages,
    set_turn_timeout,
)
from everturn.chat.definition import ChatAgent, agent
from everturn.chat.hooks import (
    ActionEvent,
    BeforeTurnCompleteEvent,
    BootEvent,
    ChatResumeEvent,
    ChatStartEvent,
    ChatSuspendEvent,
    HydrateMessagesEvent,
    PreloadEvent,
    PrepareMessagesEvent,
    RecoveryBootEvent,
    RecoveryOverrides,
    ResolveToolsEvent,
    TurnCompleteEvent,
    TurnStartEvent,
    ValidateMessagesEvent,
)
from everturn.chat.messages import clean_aborted_parts as cleanup_aborted_parts
from everturn.chat.state import Turn

__all__ = [
    "ActionEvent",
    "BeforeTurnCompleteEvent",
    "BootEvent",
    "ChatAgent",
    "ChatResumeEvent",
    "ChatStartEvent",
    "ChatSuspendEvent",
    "HydrateMessagesEvent",
    "PreloadEvent",
    "PrepareMessagesEvent",
    "RecoveryBootEvent",
    "RecoveryOverrides",
    "ResolveToolsEvent",
    "Turn",
    "TurnCompleteEvent",
    "TurnStartEvent",
    "ValidateMessagesEvent",
    "agent",
    "cleanup_aborted_parts",
    "defer",
    "end_run",
    "history",
    "is_stopped",
    "pipe",
    "pipe_and_capture",
    "request_upgrade",
    "response",
    "set_idle_timeout",
    "set_messages",
    "set_turn_timeout",
]

#: The friendly `session_…` id of the run's session (D-16). Raises ChatContextError outside of one.
session_id: str


def __getattr__(name: str) -> str:
    if name == "session_id":
        return context.session_id()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
