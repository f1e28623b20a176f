"""The bytes of log rows and segments.

A log row is one group commit: the records of all channels it stored and the fences it raised,
as one msgpack value. msgpack because it is encoded and decoded in one call of C code for the
whole commit; what a frame costs in Python is the building of one tuple. What would be flags in a
hand-made layout (no headers, a guest's part) are msgpack's own one-byte forms.

A segment is a piece of one channel, written by compaction, compressed. Both carry a CRC-32 of
the stored bytes in a column beside them, because SQLite does not check its pages.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from everturn.errors import StorageCorrupt
from everturn.protocol.records import Headers, Record

#: (channel id, seq_num, timestamp_ms, fence, part, headers, body)
LogFrame = tuple[int, int, int, int, int, Headers, bytes]
#: (channel id, fence): an append below it is refused. Takes no seq_num.
FenceFrame = tuple[int, int]
LogRow = tuple[list[LogFrame], list[FenceFrame]]
#: (seq_num, timestamp_ms, fence, part, headers, body)
_SegmentFrame = tuple[int, int, int, int, Headers, bytes]

_COMPRESSION: Final = 1
_encoder: Final = msgspec.msgpack.Encoder()
_log_decoder: Final[msgspec.msgpack.Decoder[LogRow]] = msgspec.msgpack.Decoder(LogRow)
_segment_decoder: Final[msgspec.msgpack.Decoder[list[_SegmentFrame]]] = msgspec.msgpack.Decoder(
    list[_SegmentFrame]
)

checksum = zlib.crc32


def encode_log_row(frames: Sequence[LogFrame], fences: Sequence[FenceFrame]) -> bytes:
    """One group commit."""
    return _encoder.encode((frames, fences))


def decode_log_row(body: bytes, crc: int, place: str) -> LogRow:
    """The frames of a commit. Raises StorageCorrupt naming `place`."""
    _check(body, crc, place)
    try:
        return _log_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise StorageCorrupt(f"{place}: {error}", place=place) from error


def encode_segment(records: Sequence[Record]) -> bytes:
    """Records of one channel, compressed."""
    frames = [(r.seq_num, r.timestamp_ms, r.fence, r.part, r.headers, r.body) for r in records]
    return zlib.compress(_encoder.encode(frames), _COMPRESSION)


def decode_segment(body: bytes, crc: int, place: str) -> list[Record]:
    """The records of a segment. Raises StorageCorrupt naming `place`."""
    _check(body, crc, place)
    try:
        frames = _segment_decoder.decode(zlib.decompress(body))
    except (zlib.error, msgspec.DecodeError) as error:
        raise StorageCorrupt(f"{place}: {error}", place=place) from error
    return [
        Record(seq_num, at, headers, data, fence, part)
        for seq_num, at, fence, part, headers, data in frames
    ]


def _check(body: bytes, crc: int, place: str) -> None:
    if checksum(body) != crc:
        raise StorageCorrupt(f"{place}: the checksum does not match the stored bytes", place=place)
