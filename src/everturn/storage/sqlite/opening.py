"""Opening and shutting a stream file, on a thread, since both take their time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from everturn.storage.sqlite.lock import FileLock
from everturn.storage.sqlite.recovery import Recovered, recover
from everturn.storage.sqlite.schema import check_format, connect, prepare, translated
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
        # Looking stays open until the writer has connected: closing as the last connection would
        # write back, and sync, what a server that died left in the write-ahead log.
        with translated(path), closing(connect(path, writer=False)) as looking:
            check_format(looking, path)
            connection = connect(path, writer=True, sync=sync)
            try:
                prepare(connection)
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
