"""Run subscriptions on the wire: rows of text, offsets, headers (wire-protocol §12).

The original serves them through a replication service, and its clients speak that service's
protocol: an initial request answers every row and an *offset*; a live request carries the offset
back, is held until something differs, and answers the rows that changed. Every column is text.

Our offset says all a server must know to go on, so that no server keeps anything per subscriber:

    <ms>_<mark>     ms: when the rows were read, by the server's clock
                    mark: a checksum over all rows as the subscriber has them

Rows whose checksum differs are answered again when they changed since `ms`, less a margin for
transactions that were under way. A row answered twice without a difference does no harm: clients
keep the newest state by key.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from everturn.errors import InvalidRequest

Row = Mapping[str, str | None]

#: Column -> its type as the schema header tells it.
COLUMNS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{
        name: {"type": "text"}
        for name in (
            "id",
            "taskIdentifier",
            "friendlyId",
            "status",
            "ttl",
            "payload",
            "payloadType",
            "metadata",
            "metadataType",
            "output",
            "outputType",
            "idempotencyKey",
        )
    },
    **{
        name: {"type": "timestamp"}
        for name in (
            "createdAt",
            "updatedAt",
            "startedAt",
            "delayUntil",
            "queuedAt",
            "expiredAt",
            "completedAt",
        )
    },
    **{name: {"type": "int4"} for name in ("number", "usageDurationMs")},
    **{name: {"type": "float8"} for name in ("costInCents", "baseCostInCents")},
    "isTest": {"type": "bool"},
    "runTags": {"type": "text", "dims": 1},
    "realtimeStreams": {"type": "text", "dims": 1},
    "error": {"type": "jsonb"},
}
#: Columns no subscriber can do without. `updatedAt` is one: clients refuse rows without it (§19).
NEVER_SKIPPED: Final = frozenset(
    {"id", "taskIdentifier", "friendlyId", "status", "createdAt", "updatedAt"}
)
#: Rows changed this long before the last answer are answered again with the next change.
MARGIN_MS: Final = 5_000
UP_TO_DATE: Final = {"headers": {"control": "up-to-date"}}
_OFFSET_CHARS_MAX: Final = 40


class Offset(NamedTuple):
    """What a subscriber has; the initial request has `None` instead."""

    at_ms: int
    mark: int

    def __str__(self) -> str:
        return f"{self.at_ms}_{self.mark}"


def parse_offset(text: str) -> Offset | None:
    """An offset as it comes back; None for `-1`, the beginning. Raises InvalidRequest."""
    if text == "-1":
        return None
    at_ms, _, mark = text.partition("_")
    numbers = len(text) <= _OFFSET_CHARS_MAX and text.isascii()
    if not (numbers and at_ms.isdigit() and mark.isdigit()):
        raise InvalidRequest(f"{text[:_OFFSET_CHARS_MAX]!r} is no offset of this server")
    return Offset(int(at_ms), int(mark))


def mark_of(rows: Iterable[Row]) -> int:
    """A checksum over rows, whatever their order in the set they were read from."""
    mark = 0
    for row in rows:
        mark ^= zlib.crc32(msgspec.json.encode(row))
    return mark


def body(rows: Sequence[Row], *, operation: str) -> bytes:
    """The messages of one answer, ended by the up-to-date control."""
    messages: list[Any] = [
        {
            "key": f'"public"."TaskRun"/"{row["id"]}"',
            "value": row,
            "headers": {"operation": operation},
        }
        for row in rows
    ]
    return msgspec.json.encode([*messages, UP_TO_DATE])


def headers(
    handle: str, offset: Offset, *, columns: Iterable[str] | None, old_names: bool
) -> tuple[tuple[bytes, bytes], ...]:
    """Response headers. `columns` on an answer that is not live; else None.

    `old_names`: for clients older than the header names of today.
    """
    at = str(offset).encode()
    found = [
        (b"electric-shape-id" if old_names else b"electric-handle", handle.encode()),
        (b"electric-chunk-last-offset" if old_names else b"electric-offset", at),
        (b"electric-up-to-date", b""),
        (b"cache-control", b"no-store"),
    ]
    if columns is None:
        found.append((b"electric-cursor", str(offset.at_ms).encode()))
    else:
        schema = {name: COLUMNS[name] for name in columns}
        found.append((b"electric-schema", msgspec.json.encode(schema)))
    return tuple(found)


def timestamp(at_ms: int | None) -> str | None:
    """A time as a column has it: UTC, without a zone."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}"


def text_array(values: Iterable[str]) -> str:
    """An array of texts as a column has it: `{"a","b c"}`."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"
