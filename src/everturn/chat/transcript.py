"""The stored history of a chat: one JSON blob per session (chat-agent §2.16).

Everything that knows the form of the blob is here, so that an incremental form can take its place
without the turn loop noticing. Wire form, camelCase, version 1; `lastInDecided` is our addition
(rulings §1.7) and is left out when empty.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from everturn.errors import EverturnError, Fenced, LeaseLost
from everturn.protocol.records import InputCursor
from everturn.tasks import codec
from everturn.tasks.runtime import RunRuntime

VERSION: Final = 1
log = logging.getLogger("everturn.chat")


class Snapshot(NamedTuple):
    """A stored history and the two cursors it covers."""

    messages: list[dict[str, Any]]
    last_out: int | None = None
    cursor: InputCursor = InputCursor()
    saved_at_ms: int = 0


def encode(snapshot: Snapshot) -> bytes:
    body: dict[str, Any] = {
        "version": VERSION,
        "savedAt": snapshot.saved_at_ms,
        "messages": snapshot.messages,
    }
    if snapshot.last_out is not None:
        body["lastOutEventId"] = str(snapshot.last_out)
    if snapshot.cursor.seq_num is not None:
        body["lastInEventId"] = str(snapshot.cursor.seq_num)
    if snapshot.cursor.decided:
        body["lastInDecided"] = sorted(snapshot.cursor.decided)
    return codec.encode(body)


def decode(data: bytes | None) -> Snapshot | None:
    """The snapshot, or None for anything that is not a whole one of version 1."""
    if not data:
        return None
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        return None
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    decided = body.get("lastInDecided")
    return Snapshot(
        messages=[message for message in messages if isinstance(message, dict)],
        last_out=_number(body.get("lastOutEventId")),
        cursor=InputCursor(
            _number(body.get("lastInEventId")),
            frozenset(n for n in decided if isinstance(n, int))
            if isinstance(decided, list)
            else frozenset(),
        ),
        saved_at_ms=_number(body.get("savedAt")) or 0,
    )


def _number(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # No number of a record has more digits; Python refuses to convert thousands of them.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return None


class Transcript:
    """Loads and stores the history of the run's session."""

    def __init__(self, runtime: RunRuntime) -> None:
        self._runtime = runtime

    async def load(self) -> Snapshot | None:
        """What is stored; anything unreadable counts as nothing (R-023).

        Raises EverturnError or OSError when the read fails: then nobody knows what is stored.
        """
        return decode(await self._runtime.load_snapshot())

    async def save(
        self, messages: Sequence[dict[str, Any]], *, last_out: int | None, cursor: InputCursor
    ) -> bool:
        """Store; durable when True. A failed write is logged: the next boot replays more."""
        now = self._runtime.clock.now_ms()
        try:
            data = encode(Snapshot(list(messages), last_out, cursor, now))
            await self._runtime.save_snapshot(data)
        except (Fenced, LeaseLost):
            raise
        except (EverturnError, OSError):
            log.warning("snapshot.save_failed", exc_info=True)
            return False
        return True
