"""The stored history of a chat: one document per session, written as it changes (chat-agent §2.16).

Everything that knows the form of the document is here. Wire form, camelCase, version 1;
`lastInDecided` is our addition (rulings §1.7) and is left out when empty; so is `failure`, the
error of a turn whose history is stored and whose turn-complete is not yet written.

A turn stores what it changed and not the conversation: `protocol/history.py` has the form of such
a patch. What changed is found by comparing fingerprints of all messages with those of what is
stored, since authors may change any of them, in place too; that is a millisecond for thousands,
where writing them is many. The document is written whole when the patches since the last time
outweigh it, so that all writing together is in proportion to what was said.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from everturn.errors import EverturnError, Fenced, LeaseLost
from everturn.protocol import history, lenient
from everturn.protocol.history import VERSION
from everturn.protocol.records import InputCursor
from everturn.rules import limits
from everturn.tasks import codec
from everturn.tasks.runtime import RunRuntime

log = logging.getLogger("everturn.chat")

Message = dict[str, Any]


class Snapshot(NamedTuple):
    """A stored history and the two cursors it covers."""

    messages: list[dict[str, Any]]
    last_out: int | None = None
    cursor: InputCursor = InputCursor()
    saved_at_ms: int = 0
    #: The error that the turn-complete this was stored for carries, if it does.
    failure: str | None = None
    #: How many items the stored list has; those that are no messages are left out here.
    stored: int = 0


def document_of(snapshot: Snapshot) -> dict[str, Any]:
    """The members of the document, in their order."""
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
    if snapshot.failure is not None:
        body["failure"] = snapshot.failure
    return body


def decode(data: bytes | None) -> Snapshot | None:
    """The snapshot, or None for anything that is not a whole one of version 1."""
    if not data:
        return None
    try:
        body = lenient.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        return None
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    decided = body.get("lastInDecided")
    failure = body.get("failure")
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
        failure=failure if isinstance(failure, str) else None,
        stored=len(messages),
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

    __slots__ = ("_patched_bytes", "_runtime", "_stored", "_whole_bytes")

    def __init__(self, runtime: RunRuntime) -> None:
        self._runtime = runtime
        #: Fingerprints of the messages as they are stored. None when nobody knows: after an error.
        self._stored: array[int] | None = array("q")
        #: The size of the document when it was last stored whole, and of the patches since.
        self._whole_bytes = 0
        self._patched_bytes = 0

    async def load(self) -> Snapshot | None:
        """What is stored; anything unreadable counts as nothing (R-023).

        Raises EverturnError or OSError when the read fails: then nobody knows what is stored.
        """
        self._stored = None
        data, patched_bytes = await self._runtime.load_snapshot()
        snapshot = decode(data)
        self._patched_bytes = patched_bytes
        self._whole_bytes = max(0, len(data or b"") - patched_bytes)
        # What is no message was left out of the snapshot and would be counted by a patch.
        whole = snapshot is None or len(snapshot.messages) == snapshot.stored
        if whole:
            self._stored = _fingerprints(snapshot.messages if snapshot is not None else ())
        return snapshot

    async def save(
        self,
        messages: Sequence[Message],
        *,
        last_out: int | None,
        cursor: InputCursor,
        failure: str | None = None,
    ) -> bool:
        """Store; durable when True. A failed write is logged: the next boot replays more."""
        now_ms = self._runtime.clock.now_ms()
        snapshot = Snapshot(list(messages), last_out, cursor, now_ms, failure)
        try:
            if self._stored is None:
                await self.load()
            prints, stored = _fingerprints(messages), self._stored
            self._stored = None
            await self._store(snapshot, 0 if stored is None else _common(stored, prints), stored)
            self._stored = prints
        except (Fenced, LeaseLost):
            raise
        except (EverturnError, OSError):
            log.warning("snapshot.save_failed", exc_info=True)
            return False
        return True

    async def _store(self, snapshot: Snapshot, keep: int, stored: array[int] | None) -> None:
        if stored is not None:
            added = snapshot._replace(messages=snapshot.messages[keep:])
            patch = codec.encode_any_depth(history.patch(keep, document_of(added)))
            patched_bytes = self._patched_bytes + len(patch)
            room = max(self._whole_bytes, limits.HISTORY_PATCHES_BYTES_MIN)
            if len(patch) <= limits.HISTORY_PATCH_BYTES_MAX and patched_bytes <= room:
                await self._runtime.patch_snapshot(patch)
                self._patched_bytes = patched_bytes
                return
        data = codec.encode_any_depth(document_of(snapshot))
        await self._runtime.save_snapshot(data)
        self._whole_bytes, self._patched_bytes = len(data), 0


def _fingerprints(messages: Sequence[Mapping[str, Any]]) -> array[int]:
    return array("q", map(hash, codec.encode_each(messages)))


def _common(stored: array[int], now: array[int]) -> int:
    """How many messages at the start are the same in both."""
    if now[: len(stored)] == stored:
        return len(stored)
    pairs = enumerate(zip(stored, now, strict=False))
    return next((n for n, (was, is_) in pairs if was != is_), min(len(stored), len(now)))
