"""Whatever an author hands over, as chunks (chat-agent §4.1; rulings §5.3).

A *streamable* is a string, a UI message, an iterator of strings or chunk dicts (sync or async),
or a stream of the model library. `as_chunks` turns each of them into chunk dicts in the same
form: a `start` that names its message, then parts. Strings between chunks become text parts.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from typing import Any, Final, Protocol, TypeGuard

from everturn.chat.chunks import message_chunks
from everturn.chat.closing import close_iterator
from everturn.ids import Ids
from everturn.tasks.signals import Signal

Chunk = dict[str, Any]


# --- telling streamables apart ------------------------------------------------------------------


class ModelRun(Protocol):
    """A stream of a model's run, which closes its parts and ends by itself when it is stopped."""

    def accompany(self, stop: Signal, on_error: Callable[[BaseException], str] | None) -> None:
        """Stop with `stop` too; `on_error` gives the text of errors unless the author said how."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...


def is_model_run(value: Any) -> TypeGuard[ModelRun]:
    # By its one method that nothing else has: a check of the whole protocol costs more than
    # everything else that happens before a first chunk.
    return hasattr(value, "accompany")


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and isinstance(value.get("parts"), list)


def is_streamable(value: Any) -> bool:
    """Whether a returned value is streamed; anything else an agent returns is ignored."""
    if _is_models_own(value):
        return adapted(value) is not value
    return isinstance(value, str | AsyncIterable | Iterator) or is_message(value)


def _is_models_own(value: Any) -> bool:
    """Whether the model library made it: told by name, so that nobody else pays its import."""
    return type(value).__module__.partition(".")[0] == "pydantic_ai"


def adapted(value: Any) -> Any:
    """What the model library made as a stream of chunks; anything else as it is."""
    if not _is_models_own(value):
        return value
    from everturn.chat.adapters import pydantic_ai

    stream = pydantic_ai.as_stream(value)
    return value if stream is None else stream


#: How model libraries end their event streams. Readers of ours have the turn-complete for that,
#: so these are dropped and never stored (R-019).
END_MARKS: Final = frozenset({"done", "[DONE]"})


def items_of(source: Any) -> AsyncIterator[Any]:
    """The strings and chunks of a streamable or any (async) iterable. Raises TypeError."""
    source = adapted(source)
    if isinstance(source, str):
        return _each([source])
    if is_message(source):
        return _each(message_chunks(source))
    if isinstance(source, AsyncIterable):
        return aiter(source)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return _each(source)
    raise TypeError(f"cannot stream a {type(source).__name__}")


async def _each(source: Iterable[Any]) -> AsyncIterator[Any]:
    for item in source:
        yield item


# --- one form -----------------------------------------------------------------------------------


class _Framing:
    """Puts start, step and text parts around plain strings and stamps the message id."""

    def __init__(self, ids: Ids, message_id: str, *, forced: bool) -> None:
        self._ids = ids
        self._message_id = message_id
        self._forced = forced
        self._started = False
        self._finished = False
        self._step_open = False
        self._text_id: str | None = None

    def text(self, text: str) -> Iterator[Chunk]:
        yield from self._start()
        if self._text_id is None:
            if not self._step_open:
                self._step_open = True
                yield {"type": "start-step"}
            self._text_id = self._ids.part(16)
            yield {"type": "text-start", "id": self._text_id}
        if text:
            yield {"type": "text-delta", "id": self._text_id, "delta": text}

    def chunk(self, chunk: Chunk) -> Iterator[Chunk]:
        kind = chunk.get("type")
        if kind in END_MARKS:
            return
        yield from self._end_text()
        if kind == "start":
            chunk = self._stamped(chunk)
            self._started = True
        elif not self._started:
            yield from self._start()
        if kind == "start-step":
            self._step_open = True
        elif kind == "finish-step":
            self._step_open = False
        elif kind in ("finish", "abort"):
            self._finished = True
        yield chunk

    def end(self) -> Iterator[Chunk]:
        yield from self._end_text()
        if self._finished:
            return  # whoever ended the message, by `finish` or `abort`, has said all of it
        if self._step_open:
            yield {"type": "finish-step"}
        if self._started:
            yield {"type": "finish", "finishReason": "stop"}

    def _start(self) -> Iterator[Chunk]:
        if not self._started:
            self._started = True
            yield {"type": "start", "messageId": self._message_id}

    def _end_text(self) -> Iterator[Chunk]:
        if self._text_id is not None:
            yield {"type": "text-end", "id": self._text_id}
            self._text_id = None

    def _stamped(self, chunk: Chunk) -> Chunk:
        # Only the first start continues a message; a later one begins another.
        if chunk.get("messageId") and not (self._forced and not self._started):
            return chunk
        return {**chunk, "messageId": self._message_id}


async def as_chunks(
    source: Any, *, ids: Ids, message_id: str, forced: bool = False
) -> AsyncGenerator[Chunk, None]:
    """A streamable as chunk dicts: `start` first, its message named, plain text framed.

    Args:
        message_id: stamped on a `start` without one; with `forced`, also on one that has its own
            (an answer that continues a message, or is given again after a crash).

    Raises:
        TypeError: the source, or an item of it, cannot be streamed.
    """
    framing = _Framing(ids, message_id, forced=forced)
    items = items_of(source)
    try:
        async for item in items:
            if isinstance(item, str):
                # Libraries yield strings of classes of their own, which JSON does not know.
                made = framing.text(str(item))
            elif is_message(item):
                made = (c for piece in message_chunks(item) for c in framing.chunk(piece))
            elif isinstance(item, dict):
                made = framing.chunk(item)
            else:
                raise TypeError(f"a stream yields str or chunks, not {type(item).__name__}")
            for chunk in made:
                yield chunk
        for chunk in framing.end():
            yield chunk
    finally:
        await close_iterator(items)
