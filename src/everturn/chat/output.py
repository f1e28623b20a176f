"""From chunks to records on `.out` (chat-agent §4.1; rulings §5.3).

`Outlet` writes chunks in call order and never waits; `Response` pipes one streamable, feeding the
same reducer a browser uses, so that the message that is stored is the message that was shown. A
chunk the reducer refuses is refused before it is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import (
    AsyncIterable,
    Iterable,
)
from typing import Any, Protocol

import anyio
import msgspec

from everturn.chat.adapters.usage import usage_of_run
from everturn.chat.chunks import check_chunk
from everturn.chat.reducer import MessageReducer
from everturn.chat.stream_options import UIStreamOptions
from everturn.chat.streamables import END_MARKS, adapted, as_chunks, is_model_run, items_of
from everturn.errors import UIMessageStreamError
from everturn.protocol.records import NewRecord, data_body
from everturn.rules import limits
from everturn.tasks.runtime import RunRuntime
from everturn.tasks.signals import Signal

Chunk = dict[str, Any]


class Outlet:
    """Writes chunks to the session's `.out`, in call order, without waiting."""

    def __init__(self, runtime: RunRuntime) -> None:
        self._runtime = runtime
        #: Chunks written so far: what tells an unused writer from a used one.
        self.count = 0

    def record(self, chunk: Chunk, *, ours: bool = False) -> NewRecord:
        """A chunk as a record, checked. It must be the next thing appended.

        Raises UIMessageStreamError and ChatChunkTooLargeError.
        """
        part_id = self._runtime.part_id()
        body = data_body(check_chunk(chunk, part_id=part_id, ours=ours), part_id)
        return NewRecord(body=body)

    def write(self, chunk: Chunk, *, ours: bool = False) -> None:
        """Write one chunk. The runtime keeps the order and finds out about failures."""
        self.append(self.record(chunk, ours=ours))

    def append(self, record: NewRecord) -> None:
        """Write what `record` made."""
        self._runtime.append([record])
        self.count += 1

    async def write_all(self, source: Any) -> None:
        """Write every chunk of a source as it is: raw, unframed, not captured."""
        async for chunk in items_of(source):
            if not isinstance(chunk, dict):
                raise TypeError(f"expected a chunk, not {type(chunk).__name__}")
            if chunk.get("type") in END_MARKS:
                continue
            await self._runtime.room()
            self.write(chunk)


class DataParts:
    """Data parts written beside the stream, to be appended to the turn's response.

    A later part with the same type and id replaces the earlier one (D-19).
    """

    def __init__(self) -> None:
        self._parts: list[Chunk] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk if it is a `data-*` one that is not transient."""
        if not str(chunk.get("type")).startswith("data-") or chunk.get("transient"):
            return
        part = {key: value for key, value in chunk.items() if key != "transient"}
        part = msgspec.json.decode(msgspec.json.encode(part))
        _put(self._parts, part)

    def move_to(self, message: Chunk) -> Chunk:
        """`message` with the parts at its end; they are gone from here afterwards."""
        parts = list(message.get("parts") or ())
        for part in self._parts:
            _put(parts, part)
        self._parts.clear()
        return {**message, "parts": parts}


def _put(parts: list[Chunk], part: Chunk) -> None:
    if part.get("id") is not None:
        for index, held in enumerate(parts):
            if held.get("type") == part["type"] and held.get("id") == part["id"]:
                parts[index] = part
                return
    parts.append(part)


class ChunkSink(Protocol):
    """Where a `Writer` writes: the run's own `Outlet`, or another chat as a guest."""

    def write(self, chunk: Chunk) -> None: ...

    async def write_all(self, source: Any) -> None: ...


class Writer:
    """`chat.response` and the `writer` of hook events.

    `write` returns at once. `merge` streams a source when the hook has returned, before the next
    step of the turn; merged chunks are never part of the response.
    """

    def __init__(self, out: ChunkSink, kept: DataParts | None) -> None:
        """`kept` is None where no response exists (preload, recovery): nothing is kept then."""
        self._out = out
        self._kept = kept
        self._merged: list[Any] = []

    def write(self, chunk: Chunk) -> None:
        """Write a chunk; data parts that are not transient join the turn's response."""
        self._out.write(chunk)
        if self._kept is not None:
            self._kept.add(chunk)

    def data(self, name: str, data: Any, *, id: str | None = None, transient: bool = False) -> None:
        """Write a `data-<name>` chunk."""
        chunk: Chunk = {"type": f"data-{name}", "data": data}
        if id is not None:
            chunk["id"] = id
        if transient:
            chunk["transient"] = True
        self.write(chunk)

    def merge(self, source: AsyncIterable[Chunk] | Iterable[Chunk]) -> None:
        self._merged.append(source)

    async def flush(self) -> None:
        """Stream what was merged, in the order it was handed over."""
        merged, self._merged = self._merged, []
        for source in merged:
            await self._out.write_all(source)


