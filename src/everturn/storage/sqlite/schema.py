"""The tables of a stream file, and how its connections are made."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from everturn.errors import ConfigurationError, EverturnError, StorageCorrupt, Unavailable

FORMAT: Final = 1
#: Pages in the write-ahead log that start a checkpoint, after which it begins anew.
WAL_PAGES: Final = 4000

_TABLES: Final = """
-- One row per group commit, for all channels together: the records compaction has not moved yet.
CREATE TABLE log (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, body BLOB NOT NULL);

-- A channel as it was when it was last compacted; the log holds what came after.
CREATE TABLE channels (
  id INTEGER PRIMARY KEY,
  environment TEXT NOT NULL, session TEXT NOT NULL, io TEXT NOT NULL,
  compacted INTEGER NOT NULL,     -- records below this seq_num are in segments
  first INTEGER NOT NULL,         -- the visible start
  fence INTEGER NOT NULL,
  next_part INTEGER NOT NULL,     -- of that fence
  timestamp_ms INTEGER NOT NULL,  -- of the newest record
  UNIQUE (environment, session, io)
);

-- A piece of one channel, compressed.
CREATE TABLE segments (
  channel INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
  crc INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (channel, first)
) WITHOUT ROWID;

-- Free-form part ids, written in the transaction of their log row, kept as long as the record.
CREATE TABLE part_ids (
  channel INTEGER NOT NULL, part_id TEXT NOT NULL, seq_num INTEGER NOT NULL,
  PRIMARY KEY (channel, part_id)
) WITHOUT ROWID;

-- Which parts of a lease got which numbers, written by compaction (the log tells the rest).
CREATE TABLE part_ranges (
  channel INTEGER NOT NULL, fence INTEGER NOT NULL, first_part INTEGER NOT NULL,
  first_seq INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (channel, fence, first_part)
) WITHOUT ROWID;

-- Trims whose records are still retained.
CREATE TABLE trims (
  at_ms INTEGER NOT NULL, channel INTEGER NOT NULL, before INTEGER NOT NULL,
  PRIMARY KEY (at_ms, channel)
) WITHOUT ROWID;
"""


def connect(path: Path, *, writer: bool, sync: bool = True) -> sqlite3.Connection:
    """A connection in autocommit mode, used by one thread at a time.

    A commit is durable when it returns: WAL with `synchronous=FULL`, which costs nothing under
    group commit and has the better p99 (NORMAL syncs in the checkpoint, as a spike). Without
    `sync` the system writes when it likes: for measurements only.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    if writer:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'OFF'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    else:
        connection.execute("PRAGMA query_only = ON")
    return connection


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ConfigurationError for a file that is not ours, or of a format we do not know.

    Asked before anything is changed: even the journal mode of a foreign database is its own.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    is_ours = found == FORMAT
    is_new = found == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    if not (is_ours or is_new):
        raise ConfigurationError(
            f"{path}: not a stream store of format {FORMAT} (found {found})", file=str(path)
        )


def prepare(connection: sqlite3.Connection) -> None:
    """Create the tables of a new file."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        tables = f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;"
        connection.executescript(tables)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: what passes by itself is Unavailable, the rest is StorageCorrupt."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_ours(error, path) from error


def as_ours(error: sqlite3.Error, path: Path) -> EverturnError:
    """What a caller should be told: OperationalError (full, read-only, I/O) may pass."""
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"{path}: {error}", file=str(path))
    return StorageCorrupt(f"{path}: {error}", file=str(path))
