"""`chat`: durable chat agents (`from everturn import chat`).

Define an agent with `@chat.agent("id")`; inside a run, the functions here find the run they
belong to by themselves. Outside of one they raise ChatContextError.
"""

from __future__ import annotations

from everturn.chat import context
from everturn.chat.accumulator import MessageAccumulator
from everturn.chat.compaction import (
    Compaction,
    CompactionState,
    CompactMessagesEvent,
    ShouldCompactEvent,
    SummarizeEvent,
    is_compaction_safe,
)
from everturn.chat.context import (
    defer,
    end_run,
    history,
    inject,
    is_stopped,
    pipe,
    pipe_and_capture,
    request_upgrade,
    response,
    set_idle_timeout,
    set_messages,
    set_stream_options,
    set_turn_timeout,
    stream_agent,
)
from everturn.chat.custom import (
    CustomAgent,
    custom_agent,
    wait_for_handover,
    write_turn_complete,
)
from everturn.chat.definition import ChatAgent, agent
from everturn.chat.handover import Handover
from everturn.chat.hooks import (
    ActionEvent,
    BeforeTurnCompleteEvent,
    BootEvent,
    ChatResumeEvent,
    ChatStartEvent,
    ChatSuspendEvent,
    CompactedEvent,
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
from everturn.chat.local import ChatLocal, local
from everturn.chat.loop import ChatSession, LoopTurn, create_session
from everturn.chat.manual_compaction import (
    Compacted,
    Rebuilt,
    Skipped,
    compact,
    compaction_state,
    compaction_step,
)
from everturn.chat.message_input import messages
from everturn.chat.prompts import prompt
from everturn.chat.raw_output import stream
from everturn.chat.run_options import run_options
from everturn.chat.skills import skills
from everturn.chat.steering import (
    PendingBatch,
    PendingInjected,
    PendingMessages,
    PendingReceived,
)
from everturn.chat.stop_signal import StopSignal, stop_signal
from everturn.chat.stream_options import UIStreamOptions
from everturn.chat.tools import Tool, ToolContext, client_tool, streaming_tool, tool
from everturn.chat.turn_view import Turn
from everturn.chat.ui_messages import UIMessage, text_of
from everturn.chat.ui_messages import clean_aborted_parts as cleanup_aborted_parts
from everturn.chat.upsert import upsert_incoming_message
from everturn.client.start_action import create_access_token, create_start_session_action
from everturn.protocol.chunks import INJECTED_CHUNK as PENDING_MESSAGE_INJECTED_TYPE

__all__ = [
    "PENDING_MESSAGE_INJECTED_TYPE",
    "ActionEvent",
    "BeforeTurnCompleteEvent",
    "BootEvent",
    "ChatAgent",
    "ChatLocal",
    "ChatResumeEvent",
    "ChatSession",
    "ChatStartEvent",
    "ChatSuspendEvent",
    "CompactMessagesEvent",
    "Compacted",
    "CompactedEvent",
    "Compaction",
    "CompactionState",
    "CustomAgent",
    "Handover",
    "HydrateMessagesEvent",
    "LoopTurn",
    "MessageAccumulator",
    "PendingBatch",
    "PendingInjected",
    "PendingMessages",
    "PendingReceived",
    "PreloadEvent",
    "PrepareMessagesEvent",
    "RecoveryBootEvent",
    "RecoveryOverrides",
    "Rebuilt",
    "ResolveToolsEvent",
    "ShouldCompactEvent",
    "Skipped",
    "StopSignal",
    "SummarizeEvent",
    "Tool",
    "ToolContext",
    "Turn",
    "TurnCompleteEvent",
    "TurnStartEvent",
    "UIMessage",
    "UIStreamOptions",
    "ValidateMessagesEvent",
    "agent",
    "cleanup_aborted_parts",
    "client_tool",
    "compact",
    "compaction_state",
    "compaction_step",
    "create_access_token",
    "create_session",
    "create_start_session_action",
    "custom_agent",
    "defer",
    "end_run",
    "history",
    "inject",
    "is_compaction_safe",
    "is_stopped",
    "local",
    "messages",
    "pipe",
    "pipe_and_capture",
    "prompt",
    "request_upgrade",
    "response",
    "run_options",
    "set_idle_timeout",
    "set_messages",
    "set_stream_options",
    "set_turn_timeout",
    "skills",
    "stop_signal",
    "stream",
    "stream_agent",
    "streaming_tool",
    "text_of",
    "tool",
    "upsert_incoming_message",
    "wait_for_handover",
    "write_turn_complete",
]

#: The friendly `session_…` id of the run's session (D-16). Raises ChatContextError outside of one.
session_id: str


def __getattr__(name: str) -> str:
    if name == "session_id":
        return context.session_id()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
