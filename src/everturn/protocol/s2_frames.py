"""The write protocol of S2 that the original's clients speak: messages, frames, errors.

Facts are those of wire-protocol §7. Only writing is here, and only what those clients send; what
a message may *mean* on a channel is decided by `server/services/direct.py`.

Messages are protocol buffers of four shapes, small enough to be written out:

    StreamPosition  1 seq_num uint64, 2 timestamp uint64
    Header          1 name bytes, 2 value bytes
    AppendRecord    1 timestamp optional uint64, 2 headers repeated Header, 3 body bytes
    AppendInput     1 records repeated, 2 match_seq_num optional uint64, 3 fencing_token optional
    AppendAck       1 start, 2 end, 3 tail: StreamPosition each

The first two members of an input can be told from absent ones, even when they are zero. Unknown
fields are skipped, as protocol buffers ask. Header names and values are text here, because a
channel keeps text: bytes that are not UTF-8 are refused. The same messages exist as JSON, with
the names above.

A framed session is a sequence of frames in either direction:

    3 bytes   length of all that follows, big-endian
    1 byte    flags: 0x80 last frame, 0x40 gzip, 0x20 zstd
    the rest  one message; in a last frame of the server: 2 bytes of HTTP status, then JSON

Reading is bounded three ways, because a byte of input costs far more than a byte of work: by the
size of a frame, by the number of fields in a message (`FIELDS_MAX`), and by the depth of the
messages, which is fixed. Everything malformed raises InvalidRequest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from everturn.errors import InvalidRequest, TooLarge
from everturn.protocol.records import Headers

#: Bytes of one frame or one protobuf body. A batch is charged at most 1 MiB, and its encoding
#: costs a few bytes more per header than the charge.
FRAME_BYTES_MAX: Final = 2 * 1024 * 1024
#: Fields of one message, nested ones included: 1000 records with body and time, and headers.
FIELDS_MAX: Final = 16_384
#: Escapes make JSON up to six times as long as the text it stands for; twice is what quotes do.
JSON_BYTES_MAX: Final = 4 * 1024 * 1024

TERMINAL: Final = 0x80
GZIP: Final = 0x40
ZSTD: Final = 0x20
_HEAD_BYTES: Final = 4
_LENGTH_MAX: Final = 0xFFFFFF
_UINT64: Final = 2**64 - 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final[Mapping[int, int]] = {_FIXED64: 8, _FIXED32: 4}


class InputRecord(NamedTuple):
    """One record of an input, as it is to be stored."""

    body: bytes = b""
    headers: Headers = ()
    #: The time the writer gave it, None when it gave none.
    timestamp_ms: int | None = None


class AppendInput(NamedTuple):
    """What one append asks for."""

    records: tuple[InputRecord, ...]
    #: The number the first record must get, None for any.
    match_seq_num: int | None = None
    fencing_token: str | None = None


class Position(NamedTuple):
    """A place in a stream: a number, and the time of the record before it."""

    seq_num: int
    timestamp_ms: int


class AppendAck(NamedTuple):
    """`start`: the first record written. `end`: one past the last. `tail`: of the stream then."""

    start: Position
    end: Position
    tail: Position


# --- protocol buffers: writing -------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _uint(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def encode_input(value: AppendInput) -> bytes:
    """`AppendInput` as protobuf."""
    parts = [_bytes(1, _encode_record(record)) for record in value.records]
    if value.match_seq_num is not None:
        parts.append(_uint(2, value.match_seq_num))
    if value.fencing_token is not None:
        parts.append(_bytes(3, value.fencing_token.encode()))
    return b"".join(parts)


def _encode_record(record: InputRecord) -> bytes:
    parts = [] if record.timestamp_ms is None else [_uint(1, record.timestamp_ms)]
    for pair in record.headers:
        members = enumerate(pair, 1)  # an empty name or value is left out, as proto3 does
        parts.append(_bytes(2, b"".join(_bytes(n, text.encode()) for n, text in members if text)))
    if record.body:
        parts.append(_bytes(3, record.body))
    return b"".join(parts)


def encode_ack(ack: AppendAck) -> bytes:
    """`AppendAck` as protobuf. All three positions are present; zeros in them are left out."""
    return b"".join(_bytes(number, _encode_position(place)) for number, place in enumerate(ack, 1))


def _encode_position(place: Position) -> bytes:
    return b"".join(_uint(number, value) for number, value in enumerate(place, 1) if value)


# --- protocol buffers: reading -------------------------------------------------------------------


class _Budget:
    """How many fields a message may still hold, nested ones included."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = FIELDS_MAX

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise InvalidRequest(f"a message holds at most {FIELDS_MAX} fields")


