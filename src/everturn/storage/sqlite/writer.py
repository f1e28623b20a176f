"""The one thread that writes the file."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everturn.storage.sqlite.schema import translated

Job = Callable[[sqlite3.Connection], Any]
Done = Callable[[Any, Exception | None], None]


class Writer:
    """Runs jobs one after another on its own thread, each in a transaction of its own making.

    The event loop hands over one job at a time and is told of its end by one
    `call_soon_threadsafe`, whatever the number of appends in it: waking the loop costs a system
    call, and a hand-over of the interpreter lock costs more.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._path = path
        self._connection = connection
        self._loop = loop
        # Bounded by its user: the engine keeps one job in flight.
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="everturn-streams", daemon=True)
        self._thread.start()

    def submit(self, job: Job, done: Done) -> None:
        """Run `job(connection)` on the thread, then `done(result, error)` on the loop.

        SQLite's errors arrive as ours. A transaction that failed half-way is rolled back before
        the next job; until then its lock stands in nobody's way, as there is no other writer.
        """
        self._jobs.put((job, done))

    def stop(self) -> None:
        """Finish the jobs handed over, then end the thread. Blocks."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, done = work
            result: Any = None
            failure: Exception | None = None
            try:
                with translated(self._path):
                    # Inside a transaction left open, a commit would seem durable and not be.
                    roll_back(self._connection)
                    result = job(self._connection)
            # The edge of a thread: whoever waits for this job must hear how it ended.
            except Exception as error:
                failure = error
            self._loop.call_soon_threadsafe(done, result, failure)


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction that failed half-way, if SQLite has not done so already."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
