"""What of an answer's stream a client is shown (chat-agent §4.1, R-147).

Static on the agent, overridden per turn key by key. The filter works on chunks, so it holds for
every streamable alike: an agent's run, an author's generator, a pipe. One rule asks who made the
chunk: sources that a model's run brings are left out unless asked for, but an author who writes a
source chunk himself means it to be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from everturn.chat.ui_messages import new_message_id
from everturn.ids import Ids

Chunk = dict[str, Any]

_SOURCES: Final = ("source-url", "source-document")


class UIStreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is shown.

    Attributes:
        on_error: the text of an `error` chunk for an exception; the place to sanitise. None: what
            the exception says.
        send_reasoning: forward reasoning chunks.
        send_sources: forward the source chunks of a model's run.
        send_start, send_finish: False when several streams are chained into one message.
        message_metadata: called with the `start` and the `finish` chunk, the latter with what the
            run cost as `usage`; what it returns is attached to the message. None attaches nothing.
        generate_message_id: the id of a new answer; a continued message keeps its own.
    """

    on_error: Callable[[BaseException], str] | None = None
    send_reasoning: bool = True
    send_sources: bool = False
    send_start: bool = True
    send_finish: bool = True
    message_metadata: Callable[[Mapping[str, Any]], Any] | None = None
    generate_message_id: Callable[[], str] | None = None

    def new_message_id(self, ids: Ids) -> str:
        """The id of a new answer."""
        made = self.generate_message_id
        return new_message_id(ids) if made is None else made()

    def over(self, changes: Mapping[str, Any]) -> UIStreamOptions:
        """These options with some replaced. Raises TypeError for a name that is no option."""
        return msgspec.structs.replace(self, **changes) if changes else self

    def shown(self, chunk: Chunk, *, authored: bool = False, usage: Any = None) -> Chunk | None:
        """The chunk as a client gets it; None when it does not.

        `authored` says that no run of the model library made it.
        """
        kind = chunk.get("type")
        if not isinstance(kind, str):
            return chunk
        if kind in ("start", "finish"):
            sent = self.send_start if kind == "start" else self.send_finish
            return self._with_metadata(chunk, usage) if sent else None
        if kind.startswith("reasoning-") and not self.send_reasoning:
            return None
        if kind in _SOURCES and not self.send_sources and not authored:
            return None
        return chunk

    def _with_metadata(self, chunk: Chunk, usage: Any) -> Chunk:
        if self.message_metadata is None:
            return chunk
        metadata = self.message_metadata(chunk if usage is None else {**chunk, "usage": usage})
        return chunk if metadata is None else {**chunk, "messageMetadata": metadata}
