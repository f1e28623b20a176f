"""The union of UI message chunks, as data (chat-agent §4.2.1), with what `ai` 7 has added to it.

A chunk is one JSON object on `.out`; its `type` says which fields it carries. The table below is
what this release knows. It is open on both sides: a chunk of a known type may carry more fields,
and a type nobody here has heard of is passed on untouched, because the newest client of a chat is
usually newer than its server. What is listed is checked, since a browser throws on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

FieldKind = Literal["str", "bool", "object", "json", "encoding", "finish"]

FINISH_REASONS: Final = frozenset(
    {"stop", "length", "content-filter", "tool-calls", "error", "other"}
)
INPUT_ENCODINGS: Final = frozenset({"json", "text"})

#: Types that are the runtime's own on the wire and never a chunk (chat-agent §2.4).
RESERVED_PREFIX: Final = "trigger:"
DATA_PREFIX: Final = "data-"
#: Marks in an answer where waiting user messages were taken in (chat-agent §4.5).
INJECTED_CHUNK: Final = "data-pending-message-injected"
COMPACTION_CHUNK: Final = "data-compaction"


class ChunkShape(NamedTuple):
    """The fields of one chunk type, each with the kind of value it must hold."""

    required: Mapping[str, FieldKind]
    optional: Mapping[str, FieldKind] = {}


_META: Final[Mapping[str, FieldKind]] = {"providerMetadata": "object"}
_TOOL: Final[Mapping[str, FieldKind]] = {
    **_META,
    "toolMetadata": "object",
    "providerExecuted": "bool",
    "dynamic": "bool",
}
_TITLED_TOOL: Final[Mapping[str, FieldKind]] = {**_TOOL, "title": "str"}
_ID: Final[Mapping[str, FieldKind]] = {"id": "str"}
_DELTA: Final[Mapping[str, FieldKind]] = {"id": "str", "delta": "str"}
_CALL: Final[Mapping[str, FieldKind]] = {"toolCallId": "str"}
_NAMED_CALL: Final[Mapping[str, FieldKind]] = {"toolCallId": "str", "toolName": "str"}

CHUNKS: Final[Mapping[str, ChunkShape]] = {
    "start": ChunkShape({}, {"messageId": "str", "messageMetadata": "json"}),
    "start-step": ChunkShape({}),
    "text-start": ChunkShape(_ID, _META),
    "text-delta": ChunkShape(_DELTA, _META),
    "text-end": ChunkShape(_ID, {**_META, "citations": "json"}),
    "reasoning-start": ChunkShape(_ID, _META),
    "reasoning-delta": ChunkShape(_DELTA, _META),
    "reasoning-end": ChunkShape(_ID, _META),
    "tool-input-start": ChunkShape(_NAMED_CALL, {**_TITLED_TOOL, "inputEncoding": "encoding"}),
    "tool-input-delta": ChunkShape({**_CALL, "inputTextDelta": "str"}),
    "tool-input-available": ChunkShape({**_NAMED_CALL, "input": "json"}, _TITLED_TOOL),
    "tool-input-error": ChunkShape(
        {**_NAMED_CALL, "input": "json", "errorText": "str"}, _TITLED_TOOL
    ),
    "tool-approval-request": ChunkShape(
        {**_CALL, "approvalId": "str"},
        {
            "approvalDescriptor": "json",
            "inputSchemaInput": "json",
            "isAutomatic": "bool",
            "reason": "str",
            "signature": "str",
        },
    ),
    "tool-approval-response": ChunkShape(
        {"approvalId": "str", "approved": "bool"},
        {**_META, "providerExecuted": "bool", "reason": "str"},
    ),
    "tool-output-available": ChunkShape(
        {**_CALL, "output": "json"}, {**_TOOL, "preliminary": "bool"}
    ),
    "tool-output-error": ChunkShape({**_CALL, "errorText": "str"}, _TOOL),
    "tool-output-denied": ChunkShape(_CALL),
    "source-url": ChunkShape({"sourceId": "str", "url": "str"}, {**_META, "title": "str"}),
    "source-document": ChunkShape(
        {"sourceId": "str", "mediaType": "str", "title": "str"}, {**_META, "filename": "str"}
    ),
    "file": ChunkShape({"url": "str", "mediaType": "str"}, _META),
    "reasoning-file": ChunkShape({"url": "str", "mediaType": "str"}, _META),
    "custom": ChunkShape({"kind": "str"}, _META),
    "steering-message": ChunkShape({"id": "str", "parts": "json"}),
    "message-metadata": ChunkShape({"messageMetadata": "json"}),
    "finish-step": ChunkShape({}),
    "reset-step": ChunkShape({}),
    "finish": ChunkShape({}, {"finishReason": "finish", "messageMetadata": "json"}),
    "abort": ChunkShape({}, {"reason": "str"}),
    "error": ChunkShape({"errorText": "str"}),
}
#: What every `data-<name>` chunk holds.
DATA_SHAPE: Final = ChunkShape({"data": "json"}, {"id": "str", "transient": "bool"})


def shape_of(chunk_type: str) -> ChunkShape | None:
    """The shape of a chunk type; None for a type this release does not know."""
    if chunk_type.startswith(DATA_PREFIX):
        return DATA_SHAPE
    return CHUNKS.get(chunk_type)


def chunk_problem(chunk: Any) -> str | None:
    """What is wrong with a chunk, in one line that names the field; None when nothing is.

    Unknown types and unknown fields are fine. Values are never quoted: they are the user's.
    """
    if not isinstance(chunk, dict):
        return f"a chunk is a JSON object, this is {type(chunk).__name__}"
    chunk_type = chunk.get("type")
    if not isinstance(chunk_type, str) or not chunk_type:
        return "a chunk needs a `type`"
    shape = shape_of(chunk_type)
    if shape is None:
        return None
    for name, kind in shape.required.items():
        if name not in chunk:
            return f"a {chunk_type!r} chunk needs `{name}`"
        if not _fits(chunk[name], kind):
            return f"`{name}` of a {chunk_type!r} chunk is {_WANTED[kind]}"
    for name, kind in shape.optional.items():
        if name in chunk and not _fits(chunk[name], kind):
            return f"`{name}` of a {chunk_type!r} chunk is {_WANTED[kind]}"
    return None


_WANTED: Final[Mapping[FieldKind, str]] = {
    "str": "a string",
    "bool": "true or false",
    "object": "an object",
    "json": "any JSON value",
    "encoding": "'json' or 'text'",
    "finish": "one of " + ", ".join(sorted(FINISH_REASONS)),
}


def _fits(value: Any, kind: FieldKind) -> bool:
    match kind:
        case "json":
            return True
        case "str":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case "encoding":
            return value in INPUT_ENCODINGS if isinstance(value, str) else False
        case "finish":
            return value in FINISH_REASONS if isinstance(value, str) else False
