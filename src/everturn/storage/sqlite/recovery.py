"""Opening a file: what the log says on top of the channels' rows.

Only channels that are in the log are loaded; the others are looked up when they are asked for.
Every frame is checked against the channel it belongs to, so that a file that lost something is
refused here, not discovered by a reader.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from everturn.errors import StorageCorrupt
from everturn.protocol.records import ChannelName, Record, trim_target
from everturn.storage.sqlite.channel import Channel, record_cost
from everturn.storage.sqlite.frames import LogFrame, decode_log_row

_CHANNEL = (
    "SELECT environment, session, io, compacted, first, fence, next_part, timestamp_ms"
    " FROM channels WHERE id = ?"
)


class Recovered(NamedTuple):
    """What the log holds."""

    channels: dict[int, Channel]
    rows: list[tuple[int, int]]  # (id, bytes), oldest first
    next_channel_id: int


def recover(connection: sqlite3.Connection, path: Path) -> Recovered:
    """Scan the log. Raises StorageCorrupt naming the file and the row."""
    channels: dict[int, Channel] = {}
    rows: list[tuple[int, int]] = []
    for row_id, crc, body in connection.execute("SELECT id, crc, body FROM log ORDER BY id"):
        place = f"{path}: log row {row_id}"
        frames, fences = decode_log_row(body, crc, place)
        for number, fence in fences:
            channel = _channel(connection, channels, number, place)
            if fence > channel.fence:
                channel.take_fence(fence)
        for frame in frames:
            channel = channels.get(frame[0]) or _channel(connection, channels, frame[0], place)
            _apply(channel, frame, place)
        rows.append((row_id, len(body)))
    for channel in channels.values():
        channel.publish()
    (last,) = connection.execute("SELECT max(id) FROM channels").fetchone()
    return Recovered(channels, rows, (last or 0) + 1)


def _channel(
    connection: sqlite3.Connection, channels: dict[int, Channel], number: int, place: str
) -> Channel:
    channel = channels.get(number)
    if channel is None:
        row = connection.execute(_CHANNEL, (number,)).fetchone()
        if row is None:
            raise StorageCorrupt(f"{place}: names channel {number}, which has no row", place=place)
        channel = channels[number] = Channel(ChannelName(*row[:3]), number, *row[3:])
    return channel


def _apply(channel: Channel, frame: LogFrame, place: str) -> None:
    _, seq_num, timestamp_ms, fence, part, headers, body = frame
    if seq_num < channel.compacted:
        return  # a round of compaction was cut off before it deleted this row
    if seq_num != channel.next_seq:
        raise StorageCorrupt(
            f"{place}: record {seq_num} of channel {channel.id}, expected {channel.next_seq}",
            place=place,
        )
    record = Record(seq_num, timestamp_ms, headers, body, fence, part)
    channel.records.append(record)
    channel.bytes += record_cost(record)
    channel.next_seq = seq_num + 1
    channel.timestamp_ms = max(channel.timestamp_ms, timestamp_ms)
    if fence and fence >= channel.fence:
        channel.fence = fence
        channel.next_part = part + 1
    target = trim_target(headers, body)
    if target is not None:
        channel.trim(target, seq_num)
