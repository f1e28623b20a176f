"""Raw streams of a provider as streamables: no model library between the provider and the chat.

    @chat.agent("plain")
    async def plain(turn: chat.Turn):
        return openai_chunks(
            client.chat.completions.create(model="…", messages=…, stream=True)
        )

What these functions return goes wherever a streamable goes: returned by an agent, given to
`chat.pipe` or `turn.complete`, or iterated. Text, reasoning, tool calls, sources, the finish
reason and the usage are mapped; tools are not carried out. A loop that carries them out asks the
provider several times for one answer and leaves start and finish to the runtime:

    for _ in range(5):
        step = openai_chunks(ask(conversation), is_step=True)
        async for chunk in step:
            yield chunk
        if not step.calls:
            break
        for call in step.calls:
            yield {"type": "tool-output-available", "toolCallId": call.id, "output": …}

What the provider reports in the stream as its error becomes an `error` chunk and the finish reason
`error`. What the iterator raises (a lost connection, a refused key) is raised here too: the turn
fails with it, and shows the partial answer.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any

import anyio

from everturn.chat.adapters.anthropic_events import MessageEvents
from everturn.chat.adapters.building import Builder, Chunk, ToolCall
from everturn.chat.adapters.openai_events import openai_event
from everturn.chat.adapters.usage import Usage
from everturn.errors import StreamAlreadyConsumed

EventMap = Callable[[Builder, Any], Iterator[Chunk]]


class ProviderStream:
    """A provider's events as chunks. Read once, with `async for`; leaving early closes it.

    Args:
        source: an iterator of events, or an awaitable of one. A sync one that waits for the
            network holds up every other chat of the worker: use the provider's async client.
        to_chunks: maps one event.
        is_step: leave out `start` and `finish`, for one of several requests of an answer.
        on_leave: called when it is closed before its end.
    """

    def __init__(
        self,
        source: Any,
        to_chunks: EventMap,
        *,
        is_step: bool = False,
        on_leave: Callable[[], object] | None = None,
    ) -> None:
        self._source = source
        self._to_chunks = to_chunks
        self._is_step = is_step
        self._on_leave = on_leave
        self._builder = Builder()
        self._chunks: AsyncGenerator[Chunk, None] | None = None

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far whose input is whole, without those the provider carries out."""
        return tuple(self._builder.calls)

    @property
    def usage(self) -> Usage | None:
        """What it cost, once the provider has said so."""
        return self._builder.usage

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: stop, length, content-filter, tool-calls, error, other; None before."""
        return self._builder.finish_reason

    def __aiter__(self) -> AsyncIterator[Chunk]:
        if self._chunks is not None:
            raise StreamAlreadyConsumed("a provider's stream is read once")
        self._chunks = self._read()
        return self._chunks

    async def aclose(self) -> None:
        """End the stream. Safe to call at any time."""
        if self._chunks is not None:
            await self._chunks.aclose()

    async def _read(self) -> AsyncGenerator[Chunk, None]:
        builder = self._builder
        source = await self._source if inspect.isawaitable(self._source) else self._source
        whole = False
        try:
            if not self._is_step:
                yield {"type": "start"}
            async for event in _events(source):
                for chunk in self._to_chunks(builder, event):
                    yield chunk
            for chunk in builder.end_step():
                yield chunk
            if not self._is_step or builder.error is not None:
                for chunk in builder.finish():
                    yield chunk
            whole = True
        finally:
            await self._leave(source, whole)

    async def _leave(self, source: Any, whole: bool) -> None:
        if self._on_leave is not None and not whole:
            self._on_leave()
        close = getattr(source, "aclose", None) or getattr(source, "close", None)
        with anyio.CancelScope(shield=True):
            closed = close() if callable(close) else None
            if inspect.isawaitable(closed):
                await closed


async def _events(source: Any) -> AsyncGenerator[Any, None]:
    if isinstance(source, AsyncIterable):
        async for event in source:
            yield event
        return
    for event in source:
        yield event


def openai_chunks(stream: Any, *, is_step: bool = False) -> ProviderStream:
    """The chunks of an OpenAI stream: of chat completions, or of the responses interface.

    Args:
        stream: what `create(…, stream=True)` returns: events, sync or async, or an awaitable of
            them. Each event is one of the package's objects, or the dict of its JSON.
        is_step: leave out `start` and `finish`, for one of several requests of an answer.
    """
    return ProviderStream(stream, openai_event, is_step=is_step)


def anthropic_chunks(stream: Any, *, is_step: bool = False) -> ProviderStream:
    """The chunks of an Anthropic messages stream.

    Args:
        stream: what `messages.create(…, stream=True)` returns, or the opened
            `messages.stream(…)`; the rest as in `openai_chunks`.
    """
    mapped: list[MessageEvents] = []

    def to_chunks(builder: Builder, event: Any) -> Iterator[Chunk]:
        if not mapped:
            mapped.append(MessageEvents(builder))
        return mapped[0].event(event)

    return ProviderStream(stream, to_chunks, is_step=is_step)
