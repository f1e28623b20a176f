"""Events of Anthropic's messages interface as chunks.

Content comes in numbered blocks that begin, grow and stop. Thinking is signed at its end; the
signature is kept as provider metadata of the reasoning part, because the interface wants it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from everturn.chat.adapters.building import OTHER, Builder, Chunk, get, plain, text_field
from everturn.chat.adapters.usage import InputTokens, Usage

_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool-calls",
    "refusal": "content-filter",
}


class MessageEvents:
    """Maps the events of one message. One instance per stream."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._signatures: dict[Any, str] = {}
        #: What the provider runs itself, by block: its calls are not for the author.
        self._provided: set[Any] = set()
        self._input: Any = None
        self._output_tokens: int | None = None

    def event(self, event: Any) -> Iterator[Chunk]:
        """The chunks of one event; none for what is not known."""
        handle = _EVENTS.get(text_field(event, "type"))
        if handle is not None:
            yield from handle(self, event)

    def _message_start(self, event: Any) -> Iterator[Chunk]:
        self._input = get(get(event, "message"), "usage")
        yield from self._builder.step()

    def _block_start(self, event: Any) -> Iterator[Chunk]:
        index, block = get(event, "index", 0), get(event, "content_block")
        kind = text_field(block, "type")
        if kind == "text":
            yield from self._builder.delta("text", index, text_field(block, "text"))
        elif kind == "thinking":
            yield from self._builder.begin_part("reasoning", index)
            yield from self._builder.delta("reasoning", index, text_field(block, "thinking"))
        elif kind in ("tool_use", "server_tool_use"):
            extra = {}
            if kind == "server_tool_use":
                self._provided.add(index)
                extra["providerExecuted"] = True
            call_id, name = text_field(block, "id"), text_field(block, "name")
            yield from self._builder.begin_call(index, call_id, name, **extra)
        elif kind.endswith("_tool_result"):
            yield {
                "type": "tool-output-available",
                "toolCallId": text_field(block, "tool_use_id"),
                "output": plain(get(block, "content")),
                "providerExecuted": True,
            }

    def _block_delta(self, event: Any) -> Iterator[Chunk]:
        index, delta = get(event, "index", 0), get(event, "delta")
        kind = get(delta, "type")
        if kind == "text_delta":
            yield from self._builder.delta("text", index, text_field(delta, "text"))
        elif kind == "thinking_delta":
            yield from self._builder.delta("reasoning", index, text_field(delta, "thinking"))
        elif kind == "input_json_delta":
            yield from self._builder.call_delta(index, text_field(delta, "partial_json"))
        elif kind == "signature_delta":
            signed = self._signatures.get(index, "")
            self._signatures[index] = signed + text_field(delta, "signature")

    def _block_stop(self, event: Any) -> Iterator[Chunk]:
        index = get(event, "index", 0)
        signature = self._signatures.pop(index, None)
        metadata = {"anthropic": {"signature": signature}} if signature else None
        yield from self._builder.end_part(index, metadata)
        extra: dict[str, Any] = {"providerExecuted": True} if index in self._provided else {}
        yield from self._builder.end_call(index, **extra)

    def _message_delta(self, event: Any) -> Iterator[Chunk]:
        reason = get(get(event, "delta"), "stop_reason")
        if reason is not None:
            self._builder.finish_reason = _REASONS.get(reason, OTHER)
        self._output_tokens = get(get(event, "usage"), "output_tokens", self._output_tokens)
        yield from ()

    def _message_stop(self, event: Any) -> Iterator[Chunk]:
        fresh = get(self._input, "input_tokens", 0)
        read = get(self._input, "cache_read_input_tokens", 0)
        written = get(self._input, "cache_creation_input_tokens", 0)
        output = self._output_tokens or 0
        self._builder.spent(
            Usage(
                input_tokens=fresh + read + written,
                output_tokens=output,
                total_tokens=fresh + read + written + output,
                input_token_details=InputTokens(
                    no_cache=fresh, cache_read=read, cache_write=written
                ),
            )
        )
        yield from ()

    def _error(self, event: Any) -> Iterator[Chunk]:
        self._builder.error = text_field(get(event, "error"), "message") or "the provider failed"
        yield from ()


_EVENTS: Final[Mapping[str, Callable[[MessageEvents, Any], Iterator[Chunk]]]] = {
    "message_start": MessageEvents._message_start,
    "content_block_start": MessageEvents._block_start,
    "content_block_delta": MessageEvents._block_delta,
    "content_block_stop": MessageEvents._block_stop,
    "message_delta": MessageEvents._message_delta,
    "message_stop": MessageEvents._message_stop,
    "error": MessageEvents._error,
}
