"""Deleting what was trimmed long enough ago, a little at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice
from typing import Final

from everturn.protocol.records import ChannelName

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
#: Of a channel that is deleted whole; its row goes last.
_EMPTY: Final = "UPDATE channels SET first = compacted WHERE id = ?"
_ALL_SEGMENTS: Final = "SELECT first FROM segments WHERE channel = ? ORDER BY first LIMIT ?"
_DELETE_ALL: Final = (
    "DELETE FROM part_ids WHERE channel = ?",
    "DELETE FROM part_ranges WHERE channel = ?",
    "DELETE FROM trims WHERE channel = ?",
    "DELETE FROM channels WHERE id = ?",
)
_DELETE_TRIM: Final = "DELETE FROM trims WHERE channel = ? AND at_ms <= ?"


class Retention:
    """When to look for old trims, and the look itself."""

    def __init__(self, retention_ms: int) -> None:
        self._retention_ms = retention_ms
        self._next_ms = 0
        self._step = RetentionStep(0, ())
        #: Channels to be deleted whole, and their numbers. Nobody may get at them meanwhile.
        self.leaving: dict[ChannelName, int] = {}

    def leave(self, name: ChannelName, channel: int) -> None:
        """Delete a channel of which the log holds nothing, with the next looks."""
        self.leaving[name] = channel
        self._next_ms = 0

    def due(self, now_ms: int) -> bool:
        """Whether a minute has passed, or the clock was set back, or something was left."""
        return not self._next_ms - _EVERY_MS <= now_ms < self._next_ms

    def step(self, now_ms: int) -> RetentionStep:
        """The next look."""
        self._next_ms = now_ms + _EVERY_MS
        leaving = tuple(islice(self.leaving.items(), _BATCH))
        self._step = RetentionStep(now_ms - self._retention_ms, leaving)
        return self._step

    def done(self, more: bool) -> None:
        """How the look ended. A channel that could not be deleted is there again, as it was."""
        for name in self._step.left:
            del self.leaving[name]
        if more or self.leaving:
            self._next_ms = 0


class RetentionStep:
    """One small transaction. Runs on the writer thread."""

    def __init__(self, before_ms: int, leaving: Sequence[tuple[ChannelName, int]]) -> None:
        self._before_ms = before_ms
        self._leaving = leaving
        #: Those that are deleted, or cannot be.
        self.left: list[ChannelName] = []

    def write(self, connection: sqlite3.Connection) -> bool:
        """Delete a batch; whether more is left."""
        try:
            self._forget(connection)
        except sqlite3.Error:
            self.left = [name for name, _ in self._leaving]
            raise
        return self._delete_trimmed(connection)

    def _forget(self, connection: sqlite3.Connection) -> None:
        """Delete channels, or as many segments of them as one transaction should."""
        if not self._leaving:
            return
        gone, room = [], _BATCH
        connection.execute("BEGIN IMMEDIATE")
        for name, channel in self._leaving:
            # Trimmed empty, so that one that is half deleted lacks nothing.
            connection.execute(_EMPTY, (channel,))
            found = connection.execute(_ALL_SEGMENTS, (channel, room)).fetchall()
            if found:
                connection.execute(_DELETE_SEGMENTS, (channel, found[-1][0]))
            room -= len(found)
            if room <= 0:
                break
            for statement in _DELETE_ALL:
                connection.execute(statement, (channel,))
            gone.append(name)
        connection.execute("COMMIT")
        self.left = gone

    def _delete_trimmed(self, connection: sqlite3.Connection) -> bool:
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