def decode_input(data: bytes) -> AppendInput:
    """`AppendInput` from protobuf. Raises InvalidRequest."""
    budget = _Budget()
    records: list[InputRecord] = []
    match: int | None = None
    token: str | None = None
    for number, value in _fields(data, budget):
        if number == 1:
            records.append(_decode_record(_as_bytes(value, "records"), budget))
        elif number == 2:
            match = _as_int(value, "match_seq_num")
        elif number == 3:
            token = _as_text(value, "fencing_token")
    return AppendInput(tuple(records), match, token)


def _decode_record(data: bytes, budget: _Budget) -> InputRecord:
    timestamp: int | None = None
    headers: list[tuple[str, str]] = []
    body = b""
    for number, value in _fields(data, budget):
        if number == 1:
            timestamp = _as_int(value, "timestamp")
        elif number == 2:
            headers.append(_decode_header(_as_bytes(value, "headers"), budget))
        elif number == 3:
            body = _as_bytes(value, "body")
    return InputRecord(body, tuple(headers), timestamp)


def _decode_header(data: bytes, budget: _Budget) -> tuple[str, str]:
    name = value = ""
    for number, field in _fields(data, budget):
        if number == 1:
            name = _as_text(field, "header name")
        elif number == 2:
            value = _as_text(field, "header value")
    return name, value


def decode_ack(data: bytes) -> AppendAck:
    """`AppendAck` from protobuf. Raises InvalidRequest, also when a position is missing."""
    budget = _Budget()
    found: dict[int, Position] = {}
    for number, value in _fields(data, budget):
        if number in (1, 2, 3):
            place = dict(_fields(_as_bytes(value, "position"), budget))
            found[number] = Position(
                _as_int(place.get(1, 0), "seq_num"), _as_int(place.get(2, 0), "timestamp")
            )
    try:
        return AppendAck(found[1], found[2], found[3])
    except KeyError as missing:
        raise InvalidRequest(f"an ack lacks field {missing.args[0]}") from None


