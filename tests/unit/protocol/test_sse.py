"""Event streams: byte-exact encoding, and decoding that no cut of the bytes can change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.errors import ProtocolError
from everturn.protocol import sse
from everturn.protocol.records import Record, control_record, data_body, trim_record
from everturn.rules import limits

_DATA_1 = Record(0, 1776900000000, body=data_body(b'{"type":"start"}', "Fj3AlbY"))
_DATA_2 = Record(
    1, 1776900000040, body=data_body(b'{"type":"text-delta","id":"t","delta":"hi"}', "C2XGKF_")
)
_CONTROL = Record(
    2,
    1776900000900,
    control_record(
        "turn-complete", [("public-access-token", "eyJ"), ("session-in-event-id", "4")]
    ).headers,
)
# The stream of wire-protocol §5.3, with a shorter token.
_STREAM = (
    b"event: batch\n"
    b"id: 1,2,128\n"
    b'data: {"records":[{"seq_num":0,"timestamp":1776900000000,'
    b'"body":"{\\"data\\":{\\"type\\":\\"start\\"},\\"id\\":\\"Fj3AlbY\\"}"},'
    b'{"seq_num":1,"timestamp":1776900000040,"body":"{\\"data\\":{\\"type\\":\\"text-delta\\",'
    b'\\"id\\":\\"t\\",\\"delta\\":\\"hi\\"},\\"id\\":\\"C2XGKF_\\"}"}],'
    b'"tail":{"seq_num":2,"timestamp":1776900000040}}\n\n'
    b"event: batch\n"
    b"id: 2,3,140\n"
    b'data: {"records":[{"seq_num":2,"timestamp":1776900000900,'
    b'"headers":[["trigger-control","turn-complete"],["public-access-token","eyJ"],'
    b'["session-in-event-id","4"]]}],"tail":{"seq_num":3,"timestamp":1776900000900}}\n\n'
    b"event: ping\n"
    b'data: {"timestamp":1776900006000,"tail":{"seq_num":3,"timestamp":1776900000900}}\n\n'
    b"data: [DONE]\n\n"
)


def test_the_encoder_writes_the_stream_of_the_specification_byte_for_byte() -> None:
    # W-64
    written = (
        sse.encode_batch(
            [_DATA_1, _DATA_2], sent_records=2, sent_bytes=128, tail=(2, 1776900000040)
        )
        + sse.encode_batch([_CONTROL], sent_records=3, sent_bytes=140, tail=(3, 1776900000900))
        + sse.encode_ping(1776900006000, (3, 1776900000900))
        + sse.DONE
    )
    assert written == _STREAM


def test_a_tail_that_is_unknown_is_left_out() -> None:
    assert b"tail" not in sse.encode_batch([_DATA_1], sent_records=1, sent_bytes=1, tail=None)
    assert sse.encode_ping(5, None) == b'event: ping\ndata: {"timestamp":5}\n\n'


def test_an_error_event_is_one_json_string() -> None:
    assert sse.encode_error('no "x"\n') == b'event: error\ndata: "no \\"x\\"\\n"\n\n'


def test_what_was_encoded_is_decoded_to_the_same_records() -> None:
    batch, control, ping, done = sse.Decoder().feed(_STREAM)

    assert sse.decode_batch(batch.data) == ([_DATA_1, _DATA_2], (2, 1776900000040))
    assert sse.decode_batch(control.data) == ([_CONTROL], (3, 1776900000900))
    assert (ping.event, done.event, done.data) == ("ping", "message", sse.DONE_DATA)
    assert (batch.id, control.id) == ("1,2,128", "2,3,140")


def test_a_trim_command_is_still_a_command_after_its_lossy_trip() -> None:
    new = trim_record(7)
    sent = sse.encode_batch(
        [Record(9, 1, new.headers, new.body)], sent_records=1, sent_bytes=1, tail=None
    )
    [event] = sse.Decoder().feed(sent)
    [record], _ = sse.decode_batch(event.data)
    assert record.is_command
    assert record.seq_num == 9


def _decode(pieces: list[bytes]) -> list[sse.Event]:
    decoder = sse.Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@st.composite
def _cut(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    at = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]


_LINE = st.one_of(
    st.sampled_from(
        [
            b"",
            b"data: x",
            b"data",
            b"data:",
            b": note",
            b"id: 4",
            b"id: a\0b",
            b"event: e",
            b"zz: 1",
        ]
    ),
    st.binary(max_size=12),
    st.text(max_size=6).map(lambda text: b"data: " + text.encode("utf-8", "replace")),
)
_END = st.sampled_from([b"\n", b"\r", b"\r\n"])
_ANY_STREAM = st.lists(st.tuples(_LINE, _END), max_size=20).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_cut_of_any_bytes_gives_the_same_events(data: st.DataObject) -> None:
    stream = data.draw(st.one_of(_ANY_STREAM, st.just(_STREAM), st.binary(max_size=80)))
    whole = _decode([stream])
    assert _decode(data.draw(_cut(stream))) == whole
    assert _decode([bytes([byte]) for byte in stream]) == whole


def test_all_three_line_ends_mean_the_same() -> None:
    for end in (b"\n", b"\r", b"\r\n"):
        stream = end.join([b"event: e", b"data: 1", b"data: 2", b"id: 7", b"", b""])
        assert _decode([stream]) == [sse.Event("e", b"1\n2", "7")], end


def test_comments_unknown_fields_and_a_byte_order_mark_are_skipped() -> None:
    stream = b"\xef\xbb\xbf: hello\nretry: 5\nfoo: bar\ndata:x\n\n"
    assert _decode([stream]) == [sse.Event("message", b"x", "")]


def test_an_event_without_data_is_none_and_the_id_stays() -> None:
    stream = b"event: e\nid: 3\n\ndata: x\n\n"
    assert _decode([stream]) == [sse.Event("message", b"x", "3")]


def test_an_event_that_the_end_cuts_off_is_dropped() -> None:
    assert _decode([b"data: x\n\ndata: y\n"]) == [sse.Event("message", b"x", "")]


@pytest.mark.parametrize("piece", [b"data: 0123456789\n", b"0123456789"])
def test_an_event_that_never_ends_is_refused_before_it_fills_the_memory(piece: bytes) -> None:
    decoder = sse.Decoder(event_bytes_max=1000)

    def endless() -> None:
        for _ in range(200):
            decoder.feed(piece)

    with pytest.raises(ProtocolError, match="larger than 1000 bytes"):
        endless()


def test_small_events_never_add_up_to_the_limit() -> None:
    decoder = sse.Decoder(event_bytes_max=1000)
    assert sum(len(decoder.feed(b": comment\nfoo: bar\ndata: 1\n\n")) for _ in range(500)) == 500
    for _ in range(500):
        decoder.feed(b": a stream of comments holds nothing\n")


def test_the_largest_batch_a_server_sends_fits_the_decoder() -> None:
    assert limits.READ_BYTES_MAX * 6 < sse.EVENT_BYTES_MAX
    record = Record(0, 1, body=b"\x01" * limits.RECORD_BYTES_MAX)
    [event] = sse.Decoder().feed(
        sse.encode_batch([record], sent_records=1, sent_bytes=1, tail=None)
    )
    assert sse.decode_batch(event.data) == ([record], None)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"records":[{"seq_num":"x"}]}', b"\xff", b"{"])
def test_a_malformed_batch_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        sse.decode_batch(data)
