"""The marker that an answer holds where waiting messages joined it (chat-agent §4.5, X-03).

One part of an assistant message, `data-pending-message-injected`, stands for user messages. Its
`messageIds` and `messages` (id and text) are what the original's clients read; `uiMessages` holds
them whole, so that the model hears of them again. Pure functions on messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everturn.chat.parts import Message, Part, parts_of
from everturn.protocol.chunks import INJECTED_CHUNK


def injected_ids(part: Mapping[str, Any]) -> list[str]:
    """The ids of the messages a marker stands for; none for any other part or chunk."""
    data = part.get("data")
    if part.get("type") != INJECTED_CHUNK or not isinstance(data, dict):
        return []
    found = data.get("messageIds")
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def marked_ids(message: Mapping[str, Any]) -> set[str]:
    """The ids of the messages that the markers of an answer stand for."""
    return {found for part in parts_of(message) for found in injected_ids(part)}


def without_injected(history: Sequence[Message], message_id: str) -> list[Message]:
    """History whose markers do not name this message any more.

    A message that joined a turn which nobody committed is open again, and gets a turn of its own.
    The partial answer that was kept for the dead turn must not say it a second time.
    """
    if not message_id:
        return list(history)
    # In one expression without calls, because each turn looks at the whole history.
    marked = [
        index
        for index, message in enumerate(history)
        if message.get("role") == "assistant" and isinstance(message.get("parts"), list)
        for part in message["parts"]
        if isinstance(part, dict) and part.get("type") == INJECTED_CHUNK
    ]
    found = list(history)
    for index in marked:
        if message_id in marked_ids(found[index]):
            found[index] = _unmarked(found[index], message_id)
    return found


def _unmarked(message: Message, message_id: str) -> Message:
    parts: list[Part] = []
    for part in parts_of(message):
        ids = injected_ids(part)
        if message_id not in ids:
            parts.append(part)
        elif ids != [message_id]:
            parts.append({**part, "data": _without(part["data"], message_id)})
    return {**message, "parts": parts}


def _without(data: dict[str, Any], message_id: str) -> dict[str, Any]:
    made = {**data, "messageIds": [found for found in data["messageIds"] if found != message_id]}
    for field in ("messages", "uiMessages"):
        if isinstance(data.get(field), list):
            made[field] = [
                item
                for item in data[field]
                if not (isinstance(item, dict) and item.get("id") == message_id)
            ]
    return made
