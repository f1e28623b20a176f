"""Records: one entry of a channel, its kinds, its size, and its forms on the wire.

A channel is `in` or `out` of a session. A record has a `seq_num`, a time, headers and a body of
bytes. Three kinds, told apart by headers alone (wire-protocol §6):

* data     - body is the JSON envelope `{"data": …, "id": "<part id>"}`
* control  - has a header `trigger-control: <subtype>`, empty body
* command  - first header has an empty name (`["", "trim"]`); the store's own
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from everturn.protocol import lenient, nesting

Io = Literal["in", "out"]
#: What a session has stored: its two channels, and its history (`protocol/history.py`).
Stored = Literal["in", "out", "history"]
Headers = tuple[tuple[str, str], ...]

CONTROL_HEADER: Final = "trigger-control"
TURN_COMPLETE: Final = "turn-complete"
UPGRADE_REQUIRED: Final = "upgrade-required"
TOKEN_HEADER: Final = "public-access-token"
IN_CURSOR_HEADER: Final = "session-in-event-id"
#: Numbers above the in-cursor that are already decided (rulings §1.7): "7,9,12".
IN_DECIDED_HEADER: Final = "session-in-decided"
#: Marks in stored history that a turn was answered anew after a crash (rulings §1.6).
RESTARTED_CHUNK: Final = "data-restarted"

TRIM_COMMAND: Final = "trim"


class ChannelName(NamedTuple):
    """Names one channel. `session` is the session key: its external id, else its `session_…` id."""

    environment: str
    session: str
    io: Stored


class NewRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record to be appended.

    `part_id` deduplicates: a channel that already holds it adds nothing. Writers that hold a
    lease leave it empty and number their parts instead (`StreamStore.append(first_part=…)`).
    """

    body: bytes = b""
    headers: Headers = ()
    part_id: str | None = None


class Record(msgspec.Struct, gc=False, eq=False):
    """A stored record. Immutable by convention; `wire` is encoded once, however many readers.

    Hundreds of thousands are alive in a busy store, and they can be in no cycle: they are kept
    out of the garbage collector's sight, or its full passes would stop the loop for them.
    """

    seq_num: int
    timestamp_ms: int
    headers: Headers = ()
    body: bytes = b""
    #: Fence of the lease it was written under; 0 for guests (clients, the server).
    fence: int = 0
    #: Part number under that fence; -1 for guests.
    part: int = -1
    _wire: bytes | None = None

    @property
    def is_command(self) -> bool:
        return bool(self.headers) and self.headers[0][0] == ""

    @property
    def control(self) -> str | None:
        """The subtype of a control record, None for the other kinds."""
        for name, value in self.headers:
            if name == CONTROL_HEADER:
                return value
        return None

    @property
    def is_data(self) -> bool:
        return not self.headers or (not self.is_command and self.control is None)

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def wire(self) -> bytes:
        """This record as it stands in a `batch` event (wire-protocol §5.3)."""
        if self._wire is None:
            self._wire = encode_record(self)
        return self._wire

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (
            self.seq_num == other.seq_num
            and self.timestamp_ms == other.timestamp_ms
            and self.headers == other.headers
            and self.body == other.body
        )

    def __hash__(self) -> int:
        return hash((self.seq_num, self.timestamp_ms, self.body))

    def __repr__(self) -> str:
        return (
            f"Record({self.seq_num}, at={self.timestamp_ms}, headers={self.headers!r}, "
            f"body={self.body[:60]!r}, fence={self.fence}, part={self.part})"
        )


_encode = msgspec.json.encode


def encode_record(record: Record) -> bytes:
    """JSON of one record; `headers` and `body` are left out when empty."""
    if record.body and not record.headers:  # what nearly every record is
        text = _encode(record.body.decode("utf-8", "replace"))
        return b'{"seq_num":%d,"timestamp":%d,"body":%b}' % (
            record.seq_num,
            record.timestamp_ms,
            text,
        )
    parts = [b'{"seq_num":%d,"timestamp":%d' % (record.seq_num, record.timestamp_ms)]
    if record.headers:
        parts.append(b',"headers":' + _encode(record.headers))
    if record.body:
        # A command's body is raw bytes; JSON has no other way than a lossy string (§6.5).
        parts.append(b',"body":' + _encode(record.body.decode("utf-8", "replace")))
    parts.append(b"}")
    return b"".join(parts)


def data_body(data_json: bytes, part_id: str) -> bytes:
    """The envelope of a data record around JSON that is already encoded."""
    return b'{"data":' + data_json + b',"id":' + _encode(part_id) + b"}"


def input_body(text: str, part_id: str) -> bytes:
    """The envelope of an appended `.in` record: the posted text stays a string (§6.2)."""
    return b'{"data":' + _encode(text) + b',"id":' + _encode(part_id) + b"}"


