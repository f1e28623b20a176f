"""UI messages: the canonical history, its merge rules and its repair.

A message is a JSON object `{id, role, parts, metadata?}` in wire form. Everything here is a pure
function on plain dicts: nothing given is changed, what is untouched is shared, and keys and part
types nobody here knows survive (R-153). `UIMessage` is the same dict with attribute access, for
authors.

History is repaired when it is loaded and never trusted (P-8): it may have been written by another
program, by a version of ours with a bug, or by a process that died half-way. Repair makes it
something every other function can rely on; it never invents content.

Spec: chat-agent §2.17, §4.2.2, §4.2.3; rulings §5.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from everturn.chat.injected import without_injected
from everturn.chat.parts import (
    CLIENT_STATES,
    FINAL_STATES,
    Message,
    Part,
    is_tool_part,
    parts_of,
    tool_parts,
)
from everturn.ids import Ids

#: A tool call in one of these states can get no result any more once its stream has ended.
_UNFINISHED: Final = ("input-streaming", "input-available", "partial-call")
_ROLES: Final = ("system", "user", "assistant")
_UPPER: Final = re.compile(r"_([a-z0-9])")


class UIMessage(dict[str, Any]):
    """A UI message, or an object inside one, that also allows attribute access.

    `message.parts[0].text` reads `message["parts"][0]["text"]`, `part.tool_call_id` reads
    `toolCallId`. It is a dict in every other respect and encodes as one. Objects inside become
    this class when an attribute is first read, one level at a time: nothing is walked that nobody
    looks at, however deep a client nested it.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        key = _key_of(self, name)
        if key not in self:
            raise AttributeError(f"this has no {name!r}; it has {', '.join(sorted(self))}")
        value = self[key]
        made = _with_attributes(value)
        if made is not value:
            self[key] = made
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        self[_key_of(self, name)] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[_key_of(self, name)]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def text(self) -> str:
        """The text of a text part; of a message, all its text parts put together."""
        own = self.get("text")
        return own if isinstance(own, str) else text_of(self)


def as_object(message: Mapping[str, Any]) -> UIMessage:
    """A message as authors get it; itself when it is one already."""
    return message if isinstance(message, UIMessage) else UIMessage(message)


def as_objects(messages: Iterable[Mapping[str, Any]]) -> list[UIMessage]:
    """Messages as authors get them, in a list of their own."""
    # `as_object` in place: done for the whole history several times in a turn.
    return [m if isinstance(m, UIMessage) else UIMessage(m) for m in messages]


def _key_of(fields: Mapping[str, Any], name: str) -> str:
    if name in fields or "_" not in name:
        return name
    return _UPPER.sub(lambda found: found.group(1).upper(), name)


def _with_attributes(value: Any) -> Any:
    if isinstance(value, dict) and not isinstance(value, UIMessage):
        return UIMessage(value)
    if isinstance(value, list):
        # In place, so that whoever holds the list sees the same objects.
        value[:] = [_with_attributes(item) if isinstance(item, dict) else item for item in value]
    return value


# --- looking at messages ----------------------------------------------------------------------


def new_message_id(ids: Ids) -> str:
    """A fresh id for a message this run writes."""
    return ids.new("msg")


def id_of(message: Mapping[str, Any]) -> str:
    """The id of a message; `""` when it has none, and such a message is never merged."""
    value = message.get("id")
    return value if isinstance(value, str) else ""


def index_of(messages: Sequence[Mapping[str, Any]], message_id: str) -> int | None:
    """Where the message of that id is, looking from the newest; None for the empty id."""
    if message_id:
        ids = [message.get("id") for message in messages]
        if message_id in ids:
            return len(ids) - 1 - ids[::-1].index(message_id)
    return None


def find(messages: Sequence[Message], message_id: str) -> Message | None:
    """The message of that id, or None."""
    index = index_of(messages, message_id)
    return None if index is None else messages[index]


def tool_call_ids(message: Mapping[str, Any]) -> list[str]:
    """The ids of the tool calls of a message, in order, each once."""
    found = (part.get("toolCallId") for part in tool_parts(message))
    return list(dict.fromkeys(call_id for call_id in found if isinstance(call_id, str)))


