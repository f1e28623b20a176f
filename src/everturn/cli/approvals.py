"""The calls of an answer that wait for a person, and the word that person types.

A decision travels as a browser sends it: in the part of its call, in the message that asked. Of
such a message only what is new counts, so no more than these parts is kept of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_YES: Final = frozenset({"y", "yes"})
_NO: Final = frozenset({"n", "no"})


class Approvals:
    """What one answer asks, gathered from its chunks."""

    def __init__(self) -> None:
        self._message_id: str | None = None
        self._calls: dict[str, Mapping[str, Any]] = {}
        self._asked: dict[str, str] = {}

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Note what a chunk says of the answer's id, of a call, or of a question about one."""
        match chunk:
            case {"type": "start", "messageId": message_id}:
                self._message_id = message_id
            case {"type": "tool-input-available", "toolCallId": call_id}:
                self._calls[call_id] = chunk
            case {"type": "tool-approval-request", "toolCallId": call_id, "approvalId": asked}:
                self._asked[call_id] = asked

    def open(self) -> list[str]:
        """The names of the tools whose calls wait for a yes or a no."""
        return [self._calls[call_id]["toolName"] for call_id in self._asked]

    def decided(self, said: str) -> dict[str, Any] | None:
        """The message to send for a yes or a no; None when that is not what was said.

        One word decides all calls that wait. Anything else is a message like any other.
        """
        word = said.lower()
        if not self._asked or word not in _YES | _NO:
            return None
        parts = [self._part(call_id, word in _YES) for call_id in self._asked]
        return {"id": self._message_id, "role": "assistant", "parts": parts}

    def _part(self, call_id: str, approved: bool) -> dict[str, Any]:
        call = self._calls[call_id]
        dynamic = bool(call.get("dynamic"))
        return {
            "type": "dynamic-tool" if dynamic else f"tool-{call['toolName']}",
            **({"toolName": call["toolName"]} if dynamic else {}),
            "toolCallId": call_id,
            "state": "approval-responded",
            "input": call.get("input"),
            "approval": {"id": self._asked[call_id], "approved": approved},
        }
