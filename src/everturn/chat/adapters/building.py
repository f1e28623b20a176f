"""Chunks of an answer, from events of providers: what all of them have in common.

Providers stream parts that begin, grow and end, each in its own words, and some never say that a
part ends. `Builder` keeps what is open and says the rest, so that the chunks always fit: a step
around the parts, an end for each, whole input for every tool call.

Nothing of a provider's package is imported anywhere in these adapters. Events are read by name,
from objects and from dicts alike, and what a release does not know is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from everturn.chat.adapters.usage import Usage

Chunk = dict[str, Any]
Kind = Literal["text", "reasoning"]
#: Ends that say nothing about the answer.
OTHER: Final = "other"


class ToolCall(msgspec.Struct, frozen=True):
    """A tool the model wants called; `input` is whole."""

    id: str
    name: str
    input: Any


def get(value: Any, name: str, default: Any = None) -> Any:
    """A field of an event, which may be an object or a dict. None counts as absent."""
    found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return default if found is None else found


def text_field(value: Any, name: str) -> str:
    """A field that is text; empty where it is absent or something else."""
    found = get(value, name)
    return found if isinstance(found, str) else ""


def plain(value: Any) -> Any:
    """What a provider or a tool returned, as JSON data."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        return str(value)


class _Call:
    __slots__ = ("given", "id", "name", "pieces")

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.pieces: list[str] = []
        #: Whether the whole input was said.
        self.given = False


class Builder:
    """What is open of an answer. Parts are named by whatever the provider names them with.

    Attributes:
        calls: the tool calls whose input is whole, in order.
        usage: added up over all responses; None before the first.
        finish_reason: why the last response ended, in our words; None before it has.
        error: what the provider said went wrong.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._parts: dict[Hashable, tuple[Kind, str]] = {}
        self._calls: dict[Hashable, _Call] = {}
        self._numbers = 0
        self._in_step = False

    # --- steps -----------------------------------------------------------------------------------

    def step(self) -> Iterator[Chunk]:
        """What follows belongs to a step; nothing if one is open."""
        if not self._in_step:
            self._in_step = True
            yield {"type": "start-step"}

    def end_step(self) -> Iterator[Chunk]:
        """End what is open, the step included."""
        yield from self.end_parts()
        for key in list(self._calls):
            yield from self.end_call(key)
        self._calls.clear()
        if self._in_step:
            self._in_step = False
            yield {"type": "finish-step"}

    def finish(self) -> Iterator[Chunk]:
        """The end of the answer, as the provider put it."""
        if self.error is not None:
            self.finish_reason = "error"
            yield {"type": "error", "errorText": self.error}
        yield {"type": "finish", "finishReason": self.finish_reason or OTHER}

    def spent(self, usage: Usage) -> None:
        """A response cost this much."""
        self.usage = usage + self.usage

    # --- text and reasoning ----------------------------------------------------------------------

    def delta(self, kind: Kind, key: Hashable, text: str) -> Iterator[Chunk]:
        """More of a part, which begins with it if need be."""
        if text:
            yield from self.begin_part(kind, key)
            yield {"type": f"{kind}-delta", "id": self._parts[key][1], "delta": text}

    def begin_part(self, kind: Kind, key: Hashable) -> Iterator[Chunk]:
        """A part begins; nothing if it has."""
        if key in self._parts:
            return
        yield from self.step()
        self._numbers += 1
        self._parts[key] = (kind, str(self._numbers))
        yield {"type": f"{kind}-start", "id": str(self._numbers)}

    def end_part(self, key: Hashable, metadata: Mapping[str, Any] | None = None) -> Iterator[Chunk]:
        """A part is over; nothing if it never began."""
        if key in self._parts:
            kind, part_id = self._parts.pop(key)
            chunk: Chunk = {"type": f"{kind}-end", "id": part_id}
            if metadata:
                chunk["providerMetadata"] = dict(metadata)
            yield chunk

    def end_parts(self) -> Iterator[Chunk]:
        for key in list(self._parts):
            yield from self.end_part(key)

    # --- tool calls ------------------------------------------------------------------------------

    def begin_call(self, key: Hashable, call_id: str, name: str, **extra: Any) -> Iterator[Chunk]:
        """The model begins to write a call; nothing if it has."""
        if key in self._calls or not call_id or not name:
            return
        yield from self.step()
        self._calls[key] = _Call(call_id, name)
        yield {"type": "tool-input-start", "toolCallId": call_id, "toolName": name, **extra}

    def call_delta(self, key: Hashable, text: str) -> Iterator[Chunk]:
        """More of a call's input, as JSON text."""
        call = self._calls.get(key)
        if call is not None and text and not call.given:
            call.pieces.append(text)
            yield {"type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": text}

    def end_call(self, key: Hashable, whole: str | None = None, **extra: Any) -> Iterator[Chunk]:
        """A call's input is whole: `whole`, or the pieces that came. Said once per call."""
        call = self._calls.get(key)
        if call is None or call.given:
            return
        call.given = True
        text = "".join(call.pieces) if whole is None else whole
        head = {"toolCallId": call.id, "toolName": call.name, **extra}
        try:
            value = json.loads(text or "{}")
        except ValueError as error:
            why = f"the model wrote no JSON: {error}"
            yield {"type": "tool-input-error", **head, "input": text, "errorText": why}
            return
        yield from self.call(call.id, call.name, value, **extra)

    def call(self, call_id: str, name: str, value: Any, **extra: Any) -> Iterator[Chunk]:
        """A call with its whole input."""
        yield from self.step()
        if not extra.get("providerExecuted"):
            self.calls.append(ToolCall(call_id, name, value))
        head = {"toolCallId": call_id, "toolName": name, **extra}
        yield {"type": "tool-input-available", **head, "input": value}
