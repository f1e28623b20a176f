"""What a test looks at after a turn: its chunks and its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from everturn.chat.reducer import MessageReducer
from everturn.chat.ui_messages import overlay
from everturn.protocol.records import (
    TOKEN_HEADER,
    TURN_COMPLETE,
    InputCursor,
    Record,
    open_envelope,
)

Message = dict[str, Any]


class HarnessTurn:
    """What one turn wrote: its chunks, and its records as a raw list with control markers."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        earlier: Sequence[Record] = (),
        answers: Sequence[Message] = (),
    ) -> None:
        """`earlier` are the records before it, `answers` what clients sent to open tool calls."""
        self.records = tuple(records)
        self._earlier = earlier
        self._answers = answers
        self.raw_chunks = raw_chunks(records)
        self.chunks = [c for c in self.raw_chunks if not str(c["type"]).startswith("trigger:")]

    @property
    def text(self) -> str:
        """All text deltas put together."""
        return "".join(c["delta"] for c in self.chunks if c["type"] == "text-delta")

    @property
    def errors(self) -> list[str]:
        """The texts of its error chunks."""
        return [c["errorText"] for c in self.chunks if c["type"] == "error"]

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Its `tool-input-available` chunks."""
        return [c for c in self.chunks if c["type"] == "tool-input-available"]

    @property
    def message(self) -> Message:
        """The message a client would show: with what it held before, when this turn went on."""
        starts = [c.get("messageId") for c in self.chunks if c["type"] == "start"]
        seed = self._begun(starts[-1]) if starts and starts[-1] else None
        reducer = MessageReducer(seed)
        for chunk in self.chunks:
            reducer.feed(chunk)
        return reducer.message

    def _begun(self, message_id: str) -> Message | None:
        """The message of an earlier turn, with the answers to its calls; None for a new one."""
        reducer, current = MessageReducer(), None
        for chunk in raw_chunks(self._earlier):
            if chunk["type"] == "start":
                current = chunk.get("messageId")
            if current == message_id and not str(chunk["type"]).startswith("trigger:"):
                reducer.feed(chunk)
        if not reducer.message.get("parts"):
            return None
        message: Message = reducer.snapshot()
        for answer in self._answers:
            if answer.get("id") == message_id:
                message = overlay(message, answer)
        return message

    @property
    def turn_complete(self) -> Record:
        """The record that ended it."""
        return next(r for r in reversed(self.records) if r.control == TURN_COMPLETE)

    @property
    def cursor(self) -> InputCursor:
        """What of `.in` its end has committed."""
        return InputCursor.of(self.turn_complete)


def raw_chunks(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Chunks of data records, and `trigger:<subtype>` markers for control records."""
    found: list[dict[str, Any]] = []
    for record in records:
        if record.control is not None:
            marker: dict[str, Any] = {"type": f"trigger:{record.control}"}
            token = record.header(TOKEN_HEADER)
            if token is not None:
                marker["publicAccessToken"] = token
            found.append(marker)
        elif record.is_data:
            opened = open_envelope(record.body)
            if opened is not None:
                found.append(opened[0])
    return found