def _fields(data: bytes, budget: _Budget) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message in their order: an int for a varint, else the bytes."""
    at, end = 0, len(data)
    while at < end:
        budget.take()
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise InvalidRequest("a field has the number 0")
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise InvalidRequest(f"field {number} is of the unknown kind {kind}")
        if size > end - at:
            raise InvalidRequest(f"field {number} is {size} bytes, {end - at} are left")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise InvalidRequest("a number is cut off" if shift <= 63 else "a number is too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UINT64, at
        shift += 7


def _as_bytes(value: int | bytes, what: str) -> bytes:
    if isinstance(value, int):
        raise InvalidRequest(f"{what} must not be a number")
    return value


def _as_int(value: int | bytes, what: str) -> int:
    if not isinstance(value, int):
        raise InvalidRequest(f"{what} must be a number")
    return value


def _as_text(value: int | bytes, what: str) -> str:
    try:
        return _as_bytes(value, what).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{what} must be UTF-8") from None


# --- JSON ----------------------------------------------------------------------------------------


class JsonRecord(msgspec.Struct):
    """One record of an append as JSON; a `timestamp` is not taken."""

    body: str = ""
    headers: list[tuple[str, str]] = []
    timestamp: int | None = None


class JsonInput(msgspec.Struct):
    """An append as JSON."""

    records: list[JsonRecord]
    match_seq_num: int | None = None
    fencing_token: str | None = None


def decode_input_json(data: bytes) -> AppendInput:
    """`AppendInput` from JSON. Raises InvalidRequest."""
    try:
        value = msgspec.json.decode(data, type=JsonInput)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"not an append input: {error}") from None
    return AppendInput(
        tuple(InputRecord(r.body.encode(), tuple(r.headers), r.timestamp) for r in value.records),
        value.match_seq_num,
        value.fencing_token,
    )


def encode_ack_json(ack: AppendAck) -> bytes:
    """`AppendAck` as JSON."""
    return msgspec.json.encode(
        {
            name: {"seq_num": place.seq_num, "timestamp": place.timestamp_ms}
            for name, place in zip(AppendAck._fields, ack, strict=True)
        }
    )


def encode_error(code: str, message: str, members: Mapping[str, Any] | None = None) -> bytes:
    """The body of a refusal. `members` are further facts that a client looks for by name."""
    return msgspec.json.encode({"code": code, "message": message, **(members or {})})


# --- frames --------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """One frame of a session."""

    flags: int
    body: bytes

    @property
    def is_terminal(self) -> bool:
        return bool(self.flags & TERMINAL)

    @property
    def is_compressed(self) -> bool:
        return bool(self.flags & (GZIP | ZSTD))


def encode_frame(body: bytes, flags: int = 0) -> bytes:
    """One frame. Raises TooLarge for a body whose length three bytes cannot say."""
    length = 1 + len(body)
    if length > _LENGTH_MAX:
        raise TooLarge(
            f"a frame is {length} bytes, at most {_LENGTH_MAX}",
            what="frame",
            bytes=length,
            bytes_max=_LENGTH_MAX,
        )
    return length.to_bytes(3, "big") + bytes((flags,)) + body


def encode_last_frame(status: int, body: bytes) -> bytes:
    """The frame that ends a session with a status of HTTP and a body of JSON."""
    return encode_frame(status.to_bytes(2, "big") + body, TERMINAL)


def split_last_frame(body: bytes) -> tuple[int, bytes]:
    """Status and JSON of a server's last frame. Raises InvalidRequest when it holds no status."""
    if len(body) < 2:
        raise InvalidRequest("a last frame holds no status")
    return int.from_bytes(body[:2], "big"), body[2:]


class FrameReader:
    """Cuts a flow of bytes into frames. Holds at most one frame that is not complete."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held = bytearray()

    @property
    def is_empty(self) -> bool:
        """False while part of a frame has arrived and the rest has not."""
        return not self._held

    def feed(self, data: bytes) -> None:
        """Take what has arrived; the frames in it are then asked for one by one."""
        self._held += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, None when more must arrive.

        Raises TooLarge as soon as a length over the limit is seen, InvalidRequest for a frame
        that does not even hold its flags.
        """
        held = self._held
        if len(held) < _HEAD_BYTES:
            return None
        length = int.from_bytes(held[:3], "big")
        if length < 1:
            raise InvalidRequest("a frame must hold at least its flags")
        if length > self._bytes_max:
            raise TooLarge(
                f"a frame is {length} bytes, at most {self._bytes_max}",
                what="frame",
                bytes=length,
                bytes_max=self._bytes_max,
            )
        if len(held) < 3 + length:
            return None
        frame = Frame(held[3], bytes(held[_HEAD_BYTES : 3 + length]))
        del held[: 3 + length]
        return frame

    def frames(self) -> Iterator[Frame]:
        """Every whole frame there is now. Raises like `next_frame`, after those before it."""
        while (frame := self.next_frame()) is not None:
            yield frame


def decode_frames(data: bytes) -> Sequence[Frame]:
    """All frames of a complete flow. Raises InvalidRequest when it ends within one."""
    reader = FrameReader()
    reader.feed(data)
    frames = list(reader.frames())
    if not reader.is_empty:
        raise InvalidRequest("the flow ends within a frame")
    return frames
