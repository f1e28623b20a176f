"""`chat.upsert_incoming_message`: for authors who keep the history of their chats themselves."""

from __future__ import annotations

from typing import Any

from everturn.chat.hooks import HydrateMessagesEvent


def upsert_incoming_message(stored: list[dict[str, Any]], event: HydrateMessagesEvent) -> bool:
    """Add what a user has just sent to a stored history, in a `hydrate_messages` hook.

    Only for a submitted message, and only when its id is new: answers to tool calls are put onto
    the stored message by the runtime, and a repeated message changes nothing.

    Args:
        stored: changed in place.

    Returns whether a message was appended, and the history has to be stored.
    """
    if event.trigger != "submit-message" or not event.incoming_messages:
        return False
    message = event.incoming_messages[-1]
    if message.get("id") and any(held.get("id") == message["id"] for held in stored):
        return False
    stored.append(dict(message))
    return True