def open_envelope(body: bytes) -> tuple[Any, str] | None:
    """`(data, part id)` of a data record, or None when the body is not an envelope."""
    try:
        envelope = lenient.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(envelope, dict) or "data" not in envelope:
        return None
    part = envelope.get("id")
    return envelope["data"], part if isinstance(part, str) else ""


def metered_bytes(headers: Iterable[tuple[str, str]], body: bytes) -> int:
    """The size a record is charged with: 8 + 2·H + header bytes + body bytes (§6.4)."""
    total = 8 + len(body)
    for name, value in headers:
        total += 2 + len(name.encode()) + len(value.encode())
    return total


def control_record(subtype: str, headers: Sequence[tuple[str, str]] = ()) -> NewRecord:
    """An empty-body control record with its sibling headers."""
    return NewRecord(headers=((CONTROL_HEADER, subtype), *headers))


def trim_record(before: int) -> NewRecord:
    """A trim command: records with `seq_num < before` may be forgotten (§6.5)."""
    return NewRecord(headers=(("", TRIM_COMMAND),), body=before.to_bytes(8, "big"))


def trim_target(headers: Headers, body: bytes) -> int | None:
    """The bound a trim command asks for, or None when this is no well-formed trim command."""
    if headers and headers[0] == ("", TRIM_COMMAND) and len(body) == 8:
        return int.from_bytes(body, "big")
    return None


class InputCursor(NamedTuple):
    """What of `.in` is decided: everything up to `seq_num`, and the numbers in `decided` above."""

    seq_num: int | None = None
    decided: frozenset[int] = frozenset()

    def covers(self, seq_num: int) -> bool:
        return (self.seq_num is not None and seq_num <= self.seq_num) or seq_num in self.decided

    def newest(self, other: InputCursor) -> InputCursor:
        """The later of two cursors of one session (both are monotonic)."""
        if (other.seq_num if other.seq_num is not None else -1) >= (
            self.seq_num if self.seq_num is not None else -1
        ):
            return other
        return self

    def headers(self) -> Headers:
        """As sibling headers of a turn-complete record."""
        if self.seq_num is None and not self.decided:
            return ()
        out: list[tuple[str, str]] = []
        if self.seq_num is not None:
            out.append((IN_CURSOR_HEADER, str(self.seq_num)))
        if self.decided:
            out.append((IN_DECIDED_HEADER, ",".join(map(str, sorted(self.decided)))))
        return tuple(out)

    @classmethod
    def of(cls, record: Record) -> InputCursor:
        """The cursor that a turn-complete record carries; malformed numbers count as absent."""
        seq = record.header(IN_CURSOR_HEADER)
        decided = record.header(IN_DECIDED_HEADER)
        return cls(
            None if seq is None else _number(seq),
            frozenset(n for text in decided.split(",") if (n := _number(text)) is not None)
            if decided
            else frozenset(),
        )


def _number(text: str) -> int | None:
    """A seq_num in a header; None for what cannot be one, numbers too long to convert included."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


class Input(NamedTuple):
    """One decoded `.in` record."""

    seq_num: int
    kind: str  # message | stop | handover | handover-skip | "" when unknown or malformed
    payload: Mapping[str, Any]  # the payload of a message, else the whole chunk

    @property
    def trigger(self) -> str:
        """The trigger of a message record; `submit-message` when it names none."""
        if self.kind != "message":
            return ""
        trigger = self.payload.get("trigger", "submit-message")
        return trigger if isinstance(trigger, str) else ""

    @property
    def needs_answer(self) -> bool:
        """Whether somebody waits for a turn that answers this record."""
        return self.kind == "message" and self.trigger in (
            "submit-message",
            "regenerate-message",
            "action",
        )


def parse_input(record: Record) -> Input:
    """Decode an `.in` record. A string body is decoded once more; garbage has kind ``""``.

    Spec: chat-agent §1.2, §1.3; R-014.
    """
    opened = open_envelope(record.body) if record.is_data else None
    chunk: Any = opened[0] if opened is not None else None
    if isinstance(chunk, str):
        try:
            chunk = None if nesting.too_deep(chunk) else lenient.decode(chunk)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            chunk = None
    if not isinstance(chunk, dict):
        return Input(record.seq_num, "", {})
    kind = chunk.get("kind")
    if kind == "message":
        payload = chunk.get("payload")
        if not isinstance(payload, dict):
            return Input(record.seq_num, "", {})
        return Input(record.seq_num, "message", payload)
    if kind in ("stop", "handover", "handover-skip"):
        return Input(record.seq_num, kind, chunk)
    return Input(record.seq_num, "", chunk)