def find_by_tool_call(messages: Sequence[Message], call_ids: Iterable[str]) -> Message | None:
    """The newest message that holds one of these tool calls (R-138)."""
    wanted = set(call_ids)
    if not wanted:
        return None  # what nearly every message is, and a history may be long
    for message in reversed(messages):
        if wanted.intersection(tool_call_ids(message)):
            return message
    return None


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message: its text parts put together, without what lies between them."""
    return "".join(
        part["text"]
        for part in parts_of(message)
        if part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def awaits_model(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message has something the model did not speak to yet.

    That is a tool result, or a decided approval, in its last step: after every result the model
    has seen stands the step in which it spoke on.
    """
    for part in reversed(parts_of(message)):
        if part.get("type") == "step-start":
            break
        if is_tool_part(part) and part.get("state") in CLIENT_STATES:
            return True
    return any(part.get("state") == "approval-responded" for part in tool_parts(message))


def newly_answered(
    before: Sequence[Message], after: Sequence[Message], incoming: Mapping[str, Any]
) -> frozenset[str]:
    """The tool calls that an incoming message has moved on: answered, approved or denied."""
    states = {part.get("toolCallId"): part.get("state") for m in before for part in tool_parts(m)}
    now = {part.get("toolCallId"): part.get("state") for m in after for part in tool_parts(m)}
    return frozenset(
        call_id
        for call_id in tool_call_ids(incoming)
        if now.get(call_id) in CLIENT_STATES and now.get(call_id) != states.get(call_id)
    )


def has_content(message: Mapping[str, Any]) -> bool:
    """Whether a message holds anything but step borders."""
    return any(part.get("type") != "step-start" for part in parts_of(message))


# --- merging ----------------------------------------------------------------------------------


def merge_by_id(a: Sequence[Message], b: Sequence[Message]) -> list[Message]:
    """`a` with the messages of `b` in it: in place where the id is known, else at the end.

    Messages without an id are always appended (R-135).
    """
    result = list(a)
    places = {id_of(message): index for index, message in enumerate(result)}
    for message in b:
        message_id = id_of(message)
        if message_id and message_id in places:
            result[places[message_id]] = message
        else:
            places[message_id] = len(result)
            result.append(message)
    return result


def overlay(stored: Message, incoming: Mapping[str, Any]) -> Message:
    """`stored` with the answers to tool calls that `incoming` brings, and nothing else of it.

    The client is not trusted with anything but answers: text, reasoning, inputs and calls that
    already have their result stay as they are stored (R-137). Returns `stored` itself when
    nothing changes.
    """
    answers = {
        part.get("toolCallId"): part
        for part in tool_parts(incoming)
        if part.get("state") in CLIENT_STATES and isinstance(part.get("toolCallId"), str)
    }
    parts = [
        _answered(part, answers.get(part.get("toolCallId"))) if is_tool_part(part) else part
        for part in parts_of(stored)
    ]
    if all(new is old for new, old in zip(parts, parts_of(stored), strict=True)):
        return stored
    return {**stored, "parts": parts}


def _answered(part: Part, answer: Part | None) -> Part:
    if answer is None or part.get("state") in FINAL_STATES or part.get("state") == answer["state"]:
        return part
    if answer["state"] == "approval-responded" and part.get("state") != "approval-requested":
        return part  # nobody asked: a client cannot approve what needs no approval
    result = {**part, "state": answer["state"]}
    for field in ("output", "errorText", "approval"):
        if field in answer:
            result[field] = answer[field]
    return result


