"""The UI lane and `chat.history` (chat-agent §4.7).

The lane is the canonical history of a chat. Authors change it through staged mutations, which
compose, are visible to reads at once, and become the lane at the checkpoints of the pipeline.
The lane's `version` rises with every change: what is derived from it (the model lane) is built
again when the version it was built from is no longer current. It holds messages as authors get
them, so what hooks, turns and `chat.history` hand out needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from everturn.chat import hooks
from everturn.chat.parts import is_tool_part, tool_name
from everturn.chat.ui_messages import UIMessage, as_object, as_objects, id_of, index_of

Message = dict[str, Any]
_RESOLVED = ("output-available", "output-error")


class Lane:
    """Ordered UI messages with a staged override."""

    def __init__(self) -> None:
        self._messages: list[UIMessage] = []
        self._staged: list[UIMessage] | None = None
        self.version = 0
        #: Whether an author's change is not stored yet: no log could bring it back.
        self.unsaved = False

    @property
    def messages(self) -> list[UIMessage]:
        """A copy of the list as committed: without what is staged."""
        return list(self._messages)

    @property
    def last(self) -> UIMessage | None:
        return self._messages[-1] if self._messages else None

    def replace_all(self, messages: Iterable[Message]) -> None:
        """The runtime's own change: at once, not staged."""
        self._messages = as_objects(messages)
        self.version += 1

    def upsert(self, message: Message) -> None:
        """Replace the message of that id in place, else append."""
        messages = list(self._messages)
        index = index_of(messages, id_of(message))
        if index is None:
            messages.append(as_object(message))
        else:
            messages[index] = as_object(message)
        self._messages = messages
        self.version += 1

    def current(self) -> list[UIMessage]:
        """A copy, with what is staged."""
        return list(self._messages if self._staged is None else self._staged)

    def stage(self, messages: Sequence[Message]) -> None:
        """The author's change, at the next checkpoint; what is no message is left out (P-8).

        Raises TypeError for what is no list, and for objects that JSON has no form for.
        """
        self._staged = as_objects(hooks.history(messages, "chat.history"))

    def apply(self) -> bool:
        """A checkpoint: what is staged becomes the lane. True when there was something."""
        if self._staged is None:
            return False
        staged, self._staged = self._staged, None
        self.replace_all(staged)
        self.unsaved = True
        return True


class History:
    """`chat.history`: the history of the run this is called in (§4.7).

    Reads are synchronous and include changes that are not applied yet. Changes become the history
    at the next checkpoint: before a message joins, after `on_action`, `on_turn_start`, the agent
    function, `on_before_turn_complete` and `on_turn_complete`. Everything raises ChatContextError
    outside of a run.
    """

    def __init__(self, find: Callable[[], Lane]) -> None:
        """`find` gives the lane of the run that the caller belongs to."""
        self._find = find

    def all(self) -> list[UIMessage]:
        """A copy of the history, oldest message first."""
        return self._find().current()

    def get_chain(self) -> list[UIMessage]:
        """The same as `all`."""
        return self._find().current()

    def find_message(self, id: str) -> UIMessage | None:
        """The message of that id; None when there is none."""
        return next((m for m in self._find().current() if m.get("id") == id), None)

    def get_pending_tool_calls(self) -> list[dict[str, Any]]:
        """Calls of the newest assistant message that wait for an answer."""
        for message in reversed(self._find().current()):
            if message.get("role") == "assistant":
                return [
                    _call(part, message)
                    for part in message.get("parts") or ()
                    if is_tool_part(part) and part.get("state") == "input-available"
                ]
        return []

    def get_resolved_tool_calls(self) -> list[dict[str, Any]]:
        """Calls of the whole chain that have an output or an error."""
        return [
            _call(part, message)
            for message in self._find().current()
            for part in message.get("parts") or ()
            if is_tool_part(part) and part.get("state") in _RESOLVED
        ]

    def extract_new_tool_results(self, message: Message) -> list[dict[str, Any]]:
        """Results in `message` for calls the chain does not hold as resolved; each call once."""
        known = {call["tool_call_id"] for call in self.get_resolved_tool_calls()}
        results = []
        for part in message.get("parts") or ():
            if not is_tool_part(part) or part.get("state") not in _RESOLVED:
                continue
            if part.get("toolCallId") in known:
                continue
            known.add(part.get("toolCallId"))
            result = {
                "tool_call_id": part.get("toolCallId"),
                "tool_name": tool_name(part),
                "output": part.get("output"),
            }
            if part.get("errorText") is not None:
                result["error_text"] = part["errorText"]
            results.append(result)
        return results

    def set(self, messages: Sequence[Message]) -> None:
        """Replace the whole chain."""
        self._find().stage(messages)

    def remove(self, id: str) -> None:
        """Take a message out; an unknown id changes nothing."""
        self._find().stage([m for m in self._find().current() if m.get("id") != id])

    def replace(self, id: str, message: Message) -> None:
        """Put another message in the place of one; an unknown id changes nothing."""
        self._find().stage([message if m.get("id") == id else m for m in self._find().current()])

    def rollback_to(self, id: str) -> None:
        """Keep everything up to and including the message; an unknown id changes nothing."""
        messages = self._find().current()
        for index, message in enumerate(messages):
            if message.get("id") == id:
                self._find().stage(messages[: index + 1])
                return

    def slice(self, start: int, end: int | None = None) -> None:
        """Keep a part, as Python slices lists: negative numbers count from the end."""
        self._find().stage(self._find().current()[start:end])


def _call(part: Message, message: Message) -> dict[str, Any]:
    return {
        "tool_call_id": part.get("toolCallId"),
        "tool_name": tool_name(part),
        "message_id": message.get("id"),
    }
