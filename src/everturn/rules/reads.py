"""How much a reader gets at once, and where a follower starts."""

from __future__ import annotations

from collections.abc import Iterable

from everturn.errors import InvalidRequest
from everturn.protocol.records import Record, metered_bytes


class Page:
    """Records taken within two bounds, but at least one if there is one.

    Args:
        records_max: most records, at least 1.
        bytes_max: most metered bytes; the first record may be larger than this.
    """

    __slots__ = ("_bytes_left", "_records_max", "full", "records")

    def __init__(self, records_max: int, bytes_max: int) -> None:
        if records_max < 1:
            raise InvalidRequest(f"records_max is at least 1, not {records_max}")
        self.records: list[Record] = []
        #: Whether a bound was reached: nothing more can be taken.
        self.full = False
        self._records_max = records_max
        self._bytes_left = bytes_max

    @property
    def records_left(self) -> int:
        """How many more records fit at most."""
        return self._records_max - len(self.records)

    def take(self, records: Iterable[Record]) -> None:
        """Add records in order until one does not fit."""
        taken, room = self.records, self._bytes_left
        for record in records:
            if len(taken) == self._records_max:
                self.full = True
                break
            if record.headers:
                room -= metered_bytes(record.headers, record.body)
            else:
                room -= 8 + len(record.body)
            if room < 0 and taken:
                self.full = True
                break
            taken.append(record)
        self._bytes_left = room


def bounded(records: Iterable[Record], records_max: int, bytes_max: int) -> list[Record]:
    """The longest beginning within both bounds, but at least one record if there is one."""
    page = Page(records_max, bytes_max)
    page.take(records)
    return page.records


def clamp_cursor(after: int | None, first: int, tail: int) -> int | None:
    """The cursor a follower starts with: inside what is visible now (wire-protocol §5.3)."""
    if after is None:
        return None
    after = max(min(after, tail - 1), first - 1)
    return after if after >= 0 else None
