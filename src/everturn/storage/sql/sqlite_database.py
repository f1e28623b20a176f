"""SQLite: one file, one thread that writes, one that reads.

A hop to another thread and back costs more than most of our statements, so a verb makes one hop:
the whole transaction runs over there. What arrived while the last transaction was being synced
is done together in the next one, each verb in a savepoint of its own, and is answered after the
one commit (no timer; an idle database answers at once). A verb that fails takes back its own
savepoint and nothing else.

The writer begins with BEGIN IMMEDIATE, so it never finds out half-way that it may not write.
`synchronous=FULL` with a write-ahead log syncs every commit: answered means on disk. The reader
has its own connection and sees everything that was committed before it began, which includes
every write that was answered.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from everturn.errors import EverturnError, StorageCorrupt, Unavailable
from everturn.rules import limits
from everturn.storage.sql.transaction import Settings, Tx

P = ParamSpec("P")
R = TypeVar("R")

#: Verbs of one commit; more wait for the next.
BATCH_MAX: Final = 256
#: Verbs that may wait for their turn, before callers are told to come back later.
WAITING_MAX: Final = 10_000
#: A file up to this size is looked through when it is opened: a tenth of a second.
CHECKED_BYTES_MAX: Final = 64 * limits.MIB
#: How long a lock of another process (a backup, a command) is waited for.
BUSY_MS: Final = 5_000


def open_engine(path: Path, *, sync: bool = True) -> Engine:
    """An engine whose connections never begin a transaction by themselves.

    Without `sync` a commit may be lost at power loss: for measurements only.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"check_same_thread": False, "timeout": BUSY_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if sync else 'OFF'}")

    return engine


class _Job(Generic[R]):
    """One verb on its way, and the future its caller waits on."""

    __slots__ = ("error", "future", "loop", "result", "verb")

    def __init__(self, verb: Callable[[Tx], R]) -> None:
        self.verb = verb
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[R] = self.loop.create_future()
        self.result: R | None = None
        self.error: Exception | None = None

    def answer(self) -> None:
        """Runs on the caller's loop. A caller that was cancelled has stopped listening."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]  # set when no error is


class _Lane:
    """One connection and the thread that uses it."""

    def __init__(self, name: str, engine: Engine, settings: Settings, begin: str) -> None:
        self._begin = begin
        self._path = engine.url.database or ""
        self._connection: Connection = engine.connect()
        driver = self._connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        self._driver = driver
        self._tx = Tx(self._connection, settings)
        self._jobs: queue.Queue[_Job[Any] | None] = queue.Queue(WAITING_MAX)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, verb: Callable[[Tx], R]) -> R:
        if self._closed:
            raise Unavailable("the state store is closed")
        job = _Job(verb)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Unavailable(f"{WAITING_MAX} calls wait for the state store") from None
        return await job.future

    def stop(self) -> None:
        """Accept nothing more. What was accepted is still done."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        stopping = False
        while not stopping:
            batch = [self._jobs.get()]
            while len(batch) < BATCH_MAX:
                try:
                    batch.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            stopping = batch[-1] is None
            jobs = [job for job in batch if job is not None]
            if jobs:
                self._transact(jobs)
                _answer(jobs)
        self._connection.close()

    def _transact(self, jobs: list[_Job[Any]]) -> None:
        """Run the verbs in one transaction. Afterwards each has its result or its error."""
        try:
            self._driver.execute(self._begin)
            for job in jobs:
                self._attempt(job, alone=len(jobs) == 1)
            self._driver.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            for job in jobs:
                job.error = job.error or as_ours(error, self._path)

    def _attempt(self, job: _Job[Any], *, alone: bool) -> None:
        if not alone:
            self._driver.execute("SAVEPOINT verb")
        try:
            job.result = job.verb(self._tx)
        # The error belongs to the caller, who waits for it in another thread.
        except Exception as error:
            job.error = as_ours(error, self._path) if isinstance(error, DBAPIError) else error
            if alone:
                self._driver.execute("ROLLBACK")
                self._driver.execute("BEGIN")  # for the COMMIT that follows
            else:
                self._driver.execute("ROLLBACK TO verb")
        if not alone:
            self._driver.execute("RELEASE verb")

    def _roll_back(self) -> None:
        # A full disk and its like end the transaction by themselves.
        if self._driver.in_transaction:
            self._driver.execute("ROLLBACK")


def _answer(jobs: list[_Job[Any]]) -> None:
    """Wake each loop once for all the answers it gets from this batch."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer_all, theirs)
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more


def _answer_all(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        job.answer()


def as_ours(error: Exception, path: str) -> EverturnError:
    """What a caller should be told: a full disk and its like may pass, a broken file does not."""
    why = error.orig if isinstance(error, DBAPIError) else error
    # Exactly this class is SQLite's word for a file that is damaged, or no database at all.
    kind = StorageCorrupt if type(why) is sqlite3.DatabaseError else Unavailable
    answer = kind(f"{path}: the state database failed: {why}", file=path)
    answer.__cause__ = error
    return answer


def check_file(path: Path) -> None:
    """Look for damage in a file that is small enough to be read through at every start.

    Raises StorageCorrupt naming the file and the first place. What lies in a larger file shows
    when it is met; `everturn doctor` looks at all of it.
    """
    if not path.exists() or path.stat().st_size > CHECKED_BYTES_MAX:
        return
    connection = sqlite3.connect(path)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            return  # Locked or unreadable: opening it says so.
        found = str(error)
    finally:
        connection.close()
    if found != "ok":
        first = " ".join(str(found).split())
        raise StorageCorrupt(f"{path}: the state database is damaged: {first}", file=str(path))


class SqliteDatabase:
    """Runs verbs on a SQLite file. One process should write to it; others may for moments."""

    def __init__(self, path: Path, settings: Settings, *, sync: bool = True) -> None:
        """Open the file, which must have its tables already. Raises sqlalchemy's DBAPIError."""
        self._engine = open_engine(path, sync=sync)
        self._writer = _Lane("state-writer", self._engine, settings, "BEGIN IMMEDIATE")
        self._reader = _Lane("state-reader", self._engine, settings, "BEGIN")

    async def write(
        self, verb: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a verb as one transaction; it is synced to disk when this returns."""
        return await self._writer.run(lambda tx: verb(tx, *args, **kwargs))

    async def read(
        self, verb: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a verb that changes nothing, without waiting for writers."""
        return await self._reader.run(lambda tx: verb(tx, *args, **kwargs))

    async def close(self) -> None:
        """Finish what was accepted, then let go of the file."""
        lanes = (self._writer, self._reader)
        for lane in lanes:
            lane.stop()
        loop = asyncio.get_running_loop()
        for lane in lanes:
            await loop.run_in_executor(None, partial(lane.join))
        self._engine.dispose()
