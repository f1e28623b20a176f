"""Channels as server-sent events: records to bytes, bytes to events. No sockets here.

A reader of a channel gets four kinds of event (wire-protocol §5.3):

    event: batch                      one or more records, oldest first
    id: <last seq>,<records>,<bytes>  totals of this connection, this batch included
    data: {"records":[…],"tail":{"seq_num":n,"timestamp":ms}}

    event: ping                       nothing new; sent while idle
    data: {"timestamp":ms,"tail":{…}}

    event: error                      a JSON string; informational
    data: "…"

    data: [DONE]                      the server ends in good order

The `id` line exists for the log of a browser only. A cursor is always the `seq_num` of a record,
never the `id` of an event, because one event holds many records.

Encoding joins `Record.wire`, which is made once per record however many readers there are.
Decoding follows the HTML standard's event-stream grammar: lines end in CR, LF or CRLF, a leading
byte order mark is skipped, comments and unknown fields are ignored, and an event that the end of
the bytes cuts off is dropped. The pieces may be cut anywhere, in the middle of a CRLF or of a
character too, without changing what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from everturn.errors import ProtocolError
from everturn.protocol.records import Record

DONE: Final = b"data: [DONE]\n\n"
DONE_DATA: Final = b"[DONE]"
#: A batch carries about a megabyte of bodies; JSON escaping makes it up to six times as large.
EVENT_BYTES_MAX: Final = 16 * 1024 * 1024

#: `(seq_num the next record will get, time of the newest record in ms)`.
Tail = tuple[int, int]


_BATCH: Final = b'event: batch\nid: %d,%d,%d\ndata: {"records":[%b]}\n\n'
_BATCH_AT_TAIL: Final = (
    b'event: batch\nid: %d,%d,%d\ndata: {"records":[%b],"tail":{"seq_num":%d,"timestamp":%d}}\n\n'
)


def encode_batch(
    records: Sequence[Record], *, sent_records: int, sent_bytes: int, tail: Tail | None
) -> bytes:
    """A `batch` event of at least one record.

    Args:
        sent_records: records sent on this connection, these included.
        sent_bytes: metered bytes sent on this connection, these included.
        tail: where the channel ends as far as known; left out when None.
    """
    wire = records[0].wire if len(records) == 1 else b",".join([r.wire for r in records])
    # Formatted at one go, because this is made for every event of every reader.
    said = (records[-1].seq_num, sent_records, sent_bytes, wire)
    if tail is None:
        return _BATCH % said
    return _BATCH_AT_TAIL % (*said, *tail)


def encode_ping(timestamp_ms: int, tail: Tail | None) -> bytes:
    """A `ping` event; `timestamp_ms` is the server's wall time."""
    end = b"" if tail is None else b',"tail":' + _tail(tail)
    return b'event: ping\ndata: {"timestamp":%d%s}\n\n' % (timestamp_ms, end)


def encode_error(text: str) -> bytes:
    """An `error` event. Clients show it at most; what ends a reader is the HTTP status."""
    return b"event: error\ndata: " + msgspec.json.encode(text) + b"\n\n"


def _tail(tail: Tail) -> bytes:
    return b'{"seq_num":%d,"timestamp":%d}' % tail


class Event(NamedTuple):
    """One event. `event` is ``message`` when the stream names none; `id` is the newest one set."""

    event: str
    data: bytes
    id: str


class Decoder:
    """Turns bytes, cut anywhere, into events.

    Args:
        event_bytes_max: an event (or a single line) that grows past this raises ProtocolError, so
            that a broken peer cannot fill the memory.
    """

    __slots__ = ("_after_cr", "_data", "_event", "_first", "_id", "_line", "_max", "_size")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._max = event_bytes_max
        self._line: list[bytes] = []  # the pieces of a line whose end has not come yet
        self._size = 0  # bytes held in `_line` and `_data`
        self._after_cr = False  # a CR ended the last line; an LF right after it belongs to it
        self._first = True
        self._event = ""
        self._data: list[bytes] = []
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, in order.

        Raises ProtocolError when an event outgrows its limit.
        """
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        events: list[Event] = []
        # On bytes, `splitlines` knows CR, LF and CRLF and nothing else: the standard's line ends.
        for piece in chunk.splitlines(keepends=True):
            line = piece.rstrip(b"\r\n")
            self._grow(len(line))
            if len(line) == len(piece):
                self._line.append(piece)
                continue
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)
                self._line.clear()
            event = self._end_of_line(line)
            if event is not None:
                events.append(event)
        if chunk.endswith(b"\r"):
            self._after_cr = True
        return events

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._max:
            raise ProtocolError(f"an event is larger than {self._max} bytes")

    def _end_of_line(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            # A line's field name is not held; an empty line still takes a place in the list.
            self._size += 1 - (len(line) - len(value))
            return None
        self._size -= len(line)
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        if not data:
            return None
        return Event(name or "message", data[0] if len(data) == 1 else b"\n".join(data), self._id)


class _WireRecord(msgspec.Struct):
    seq_num: int
    timestamp: int
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""


class _WireTail(msgspec.Struct):
    seq_num: int
    timestamp: int


class _WireBatch(msgspec.Struct):
    records: list[_WireRecord]
    tail: _WireTail | None = None


_decode_batch = msgspec.json.Decoder(_WireBatch).decode


def decode_batch(data: bytes | str) -> tuple[list[Record], Tail | None]:
    """The records and the tail of a `batch` event's data.

    Raises ProtocolError when it is not one. The body of a command record comes back as the lossy
    text it was sent as (wire-protocol §6.5).
    """
    try:
        batch = _decode_batch(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed batch event: {error}") from error
    records = [
        Record(item.seq_num, item.timestamp, item.headers, item.body.encode("utf-8", "replace"))
        for item in batch.records
    ]
    tail = None if batch.tail is None else (batch.tail.seq_num, batch.tail.timestamp)
    return records, tail
