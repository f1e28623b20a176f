"""The pieces of the SQLite engine that decide without touching a file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import StorageCorrupt
from everturn.protocol.records import ChannelName, Record
from everturn.rules import limits
from everturn.storage.sqlite.channel import Channel, PartRange, part_ranges
from everturn.storage.sqlite.compaction import Slice
from everturn.storage.sqlite.frames import (
    checksum,
    decode_log_row,
    decode_segment,
    encode_log_row,
    encode_segment,
)

NUMBERS = st.integers(0, (1 << 53) - 1)
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3).map(tuple)
FRAMES = st.lists(
    st.tuples(
        NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(-1, 1 << 40), HEADERS, st.binary(max_size=9)
    ),
    max_size=5,
)


def channel(bodies: list[bytes]) -> Channel:
    made = Channel(ChannelName("e", "s", "out"), id=1)
    made.records = [Record(n, 0, (), body) for n, body in enumerate(bodies)]
    made.next_seq = len(bodies)
    made.publish()
    return made


class TestFrames:
    @given(frames=FRAMES, fences=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3))
    def test_a_log_row_comes_back_as_it_was(self, frames: list, fences: list) -> None:
        body = encode_log_row(frames, fences)
        assert decode_log_row(body, checksum(body), "here") == (frames, fences)

    @given(frames=FRAMES)
    def test_a_segment_comes_back_as_it_was(self, frames: list) -> None:
        records = [Record(s, t, h, b, f, p) for _, s, t, f, p, h, b in frames]
        body = encode_segment(records)
        found = decode_segment(body, checksum(body), "here")
        assert found == records
        assert [(r.fence, r.part) for r in found] == [(r.fence, r.part) for r in records]

    @given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_any_flipped_bit_is_noticed_and_the_place_named(self, at: int, bit: int) -> None:
        good = encode_log_row([(1, 2, 3, 4, 5, (), b"body")], [])
        bad = bytearray(good)
        bad[at % len(bad)] ^= 1 << bit
        with pytest.raises(StorageCorrupt, match="log row 7"):
            decode_log_row(bytes(bad), checksum(good), "log row 7")

    def test_bytes_that_are_no_row_are_corrupt_even_with_a_right_checksum(self) -> None:
        with pytest.raises(StorageCorrupt):
            decode_log_row(b"\xc1", checksum(b"\xc1"), "here")
        with pytest.raises(StorageCorrupt):
            decode_segment(b"not compressed", checksum(b"not compressed"), "here")


class TestPartRanges:
    @given(writers=st.lists(st.sampled_from(["guest", "part", "next lease"]), max_size=30))
    def test_ranges_say_of_every_part_which_number_it_got(self, writers: list[str]) -> None:
        records, fence, part = [], 1, 0
        for seq_num, writer in enumerate(writers):
            if writer == "next lease":
                fence, part = fence + 1, 0
            if writer == "guest":
                records.append(Record(seq_num, 0))
            else:
                records.append(Record(seq_num, 0, fence=fence, part=part))
                part += 1
        found = {
            (known.fence, known.first_part + n): known.first_seq + n
            for known in (part_ranges(records) if records else [])
            for n in range(known.length)
        }
        assert found == {(r.fence, r.part): r.seq_num for r in records if r.fence}

    def test_parts_in_a_row_are_one_range(self) -> None:
        records = [Record(n + 5, 0, fence=2, part=n) for n in range(9)]
        assert part_ranges(records) == [PartRange(2, 0, 5, 9)]


class TestSlices:
    def test_a_channel_larger_than_a_segment_is_taken_piece_by_piece(self) -> None:
        large = channel([b"x" * (limits.STREAM_SEGMENT_BYTES // 3)] * 5)
        taken = []
        for _ in range(2):
            piece = Slice()
            whole = piece.add(large)
            taken.append((len(piece.pieces[0].records), whole))
            large.compacted = piece.pieces[0].compacted
        assert taken == [(3, False), (2, True)]

    def test_a_record_larger_than_a_segment_gets_one_of_its_own(self) -> None:
        large = channel([b"x" * (limits.STREAM_SEGMENT_BYTES + 1), b"y"])
        piece = Slice()
        assert not piece.add(large)
        assert [len(p.records) for p in piece.pieces] == [1]


class TestChannel:
    def test_a_failed_commit_leaves_no_trace(self) -> None:
        place = channel([b"a", b"b"])
        place.fence, place.next_part = 3, 2
        place.begin("commit")
        place.take_fence(4)
        place.records.append(Record(2, 9, fence=4, part=0))
        place.next_seq, place.next_part, place.timestamp_ms = 3, 1, 9
        place.trim(2, 2)
        place.roll_back()

        assert (place.next_seq, place.tail, place.fence, place.next_part) == (2, 2, 3, 2)
        assert (place.decided_first, place.timestamp_ms, len(place.records)) == (0, 0, 2)

    def test_letting_go_keeps_what_is_not_compacted(self) -> None:
        place = channel([b"a", b"b", b"c"])
        place.bytes = sum(302 for _ in place.records)
        place.compacted = 2
        assert place.let_go() == 604
        assert (place.base, place.tail, place.bytes) == (2, 3, 302)
        assert [r.body for r in place.records] == [b"c"]
