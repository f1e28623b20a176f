"""The fields that the events of a turn share (chat-agent §3.4)."""

from __future__ import annotations

from typing import Any

from everturn.chat import ui_messages
from everturn.chat.state import ChatRun, TurnState
from everturn.chat.turn_view import model_messages


def turn_fields(run: ChatRun, state: TurnState) -> dict[str, Any]:
    """The fields that all turn events share."""
    return {
        "ctx": run.ctx,
        "run_id": run.ctx.run.id,
        "chat_id": run.chat_id,
        "client_data": state.client_data,
        "chat_access_token": state.token,
        "turn": state.turn,
        "ui_messages": run.lane.messages,
        "model_lane": lambda: model_messages(run, state),
        "continuation": run.continuation,
        "previous_run_id": run.previous_run_id,
        "preloaded": run.preloaded,
    }


def end_fields(run: ChatRun, state: TurnState) -> dict[str, Any]:
    """The fields that both completion events share."""
    return {
        **turn_fields(run, state),
        "new_ui_messages": ui_messages.as_objects(state.new_ui_messages),
        "new_model_lane": lambda: _new_messages(state),
        "response_message": _object(state.response),
        "raw_response_message": _object(state.raw_response),
        "stopped": state.stopped,
        "usage": state.usage,
        "finish_reason": state.finish_reason,
    }


def _new_messages(state: TurnState) -> list[Any]:
    """What a turn added, for the model library; nothing after an error (§2.10)."""
    from everturn.chat import conversion

    if state.finish_reason == "error" and state.response is None:
        return []
    return conversion.to_model_messages(state.new_ui_messages, state.tools)


def _object(message: dict[str, Any] | None) -> ui_messages.UIMessage | None:
    return None if message is None else ui_messages.as_object(message)