def accumulate(
    messages: Sequence[Message], incoming: Message | None, trigger: str
) -> list[Message]:
    """The history after a user-side record: the default accumulation of chat-agent §2.17.

    A submitted message is overlaid on the stored one of its id, or on the one that holds its tool
    calls; a new one is appended. Regenerating drops the trailing answer. Other triggers change
    nothing. The message comes from a client, so it is repaired first; one that cannot be is none.
    """
    result = list(messages)
    incoming = next(iter(repair([incoming])), None)
    if trigger == "regenerate-message":
        while result and result[-1].get("role") != "user":
            result.pop()
    elif trigger == "submit-message" and incoming is not None:
        stored = find(result, id_of(incoming)) or find_by_tool_call(result, tool_call_ids(incoming))
        if stored is None:
            result = [*without_injected(result, id_of(incoming)), incoming]
        else:
            result[_place(result, stored)] = overlay(stored, incoming)
    return result


def _place(messages: Sequence[Message], message: Message) -> int:
    return next(index for index, item in enumerate(messages) if item is message)


def clean_aborted_parts(message: Message, history: Sequence[Message] = ()) -> Message:
    """A message whose stream was cut off, made whole: the calls that never ran are dropped.

    Text and reasoning that was still streaming is kept and marked done. So are calls that
    `history` holds in the message of this id: the stream continued it, and they have waited for
    a person since an earlier one.
    """
    before = find(history, id_of(message)) or {}
    waiting = {
        part.get("toolCallId")
        for part in tool_parts(before)
        if part.get("state") == "input-available"
    }
    parts = [
        _done(part)
        for part in parts_of(message)
        if not (is_tool_part(part) and part.get("state") in _UNFINISHED)
        or (part.get("state") == "input-available" and part.get("toolCallId") in waiting)
    ]
    return {**message, "parts": parts}


def _done(part: Part) -> Part:
    if part.get("type") in ("text", "reasoning") and part.get("state") == "streaming":
        return {**part, "state": "done"}
    return part


# --- repair -----------------------------------------------------------------------------------


def repair(messages: Any) -> list[Message]:
    """History as it was found, made safe to work with. Doing it twice changes nothing more.

    * What is no message (no object, no known role) and what is no part is dropped.
    * Of several messages with one id the last wins, in the place of the first.
    * Text left streaming is done; a tool call whose input never became whole is dropped, and so
      is a call without an id. Calls that wait for an answer stay: it may still come.
    * Of several parts for one tool call in one message the most advanced stays, in the place of
      the first, because providers refuse a history with two results for one call.
    * Unknown part types and keys stay.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        return []
    whole = (_repaired(message) for message in messages)
    return merge_by_id([], [message for message in whole if message is not None])


def _repaired(message: Any) -> Message | None:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        return None
    found = [part for part in parts_of(message) if _is_part(part)]
    parts = [_done(part) for part in _one_part_per_call(found)]
    if not isinstance(message.get("parts"), list) and isinstance(message.get("content"), str):
        parts = [{"type": "text", "text": message["content"]}]
    unchanged = isinstance(message.get("parts"), list) and len(parts) == len(message["parts"])
    if unchanged and all(a is b for a, b in zip(parts, message["parts"], strict=True)):
        return message if isinstance(message.get("id"), str) else {**message, "id": ""}
    return {**message, "id": id_of(message), "parts": parts}


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return False
    if part["type"] in ("text", "reasoning"):
        return isinstance(part.get("text"), str)
    if not is_tool_part(part):
        return True
    call_id = part.get("toolCallId")
    return isinstance(call_id, str) and part.get("state") not in ("input-streaming", "partial-call")


def _one_part_per_call(parts: list[Part]) -> list[Part]:
    result: list[Part] = []
    places: dict[str, int] = {}
    for part in parts:
        if not is_tool_part(part):
            result.append(part)
            continue
        place = places.setdefault(part["toolCallId"], len(result))
        if place == len(result):
            result.append(part)
        elif _progress(part) > _progress(result[place]):
            result[place] = part
    return result


_PROGRESS: Final = ("input-available", "approval-requested", "approval-responded")


def _progress(part: Part) -> int:
    """How far a tool call has come; later states of a call replace earlier ones."""
    state = part.get("state")
    if state in FINAL_STATES:
        return len(_PROGRESS) + (0 if part.get("preliminary") else 1)
    return _PROGRESS.index(state) if state in _PROGRESS else -1
