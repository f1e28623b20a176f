"""A read-only look at a stream file: every checksum, every number, without opening it to write.

The file is read inside one read transaction of SQLite, so a server may go on appending meanwhile.
Damage does not end the look: each bad row is counted, and the rest is still read.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from everturn.errors import StorageCorrupt
from everturn.protocol.records import ChannelName
from everturn.storage.ports.examination import NAMED_MAX, StreamFindings
from everturn.storage.sqlite.frames import decode_log_row, decode_segment
from everturn.storage.sqlite.lock import lock_of
from everturn.storage.sqlite.recovery import recover
from everturn.storage.sqlite.schema import FORMAT

_BUSY_S: Final = 5.0
#: Every file lock of a Linux machine.
_LOCKS: Final = Path("/proc/locks")


class _Look:
    """What has been found so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        self.damaged = 0
        self.records = 0
        self.newest_ms = 0
        self.tails: dict[ChannelName, int] = {}

    def bad(self, place: str) -> None:
        self.damaged += 1
        if len(self.damage) < NAMED_MAX:
            self.damage.append(place)


def examine(path: Path) -> StreamFindings:
    """Look at a whole stream file. Reads all of it: seconds per gigabyte.

    A file that SQLite itself cannot read is damage like any other, and named so.
    """
    look = _Look(path)
    try:
        with closing(_open(path)) as connection:
            connection.execute("BEGIN")
            _examine(connection, look)
    except sqlite3.Error as error:
        look.bad(f"{path}: {error}")
    held = in_use(path)
    return StreamFindings(
        tuple(look.damage),
        look.damaged,
        look.records,
        look.tails,
        look.newest_ms,
        held,
        holder(path) if held else None,
    )


def in_use(path: Path) -> bool:
    """Whether another process has this store open.

    Asking takes a shared lock for an instant, in which a server that is just starting would be
    told that the store is taken; it says so in one line and is started again.
    """
    try:
        lock = os.open(lock_of(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # Nobody ever opened it, or nobody may.
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def holder(path: Path) -> int | None:
    """The process that holds this store's lock; None when nobody does or the system is silent.

    A lock of this kind ends with its process, so one that stays is a process that stays.
    """
    try:
        inode = lock_of(path).stat().st_ino
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # Nobody ever opened it, or this system has no such table.
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 4711 08:01:393250 0 EOF"
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            # A process of another container has no number here, and is given as 0.
            return int(words[4]) or None
    return None


def _open(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. A log left behind by a server that died is read too."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=_BUSY_S
    )


def _examine(connection: sqlite3.Connection, look: _Look) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        look.bad(f"{look.path}: not a stream store of format {FORMAT} (found {found})")
        return
    for (line,) in connection.execute(f"PRAGMA quick_check({NAMED_MAX})"):
        if line != "ok":
            look.bad(f"{look.path}: {line}")
    _examine_log(connection, look)
    _examine_segments(connection, look)
    _examine_gaps(connection, look)
    if not look.damaged:
        _examine_numbers(connection, look)


def _examine_log(connection: sqlite3.Connection, look: _Look) -> None:
    for row, crc, body in connection.execute("SELECT id, crc, body FROM log ORDER BY id"):
        try:
            frames, _ = decode_log_row(body, crc, f"{look.path}: log row {row}")
        except StorageCorrupt as error:
            look.bad(error.message)
            continue
        look.records += len(frames)
        look.newest_ms = max([look.newest_ms, *(frame[2] for frame in frames)])


def _examine_segments(connection: sqlite3.Connection, look: _Look) -> None:
    rows = connection.execute(
        "SELECT channel, first, count, crc, body FROM segments ORDER BY channel, first"
    )
    for channel, first, count, crc, body in rows:
        place = f"{look.path}: segment {first} of channel {channel}"
        try:
            records = decode_segment(body, crc, place)
        except StorageCorrupt as error:
            look.bad(error.message)
            continue
        if len(records) != count or (records and records[0].seq_num != first):
            look.bad(f"{place}: holds {len(records)} records, expected {count}")
        look.records += len(records)


def _examine_gaps(connection: sqlite3.Connection, look: _Look) -> None:
    """Segments follow each other, from the visible start or before it up to where the log goes on.

    What lies below the visible start may have been deleted after its retention.
    """
    ends = {
        channel: (first, compacted)
        for channel, first, compacted in connection.execute(
            "SELECT id, first, compacted FROM channels WHERE first < compacted"
        )
    }
    rows = connection.execute("SELECT channel, first, count FROM segments ORDER BY channel, first")
    for channel, first, count in rows:
        expected, compacted = ends.get(channel, (0, 0))
        if first > expected:
            look.bad(
                f"{look.path}: records {expected} to {first - 1} of channel {channel} are missing"
            )
        ends[channel] = (max(expected, first + count), compacted)
    for channel, (expected, compacted) in ends.items():
        if expected < compacted:
            look.bad(
                f"{look.path}: records {expected} to {compacted - 1} of channel {channel} are missing"
            )


def _examine_numbers(connection: sqlite3.Connection, look: _Look) -> None:
    """Do as a start does: the log must continue each channel where compaction left it."""
    look.tails = dict(_compacted(connection))
    look.newest_ms = max(
        look.newest_ms,
        connection.execute("SELECT coalesce(max(timestamp_ms), 0) FROM channels").fetchone()[0],
    )
    try:
        recovered = recover(connection, look.path)
    except StorageCorrupt as error:
        look.bad(error.message)
        return
    for channel in recovered.channels.values():
        look.tails[channel.name] = channel.next_seq


def _compacted(connection: sqlite3.Connection) -> Iterator[tuple[ChannelName, int]]:
    for row in connection.execute("SELECT environment, session, io, compacted FROM channels"):
        yield ChannelName(*row[:3]), row[3]
