"""`ai`: tasks as tools of a chat (`from everturn import ai`).

On the chat's side, `ai.tool_execute(task)` makes a task the body of a tool. In the task,
`ai.chat_context()` and its like tell which call of which chat it carries out.
"""

from __future__ import annotations

from everturn.chat.task_tools import tool_execute
from everturn.chat.tool_options import (
    ChatContext,
    ToolOptions,
    chat_context,
    chat_context_or_raise,
    current_tool_options,
    tool_call_id,
)

__all__ = [
    "ChatContext",
    "ToolOptions",
    "chat_context",
    "chat_context_or_raise",
    "current_tool_options",
    "tool_call_id",
    "tool_execute",
]
