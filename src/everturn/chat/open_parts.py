"""What the reducer keeps about parts whose end has not come yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everturn.errors import UIMessageStreamError

Json = dict[str, Any]


class OpenPart:
    """A text or reasoning part and the deltas not yet joined into it."""

    __slots__ = ("part", "pieces")

    def __init__(self, part: Json) -> None:
        self.part = part
        self.pieces: list[str] = []

    def join(self) -> None:
        """Put the deltas into the part."""
        self.part["text"] += "".join(self.pieces)
        self.pieces.clear()


class StreamedCall:
    """A tool call whose input arrives as text."""

    __slots__ = ("dynamic", "fields", "pieces", "tool_name")

    def __init__(self, tool_name: str, dynamic: bool, fields: Json, written: str = "") -> None:
        self.tool_name = tool_name
        self.dynamic = dynamic
        self.fields = fields
        self.pieces = [written]

    def text(self) -> str:
        """Everything that was streamed so far."""
        joined = "".join(self.pieces)
        self.pieces = [joined]
        return joined


def text_field(chunk: Mapping[str, Any], field: str) -> str:
    """A field that must be a string. Raises UIMessageStreamError."""
    value = chunk.get(field)
    if not isinstance(value, str):
        raise UIMessageStreamError(
            f"a {chunk['type']!r} chunk needs a string `{field}`", chunk_type=chunk["type"]
        )
    return value


def not_started(chunk: Mapping[str, Any]) -> UIMessageStreamError:
    """The error for a delta or an end of something that was not begun."""
    chunk_id = chunk.get("toolCallId", chunk.get("id"))
    return UIMessageStreamError(
        f"a {chunk['type']!r} chunk came for {chunk_id!r}, which was not started",
        chunk_type=chunk["type"],
        chunk_id=chunk_id,
    )
