"""Growing the write-ahead log once, ahead of need, because a growing file is slow to sync.

A sync that also makes the file longer has to wait for the file system's own journal. One that
overwrites what is there does not: half the median, and a fraction of the p99. SQLite begins its
write-ahead log anew from the start of the file after a checkpoint, so a busy store warms itself;
a quiet one would pay for growth with every commit of its first 16 MiB. So when a store has been
open for a moment and has nothing to do, it writes that much of nothing, a piece at a time. It
does so once per opening, as SQLite deletes the log with the last connection.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from everturn.rules import limits
from everturn.storage.sqlite.schema import WAL_PAGES

#: After opening; what lives shorter, as in tests, is not worth the writing.
_AFTER_S: Final = 0.7
#: Bytes of one step: a commit that comes meanwhile waits for the step to end.
_STEP_BYTES: Final = limits.MIB
#: More than the log holds between two checkpoints, at SQLite's page size.
_STEPS: Final = WAL_PAGES * 4096 // _STEP_BYTES + 2

_TABLE: Final = "CREATE TABLE IF NOT EXISTS ballast (id INTEGER PRIMARY KEY, body BLOB NOT NULL)"
_WRITE: Final = "INSERT OR REPLACE INTO ballast VALUES (1, zeroblob(?))"
_DROP: Final = "DROP TABLE IF EXISTS ballast"


class Warming:
    """The steps of it, one job of the writer each. Used on the event loop.

    Args:
        now_s: the loop's time at opening.
    """

    def __init__(self, now_s: float) -> None:
        self.after_s = _AFTER_S
        self._from_s = now_s + _AFTER_S
        self._left = _STEPS

    def due(self, now_s: float) -> bool:
        """Whether there is a step to do when nothing else is."""
        return self._left > 0 and now_s >= self._from_s

    def done(self, error: Exception | None) -> None:
        """A step ended. One that failed (a full disk) ends the warming: it is only for speed."""
        self._left = 0 if error is not None else self._left - 1

    def write(self, connection: sqlite3.Connection) -> None:
        """Runs on the writer thread. The last step gives the pages back for records to use."""
        if self._left == 1:
            connection.execute(_DROP)
            return
        connection.execute(_TABLE)
        connection.execute(_WRITE, (_STEP_BYTES,))