class Response:
    """One streamable on its way to `.out`, and the message it builds."""

    def __init__(
        self,
        runtime: RunRuntime,
        out: Outlet,
        *,
        message_id: str,
        seed: Chunk | None = None,
        forced: bool = False,
        is_open: bool = False,
        options: UIStreamOptions | None = None,
    ) -> None:
        """`seed` is the message that is continued; its id is `message_id` then.

        `options` say what of the stream is shown. What is not shown is not part of the message.
        With `is_open` readers have seen its `start` and no end yet: none is written again.
        """
        self._runtime = runtime
        self._out = out
        self._message_id = message_id
        self._forced = forced or seed is not None
        self._is_open = is_open
        self._options = options or UIStreamOptions()
        #: Whether the author made the chunks himself, and what knows the cost of the others.
        self._authored = True
        self._counts: Any = None
        self._reducer = MessageReducer(seed)
        self.started = False
        self.cut = False
        self.usage: Any = None

    @property
    def message(self) -> Chunk:
        """The message so far, never without an id."""
        message = self._reducer.snapshot()
        if not message.get("id"):
            message["id"] = self._message_id
        return message

    @property
    def finish_reason(self) -> str | None:
        if self.cut:
            return None
        return "error" if self._reducer.error is not None else self._reducer.finish_reason

    async def pipe(self, source: Any, signal: Signal) -> None:
        """Stream `source` until it ends or `signal` is aborted; then `cut` is set.

        A cut stream ends with the ends of its open parts and an `abort` chunk in place of
        `finish`. A model's run writes those itself, given a little time; any other source is
        cancelled where it waits.
        """
        given, source = source, adapted(source)
        ends_itself = is_model_run(source)
        if ends_itself:
            source.accompany(signal, self._options.on_error)
        self._authored = not ends_itself and source is given
        self._counts = source if ends_itself else given
        chunks = as_chunks(
            source, ids=self._runtime.ids, message_id=self._message_id, forced=self._forced
        )
        grace_s = limits.STOP_S_MAX if ends_itself else 0.0
        with anyio.CancelScope() as scope:
            undo = signal.on_abort(lambda _: _end_within(scope, grace_s))
            try:
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        self._take(chunk)
                        await self._runtime.room()
                        if signal.aborted and not ends_itself:
                            break
            finally:
                undo()
        if signal.aborted and not self._is_finished():
            self._cut_off(signal.reason or "stopped")
        self.usage = usage_of(self._counts)

    def _cut_off(self, reason: str) -> None:
        self.cut = True
        if not self.started or self._reducer.aborted:
            return
        # For readers only: the raw message shows its author where the stream was cut.
        for part_id in self._reducer.open_reasoning_ids:
            self._out.write({"type": "reasoning-end", "id": part_id})
        for part_id in self._reducer.open_text_ids:
            self._out.write({"type": "text-end", "id": part_id})
        self._take({"type": "abort", "reason": reason})

    def _is_finished(self) -> bool:
        return self._reducer.finish_reason is not None and not self._reducer.open_text_ids

    def _take(self, chunk: Chunk) -> None:
        if not isinstance(chunk.get("type"), str):
            raise UIMessageStreamError("a chunk needs a `type`")
        shown = self._options.shown(
            chunk,
            authored=self._authored,
            usage=usage_of(self._counts) if chunk["type"] == "finish" else None,
        )
        if shown is None:
            if chunk["type"] in ("start", "finish"):
                # The message's id and how it ended are known all the same.
                self._reducer.feed(chunk)
            return
        # Three steps, the first two of which may refuse: what a client may not see must not be in
        # the stored message, and what does not fit the message must not reach a client.
        record = self._out.record(shown)
        self._reducer.feed(shown)
        if not (self._is_open and chunk["type"] == "start" and not self.started):
            self._out.append(record)
        self.started = True


def _end_within(scope: anyio.CancelScope, seconds: float) -> None:
    """Cancel a scope, now or when it has not ended by itself in time."""
    if seconds <= 0:
        scope.cancel()
    else:
        scope.deadline = anyio.current_time() + seconds


def usage_of(source: Any) -> Any:
    """The usage a model stream counted, in our fields; None for other sources."""
    usage = getattr(source, "usage", None)
    if hasattr(usage, "cache_read_tokens"):
        return usage_of_run(usage)
    return usage() if callable(usage) else usage


def add_usage(total: Any, usage: Any) -> Any:
    """The sum of two usages, ours or the model library's; None counts as nothing."""
    if usage is None:
        return total
    if hasattr(total, "cache_read_tokens"):
        total = usage_of_run(total)
    return usage if total is None else total + usage
