"""What the decisions of the writer need from the file, one row at a time.

These queries run on the event loop, because an append is decided there, in one go, with nothing
in flight. Each is a point look-up in a B-tree (about 10 µs) and only happens for a channel that
is not in memory, a free-form part id not seen lately, or parts of a lease from before the last
compaction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from pathlib import Path

from everturn.errors import Unavailable
from everturn.protocol.records import ChannelName
from everturn.rules import limits
from everturn.storage.sqlite.channel import Channel, PartRange
from everturn.storage.sqlite.schema import connect, translated

_CHANNEL = (
    "SELECT id, compacted, first, fence, next_part, timestamp_ms FROM channels"
    " WHERE environment = ? AND session = ? AND io = ?"
)
_PART_ID = "SELECT seq_num FROM part_ids WHERE channel = ? AND part_id = ?"
_RANGES = (
    "SELECT fence, first_part, first_seq, count FROM part_ranges"
    " WHERE channel = ? AND fence = ? AND first_part < ? AND first_part + count > ?"
)
_LOWEST = "SELECT min(first) FROM segments WHERE channel = ?"


class Lookups:
    """Point look-ups in one file, with the free-form part ids seen lately."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Channels that are being deleted (`forgetting.py`).
        self.leaving: Container[ChannelName] = ()
        self._connection = connect(path, writer=False)
        self._part_ids: OrderedDict[tuple[int, str], int] = OrderedDict()

    def channel(self, name: ChannelName) -> Channel | None:
        """The stored state of a channel; None when nothing of it is stored.

        Raises Unavailable for one that is being deleted.
        """
        if name in self.leaving:
            raise Unavailable(f"{self._path}: the channel {name} is being deleted")
        with translated(self._path):
            row = self._connection.execute(_CHANNEL, tuple(name)).fetchone()
        return None if row is None else Channel(name, *row)

    def part_id(self, channel: int, part_id: str) -> int | None:
        """The number a free-form part id got, if the channel holds it."""
        key = (channel, part_id)
        known = self._part_ids.get(key)
        if known is not None:
            self._part_ids.move_to_end(key)
            return known
        with translated(self._path):
            row = self._connection.execute(_PART_ID, key).fetchone()
        if row is None:
            return None
        self.remember(key, row[0])
        return int(row[0])

    def remember(self, key: tuple[int, str], seq_num: int) -> None:
        """Note a part id that is stored now."""
        self._part_ids[key] = seq_num
        if len(self._part_ids) > limits.STREAM_PART_IDS_MAX:
            self._part_ids.popitem(last=False)

    def part_seqs(
        self, channel: Channel, fence: int, first_part: int, count: int
    ) -> list[int | None]:
        """The numbers of parts of a fence; None for those not stored."""
        found: list[int | None] = [None] * count
        channel.fill_parts(found, fence, first_part)
        if None in found and channel.id is not None:
            with translated(self._path):
                rows = self._connection.execute(
                    _RANGES, (channel.id, fence, first_part + count, first_part)
                ).fetchall()
            for row in rows:
                _fill(found, PartRange(*row), fence, first_part)
        return found

    def lowest(self, channel: Channel) -> int:
        """The lowest seq_num that is still stored."""
        if channel.id is None:
            return channel.base
        with translated(self._path):
            (first,) = self._connection.execute(_LOWEST, (channel.id,)).fetchone()
        return channel.base if first is None else int(first)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _fill(found: list[int | None], known: PartRange, fence: int, first_part: int) -> None:
    if known.fence != fence:
        return
    start = max(known.first_part, first_part)
    end = min(known.first_part + known.length, first_part + len(found))
    for part in range(start, end):
        found[part - first_part] = known.first_seq + part - known.first_part
