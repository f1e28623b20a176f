"""Parts of UI messages as plain JSON: what everything that handles them has in common.

Messages, parts and chunks stay dicts in their wire form, because unknown keys and unknown part
types must survive every read-modify-write (R-153); a class per part would have to invent a home
for them. These helpers are the few places that know where a tool part keeps what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

Part = dict[str, Any]
Message = dict[str, Any]

#: Told apart from None: JSON `null` is a value, an absent key is none.
ABSENT: Final[Any] = object()

#: Tool states that nothing may change any more. Tuples, not sets: what a client wrote there may
#: be no string at all, and asking a set would raise.
FINAL_STATES: Final = ("output-available", "output-error", "output-denied")
#: Tool states a client may bring (chat-agent §2.17).
CLIENT_STATES: Final = (*FINAL_STATES, "approval-responded")


def parts_of(message: Mapping[str, Any]) -> list[Part]:
    """The parts of a message; none when it has none."""
    parts = message.get("parts")
    return parts if isinstance(parts, list) else []


def tool_parts(message: Mapping[str, Any]) -> Iterator[Part]:
    """The tool calls of a message, in order."""
    return (part for part in parts_of(message) if is_tool_part(part))


def is_tool_part(part: Mapping[str, Any]) -> bool:
    """Whether a part is a tool call, of a declared tool or of one known at run time only."""
    kind = part.get("type")
    return isinstance(kind, str) and (kind.startswith("tool-") or kind == "dynamic-tool")


def is_handed_over(part: Mapping[str, Any]) -> bool:
    """Whether a call was marked as approved by a head start, which is nobody's approval."""
    approval = part.get("approval")
    return isinstance(approval, dict) and approval.get("handover") is True


def is_dynamic(part: Mapping[str, Any]) -> bool:
    """Whether a tool part names its tool in `toolName` and not in its type."""
    return part.get("type") == "dynamic-tool"


def tool_name(part: Mapping[str, Any]) -> str:
    """The tool a tool part calls."""
    if is_dynamic(part):
        return str(part.get("toolName", ""))
    return str(part["type"]).removeprefix("tool-")


def copy_message(message: Mapping[str, Any]) -> Message:
    """A copy whose keys and whose parts' keys can be set without changing the original.

    Values inside parts are shared: they are replaced, never changed in place. That makes a copy
    cheap, and a value nested too deep for a recursive copy cannot break a chat.
    """
    return {**message, "parts": [dict(part) for part in parts_of(message)]}


def merged(base: Any, over: Any) -> Any:
    """`over` merged into a copy of `base`: objects key by key, everything else replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    result = dict(base)
    for key, value in over.items():
        result[key] = merged(base[key], value) if key in base else value
    return result


def write_tool(part: Part, chunk: Mapping[str, Any], name: str, state: str, **values: Any) -> None:
    """Give a tool part its new state. What the new state does not have is taken away."""
    part["state"] = state
    if is_dynamic(part):
        part["toolName"] = name
    else:
        part["type"] = f"tool-{name}"
    for field in ("input", "output", "errorText", "rawInput", "preliminary"):
        set_or_drop(part, field, values.get(field, ABSENT))
    encoding = chunk.get("inputEncoding")
    set_or_drop(part, "inputEncoding", ABSENT if encoding is None else encoding)
    copy_fields(chunk, part, "title", "toolMetadata")
    if chunk.get("providerExecuted") is not None:
        part["providerExecuted"] = chunk["providerExecuted"]
    if chunk.get("providerMetadata") is not None:
        of_result = state in ("output-available", "output-error")
        key = "resultProviderMetadata" if of_result else "callProviderMetadata"
        part[key] = chunk["providerMetadata"]


def set_or_drop(part: Part, field: str, value: Any) -> None:
    if value is ABSENT:
        part.pop(field, None)
    else:
        part[field] = value


def copy_fields(source: Mapping[str, Any], target: Part, *fields: str) -> None:
    for field in fields:
        if field in source:
            target[field] = source[field]


def without(chunk: Mapping[str, Any], *fields: str) -> Part:
    return {key: value for key, value in chunk.items() if key not in fields}
