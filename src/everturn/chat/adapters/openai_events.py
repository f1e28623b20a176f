"""Events of OpenAI's two interfaces as chunks: chat completions, and responses.

Many providers speak the first: what differs among them (where reasoning is put, whether usage
comes in a chunk of its own) is looked for in every place known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from everturn.chat.adapters.building import OTHER, Builder, Chunk, get, text_field
from everturn.chat.adapters.usage import InputTokens, OutputTokens, Usage

_COMPLETION_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}
_INCOMPLETE_REASONS: Final = {"max_output_tokens": "length", "content_filter": "content-filter"}


def openai_event(builder: Builder, event: Any) -> Iterator[Chunk]:
    """The chunks of one event of either interface; none for what is not known."""
    if "choices" in event if isinstance(event, Mapping) else hasattr(event, "choices"):
        yield from completion_chunk(builder, event)
    else:
        yield from response_event(builder, event)


def _usage(usage: Any, names: tuple[str, str, str, str]) -> Usage:
    """Both interfaces count the same, in other words."""
    inputs, outputs, input_details, output_details = names
    total_in, total_out = get(usage, inputs), get(usage, outputs)
    cached = get(get(usage, input_details), "cached_tokens")
    reasoning = get(get(usage, output_details), "reasoning_tokens")
    return Usage(
        input_tokens=total_in,
        output_tokens=total_out,
        total_tokens=get(usage, "total_tokens"),
        input_token_details=InputTokens(no_cache=_less(total_in, cached), cache_read=cached),
        output_token_details=OutputTokens(text=_less(total_out, reasoning), reasoning=reasoning),
    )


def _less(total: int | None, part: int | None) -> int | None:
    return None if total is None or part is None else max(0, total - part)


# --- chat completions -----------------------------------------------------------------------------


def completion_chunk(builder: Builder, event: Any) -> Iterator[Chunk]:
    """One `chat.completion.chunk`. Of several choices the first is shown."""
    usage = get(event, "usage")
    if usage is not None:
        names = (
            "prompt_tokens",
            "completion_tokens",
            "prompt_tokens_details",
            "completion_tokens_details",
        )
        builder.spent(_usage(usage, names))
    if get(event, "error") is not None:
        builder.error = text_field(get(event, "error"), "message") or "the provider failed"
    for choice in get(event, "choices", ()):
        if get(choice, "index", 0) != 0:
            continue
        delta = get(choice, "delta")
        for name in ("reasoning_content", "reasoning"):
            yield from builder.delta("reasoning", "reasoning", text_field(delta, name))
        said = text_field(delta, "content") or text_field(delta, "refusal")
        if said:
            # No event ends the thinking; the answer does.
            yield from builder.end_part("reasoning")
            yield from builder.delta("text", "text", said)
        for place, call in enumerate(get(delta, "tool_calls", ())):
            yield from _completion_call(builder, call, place)
        reason = get(choice, "finish_reason")
        if reason is not None:
            builder.finish_reason = _COMPLETION_REASONS.get(reason, OTHER)


def _completion_call(builder: Builder, call: Any, place: int) -> Iterator[Chunk]:
    """A piece of a tool call: the first names it, all carry input."""
    key = ("call", get(call, "index", place))
    function = get(call, "function")
    yield from builder.begin_call(key, text_field(call, "id"), text_field(function, "name"))
    yield from builder.call_delta(key, text_field(function, "arguments"))


# --- responses ------------------------------------------------------------------------------------


def response_event(builder: Builder, event: Any) -> Iterator[Chunk]:
    """One event of the responses interface."""
    handle = _RESPONSE_EVENTS.get(text_field(event, "type"))
    if handle is not None:
        yield from handle(builder, event)


def _place(event: Any, kind: str = "text") -> tuple[str, int, int]:
    """Parts and calls are named by their place in the response.

    Not by the id of their item: servers that only imitate this interface give all the same one.
    """
    return kind, get(event, "output_index", 0), get(event, "content_index", 0)


def _reasoning_place(event: Any) -> tuple[str, int, int]:
    return _place(event, "reasoning")


def _summary_place(event: Any) -> tuple[str, int, int]:
    return "summary", get(event, "output_index", 0), get(event, "summary_index", 0)


def _call_place(event: Any) -> tuple[str, int, int]:
    return _place(event, "call")


def _text(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.delta("text", _place(event), text_field(event, "delta"))


def _reasoning(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.delta("reasoning", _reasoning_place(event), text_field(event, "delta"))


def _summary(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.delta("reasoning", _summary_place(event), text_field(event, "delta"))


def _part_done(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.end_part(_place(event))


def _reasoning_done(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.end_part(_reasoning_place(event))


def _summary_done(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.end_part(_summary_place(event))


def _item_added(builder: Builder, event: Any) -> Iterator[Chunk]:
    item = get(event, "item")
    if get(item, "type") == "function_call":
        key, name = _call_place(event), text_field(item, "name")
        yield from builder.begin_call(key, text_field(item, "call_id"), name)


def _arguments(builder: Builder, event: Any) -> Iterator[Chunk]:
    yield from builder.call_delta(_call_place(event), text_field(event, "delta"))


def _item_done(builder: Builder, event: Any) -> Iterator[Chunk]:
    item = get(event, "item")
    kind = get(item, "type")
    if kind == "function_call":
        yield from _item_added(builder, event)  # a server that does not announce its calls
        yield from builder.end_call(_call_place(event), get(item, "arguments"))
    elif kind == "custom_tool_call":
        call_id, name = text_field(item, "call_id"), text_field(item, "name")
        if call_id and name:
            yield from builder.call(call_id, name, text_field(item, "input"))


def _annotation(builder: Builder, event: Any) -> Iterator[Chunk]:
    annotation = get(event, "annotation")
    if get(annotation, "type") == "url_citation" and text_field(annotation, "url"):
        yield from builder.step()
        url = text_field(annotation, "url")
        title = text_field(annotation, "title")
        source: Chunk = {"type": "source-url", "sourceId": url, "url": url}
        yield {**source, "title": title} if title else source


def _completed(builder: Builder, event: Any) -> Iterator[Chunk]:
    response = get(event, "response")
    calls = any(get(item, "type") == "function_call" for item in get(response, "output", ()))
    incomplete = get(get(response, "incomplete_details"), "reason")
    if get(event, "type") == "response.incomplete":
        builder.finish_reason = _INCOMPLETE_REASONS.get(incomplete, OTHER)
    else:
        builder.finish_reason = "tool-calls" if calls else "stop"
    usage = get(response, "usage")
    if usage is not None:
        names = ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details")
        builder.spent(_usage(usage, names))
    yield from builder.end_parts()


def _failed(builder: Builder, event: Any) -> Iterator[Chunk]:
    error = get(get(event, "response"), "error") or event
    builder.error = text_field(error, "message") or "the provider failed"
    yield from builder.end_parts()


_RESPONSE_EVENTS: Final[Mapping[str, Callable[[Builder, Any], Iterator[Chunk]]]] = {
    "response.output_text.delta": _text,
    "response.output_text.done": _part_done,
    "response.output_text.annotation.added": _annotation,
    "response.refusal.delta": _text,
    "response.refusal.done": _part_done,
    "response.reasoning_text.delta": _reasoning,
    "response.content_part.done": _part_done,
    "response.reasoning_text.done": _reasoning_done,
    "response.reasoning_summary_text.delta": _summary,
    "response.reasoning_summary_text.done": _summary_done,
    "response.output_item.added": _item_added,
    "response.function_call_arguments.delta": _arguments,
    "response.output_item.done": _item_done,
    "response.completed": _completed,
    "response.incomplete": _completed,
    "response.failed": _failed,
    "error": _failed,
}
