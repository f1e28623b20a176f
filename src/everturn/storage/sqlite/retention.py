"""Deleting what was trimmed long enough ago, a little at a time."""

from __future__ import annotations

import sqlite3
from typing import Final

#: Segments, or trims, handled in one transaction.
_BATCH: Final = 32
_EVERY_MS: Final = 60_000

_EXPIRED: Final = "SELECT channel, max(before) FROM trims WHERE at_ms <= ? GROUP BY channel LIMIT ?"
_SEGMENTS: Final = (
    "SELECT first FROM segments WHERE channel = ? AND first + count <= ? ORDER BY first LIMIT ?"
)
_DELETE_SEGMENTS: Final = "DELETE FROM segments WHERE channel = ? AND first <= ?"
_DELETE_REST: Final = (
    "DELETE FROM part_ids WHERE channel = ? AND seq_num < ?",
    "DELETE FROM part_ranges WHERE channel = ? AND first_seq + count <= ?",
)
_DELETE_TRIM: Final = "DELETE FROM trims WHERE channel = ? AND at_ms <= ?"


class Retention:
    """When to look for old trims, and the look itself."""

    def __init__(self, retention_ms: int) -> None:
        self._retention_ms = retention_ms
        self._next_ms = 0

    def due(self, now_ms: int) -> bool:
        """Whether a minute has passed, or the last look left something."""
        return now_ms >= self._next_ms

    def step(self, now_ms: int) -> RetentionStep:
        """The next look."""
        self._next_ms = now_ms + _EVERY_MS
        return RetentionStep(now_ms - self._retention_ms)

    def done(self, more: bool) -> None:
        """How the look ended."""
        if more:
            self._next_ms = 0


class RetentionStep:
    """One small transaction. Runs on the writer thread."""

    def __init__(self, before_ms: int) -> None:
        self._before_ms = before_ms

    def write(self, connection: sqlite3.Connection) -> bool:
        """Delete a batch; whether more is left."""
        expired = connection.execute(_EXPIRED, (self._before_ms, _BATCH)).fetchall()
        if not expired:
            return False
        more = len(expired) == _BATCH
        room = _BATCH
        connection.execute("BEGIN IMMEDIATE")
        for channel, before in expired:
            found = connection.execute(_SEGMENTS, (channel, before, room)).fetchall()
            if found:
                connection.execute(_DELETE_SEGMENTS, (channel, found[-1][0]))
            room -= len(found)
            if room <= 0:
                more = True
                break  # the trim stays until all its segments are gone
            for statement in _DELETE_REST:
                connection.execute(statement, (channel, before))
            connection.execute(_DELETE_TRIM, (channel, self._before_ms))
        connection.execute("COMMIT")
        return more
