"""The write protocol of S2: byte-exact messages and frames (wire-protocol §7.1, §23)."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.errors import InvalidRequest, TooLarge
from everturn.protocol import s2_frames as s2
from everturn.protocol.s2_frames import AppendAck, AppendInput, Frame, InputRecord, Position

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_UINT64 = st.integers(0, 2**64 - 1)
_RECORDS = st.builds(
    InputRecord,
    st.binary(max_size=300),
    st.lists(st.tuples(_TEXT, _TEXT), max_size=4).map(tuple),
    st.none() | _UINT64,
)
_INPUTS = st.builds(
    AppendInput,
    st.lists(_RECORDS, max_size=5).map(tuple),
    st.none() | _UINT64,
    st.none() | _TEXT,
)
_POSITIONS = st.builds(Position, _UINT64, _UINT64)


class TestVectors:
    """The bytes of wire-protocol §23, as the official client sent and took them."""

    def test_a_written_record_in_its_frame(self) -> None:
        body = b'{"data":"raw","id":"C2XGKF_"}'
        given = AppendInput((InputRecord(body),))

        framed = s2.encode_frame(s2.encode_input(given))

        assert framed == bytes.fromhex("000022 00 0a1f1a1d") + body
        assert [s2.decode_input(f.body) for f in s2.decode_frames(framed)] == [given]

    def test_an_ack_in_its_frame(self) -> None:
        place = Position(6, 1776900000000)
        ack = AppendAck(Position(5, 1776900000000), place, place)

        framed = s2.encode_frame(s2.encode_ack(ack))

        # The length is that of 33 bytes of message and one of flags.
        assert framed.hex() == (
            "000022000a090805108092f9bbdb3312090806108092f9bbdb331a090806108092f9bbdb33"
        )
        assert [s2.decode_ack(f.body) for f in s2.decode_frames(framed)] == [ack]

    def test_a_trim_has_a_header_without_a_name(self) -> None:
        # W-82
        trim = AppendInput((InputRecord((7).to_bytes(8, "big"), (("", "trim"),)),))

        assert s2.encode_input(trim).hex() == "0a12120612047472696d1a080000000000000007"
        assert s2.decode_input(s2.encode_input(trim)) == trim

    def test_a_control_record_as_json(self) -> None:
        sent = (
            b'{"records":[{"body":"","headers":'
            b'[["trigger-control","turn-complete"],["public-access-token","pp"]]}]}'
        )

        assert s2.decode_input_json(sent) == AppendInput(
            (
                InputRecord(
                    b"", (("trigger-control", "turn-complete"), ("public-access-token", "pp"))
                ),
            )
        )

    def test_the_ack_as_json_has_three_places(self) -> None:
        ack = AppendAck(Position(0, 9), Position(1, 9), Position(4, 9))

        assert msgspec.json.decode(s2.encode_ack_json(ack)) == {
            "start": {"seq_num": 0, "timestamp": 9},
            "end": {"seq_num": 1, "timestamp": 9},
            "tail": {"seq_num": 4, "timestamp": 9},
        }

    def test_an_error_ends_a_session_with_its_status_in_front(self) -> None:
        last = s2.encode_last_frame(409, s2.encode_error("session_closed", "closed"))

        assert last[3] == s2.TERMINAL
        assert last[4:6] == b"\x01\x99"
        (frame,) = s2.decode_frames(last)
        assert frame.is_terminal
        assert s2.split_last_frame(frame.body) == (
            409,
            b'{"code":"session_closed","message":"closed"}',
        )


class TestMessages:
    @given(_INPUTS)
    def test_an_input_is_read_as_it_was_written(self, given: AppendInput) -> None:
        assert s2.decode_input(s2.encode_input(given)) == given

    @given(st.builds(AppendAck, _POSITIONS, _POSITIONS, _POSITIONS))
    def test_an_ack_is_read_as_it_was_written(self, ack: AppendAck) -> None:
        assert s2.decode_ack(s2.encode_ack(ack)) == ack

    def test_all_three_places_are_present_when_they_are_zero(self) -> None:
        zero = Position(0, 0)

        assert s2.encode_ack(AppendAck(zero, zero, zero)).hex() == "0a0012001a00"

    def test_a_zero_condition_is_told_from_an_absent_one(self) -> None:
        conditions = AppendInput((), match_seq_num=0, fencing_token="")

        assert s2.decode_input(s2.encode_input(conditions)) == conditions

    @pytest.mark.parametrize(
        "extra", ["980101", "9201023132", "99010000000000000000", "9d0100000000"]
    )
    def test_fields_nobody_knows_are_skipped(self, extra: str) -> None:
        known = s2.encode_input(AppendInput((InputRecord(b"x"),)))

        assert s2.decode_input(bytes.fromhex(extra) + known).records == (InputRecord(b"x"),)

    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            ("0a05", "0 are left"),  # a record that is cut off
            ("08", "cut off"),  # a number that is cut off
            ("10ffffffffffffffffffff01", "too long"),
            ("0801", "records must not be a number"),
            ("1201ff", "match_seq_num must be a number"),
            ("1a01ff", "fencing_token must be UTF-8"),
            ("0a0512030a01ff", "header name must be UTF-8"),
            ("0b", "unknown kind 3"),
            ("0001", "number 0"),
        ],
    )
    def test_what_is_malformed_is_refused_with_its_reason(self, sent: str, reason: str) -> None:
        with pytest.raises(InvalidRequest, match=reason):
            s2.decode_input(bytes.fromhex(sent))

    def test_an_ack_without_its_tail_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="lacks field 3"):
            s2.decode_ack(bytes.fromhex("0a001200"))

    @given(st.binary(max_size=200))
    def test_no_bytes_do_more_than_be_refused(self, sent: bytes) -> None:
        try:
            s2.decode_input(sent)
        except InvalidRequest:
            pass

    @pytest.mark.parametrize("field", [b"\x0a\x00", b"\x10\x01", b"\x98\x01\x01"])
    def test_a_frame_of_tiny_fields_is_refused_before_it_costs_time(self, field: bytes) -> None:
        flood = field * (s2.FRAME_BYTES_MAX // len(field))
        began = time.process_time()

        with pytest.raises(InvalidRequest, match="at most 16384 fields"):
            s2.decode_input(flood)

        assert time.process_time() - began < 0.5

    @pytest.mark.parametrize(
        "sent", [b"", b"[]", b'{"records":[{"body":1}]}', b'{"records":"\xff"}']
    )
    def test_json_of_another_shape_is_refused(self, sent: bytes) -> None:
        with pytest.raises(InvalidRequest, match="not an append input"):
            s2.decode_input_json(sent)


class TestFrames:
    @settings(max_examples=50)
    @given(st.data())
    def test_no_cut_of_the_bytes_changes_the_frames(self, data: st.DataObject) -> None:
        bodies = data.draw(st.lists(st.binary(max_size=40), max_size=5))
        flow = b"".join(s2.encode_frame(body) for body in bodies)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(flow)), max_size=6)))
        reader = s2.FrameReader()
        found: list[Frame] = []

        for start, end in zip([0, *cuts], [*cuts, len(flow)], strict=True):
            reader.feed(flow[start:end])
            found += reader.frames()

        assert [frame.body for frame in found] == bodies
        assert reader.is_empty

    def test_a_frame_that_is_too_long_is_refused_by_its_length_alone(self) -> None:
        reader = s2.FrameReader()
        reader.feed((s2.FRAME_BYTES_MAX + 1).to_bytes(3, "big") + b"\0")

        with pytest.raises(TooLarge, match="at most 2097152"):
            reader.next_frame()

    def test_the_frames_before_a_bad_one_are_handed_out(self) -> None:
        reader = s2.FrameReader()
        reader.feed(s2.encode_frame(b"good") + b"\0\0\0\0")

        assert reader.next_frame() == Frame(0, b"good")
        with pytest.raises(InvalidRequest, match="at least its flags"):
            reader.next_frame()

    @pytest.mark.parametrize(
        ("flags", "compressed", "terminal"),
        [(0, False, False), (s2.ZSTD, True, False), (s2.GZIP, True, False), (0x80, False, True)],
    )
    def test_flags_say_compression_and_end(
        self, flags: int, compressed: bool, terminal: bool
    ) -> None:
        (frame,) = s2.decode_frames(s2.encode_frame(b"x", flags))

        assert (frame.is_compressed, frame.is_terminal) == (compressed, terminal)

    def test_a_flow_that_ends_within_a_frame_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="within a frame"):
            s2.decode_frames(s2.encode_frame(b"whole")[:-1])

    def test_a_body_of_sixteen_megabytes_fits_no_frame(self) -> None:
        with pytest.raises(TooLarge):
            s2.encode_frame(bytes(0xFFFFFF))
