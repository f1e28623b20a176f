"""Opening and shutting a stream file, on a thread, since both take their time."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from everturn.storage.sqlite.lock import FileLock
from everturn.storage.sqlite.recovery import Recovered, recover
from everturn.storage.sqlite.schema import connect, prepare, translated
from everturn.storage.sqlite.writer import Writer


class Opened(NamedTuple):
    """A locked file, its writing connection, and what its log held."""

    path: Path
    lock: FileLock
    connection: sqlite3.Connection
    recovered: Recovered


def open_file(path: Path, sync: bool = True) -> Opened:
    """Lock, connect, create the tables of a new file, scan the log."""
    lock = FileLock(path)
    try:
        with translated(path):
            connection = connect(path, writer=True, sync=sync)
            try:
                prepare(connection, path)
                return Opened(path, lock, connection, recover(connection, path))
            except BaseException:
                connection.close()
                raise
    except BaseException:
        lock.release()
        raise


def shut(writer: Writer, opened: Opened) -> None:
    """End the writer, close its connection (the last one checkpoints), let go of the lock."""
    writer.stop()
    opened.connection.close()
    opened.lock.release()
