"""One turn's answer, to be read once, in one of four ways."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import msgspec

from everturn.client.binding import message_reducer
from everturn.client.turns import TurnReader
from everturn.errors import ChatTurnError, StreamAlreadyConsumed, UIMessageStreamError
from everturn.protocol.records import RESTARTED_CHUNK

Chunk = dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True):
    """A tool the agent called; `input` is whole."""

    tool_name: str
    tool_call_id: str
    input: Any


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool returned; preliminary results are listed too, in order."""

    tool_call_id: str
    output: Any


class ChatResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer.

    * `message`: the UI message a browser would show; None when nothing could be built, such as
      from the middle of a turn.
    * `error`: text of the last error chunk. `complete`: whether the turn's end was seen.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    message: dict[str, Any] | None = None
    error: str | None = None
    complete: bool = False


class _Collected:
    """What accumulates while chunks pass."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.calls: list[ToolCall] = []
        self.results: list[ToolResult] = []

    def take(self, chunk: Chunk) -> None:
        kind = chunk["type"]
        if kind == "text-delta":
            self.text.append(str(chunk.get("delta", "")))
        elif kind == "tool-input-available":
            self.calls.append(
                ToolCall(
                    str(chunk.get("toolName", "")),
                    str(chunk.get("toolCallId", "")),
                    chunk.get("input"),
                )
            )
        elif kind == "tool-output-available":
            self.results.append(ToolResult(str(chunk.get("toolCallId", "")), chunk.get("output")))


class ChatStream:
    """The answer to one message.

    Iterate it for chunks, or await `text()` or `result()`, or iterate `messages()`. Leaving early
    (`async with`, `aclose`) detaches and leaves the turn running; only the caller's signal and
    `AgentChat.stop()` stop it.

    A turn that a crash interrupted is answered again on the same stream: a chunk
    `data-restarted` says so, and what came before it does not count any more. `text`, `result`
    and `messages` already know; whoever iterates chunks should start over at it.
    """

    #: Chunk type that says: forget what this turn said so far, it is answered anew.
    RESTARTED: Final = RESTARTED_CHUNK

    def __init__(self, reader: TurnReader) -> None:
        self._reader = reader
        self._mode: str | None = None
        self._error: str | None = None
        self._text: str | None = None
        self._result: ChatResult | None = None

    # --- state -----------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True once the end of the turn was seen. False after silence, an abort or leaving."""
        return self._reader.complete

    @property
    def error(self) -> str | None:
        """The text of the last error chunk so far."""
        return self._error

    def raise_for_error(self) -> None:
        """Raises ChatTurnError if the turn wrote an error chunk."""
        if self._error is not None:
            raise ChatTurnError(self._error)

    # --- reading ---------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Chunk]:
        self._consume("chunks")
        return self._chunks()

    async def text(self) -> str:
        """All text of the answer, joined."""
        if self._text is None:
            self._consume("text")
            collected = _Collected()
            async for chunk in self._chunks():
                if chunk["type"] == RESTARTED_CHUNK:
                    collected = _Collected()
                collected.take(chunk)
            self._text = "".join(collected.text)
        return self._text

    async def result(self) -> ChatResult:
        """The whole answer; kept, so it can be asked for again."""
        if self._result is None:
            self._consume("result")
            self._result = await self._collect()
        return self._result

    def messages(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as a UI message, again after each change; the last one is the final one.

        Each is what history would hold then: where a turn is answered anew, the next snapshot is
        the same message without what the dead attempt had said.

        Raises UIMessageStreamError while iterating when chunks do not fit, such as on a stream
        that begins in the middle of a turn.
        """
        self._consume("messages")
        return self._messages()

    async def aclose(self) -> None:
        """Detach. The turn goes on; a later `AgentChat.reconnect` can read the rest."""
        await self._reader.aclose()

    async def __aenter__(self) -> ChatStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # --- how -------------------------------------------------------------------------------------

    def _consume(self, mode: str) -> None:
        if self._mode is not None:
            raise StreamAlreadyConsumed(
                f"this answer was read as {self._mode} already; it is read once"
            )
        self._mode = mode

    async def _chunks(self) -> AsyncGenerator[Chunk]:
        try:
            while (chunk := await self._reader.next()) is not None:
                if chunk["type"] == "error":
                    self._error = str(chunk.get("errorText", ""))
                elif chunk["type"] == RESTARTED_CHUNK:
                    self._error = None
                yield chunk
        finally:
            await self._reader.aclose()

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        reducer = message_reducer()
        # Closed by name, so that leaving this iterator early leaves the connection at once too.
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                if chunk["type"] == RESTARTED_CHUNK:
                    dead = reducer.snapshot()
                    reducer = message_reducer({"id": dead["id"], "role": dead["role"], "parts": []})
                    if dead["parts"]:
                        yield reducer.snapshot()
                elif reducer.feed(chunk):
                    yield reducer.snapshot()

    async def _collect(self) -> ChatResult:
        collected, reducer, whole = _Collected(), message_reducer(), True
        async for chunk in self._chunks():
            if chunk["type"] == RESTARTED_CHUNK:
                collected, reducer, whole = _Collected(), message_reducer(), True
                continue
            collected.take(chunk)
            try:
                reducer.feed(chunk)
            except UIMessageStreamError:
                # Its text and tools are still worth having; a message with holes is not.
                whole = False
        message = reducer.snapshot() if whole else None
        return ChatResult(
            text="".join(collected.text),
            tool_calls=tuple(collected.calls),
            tool_results=tuple(collected.results),
            message=message if message is not None and message["parts"] else None,
            error=self._error,
            complete=self.complete,
        )
