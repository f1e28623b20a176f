"""Everything that takes bytes from outside apart, as functions of bytes.

Each raises nothing but an EverturnError, in time and memory that follow the size of its input.
Inputs that once broke one are kept in `corpus/`, and are given to all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from hypothesis import strategies as st

from everturn.chat import transcript, ui_messages
from everturn.chat.chunks import check_chunk, message_chunks
from everturn.chat.partial_json import parse_partial
from everturn.chat.reducer import MessageReducer
from everturn.chat.replay import replay_out
from everturn.chat.skills import parse_skill
from everturn.client import problems, run_shapes
from everturn.errors import EverturnError
from everturn.protocol import link, paths, s2_frames, shapes, sse, tokens
from everturn.protocol.batches import CreateBatch, parse_line
from everturn.protocol.chunks import chunk_problem
from everturn.protocol.records import (
    InputCursor,
    Record,
    control_record,
    data_body,
    input_body,
    open_envelope,
    parse_input,
    trim_target,
)
from everturn.protocol.sessions import CreateSession, UpdateSession, decode, parse_date
from everturn.protocol.waitpoints import CreateToken
from everturn.rules import durations, metadata
from everturn.server.routes import calls
from everturn.server.services import trigger_options
from everturn.server.services.tokens import is_public
from everturn.storage.sqlite import frames
from everturn.tasks import codec

KEY: Final = "tr_dev_abcdefghijklmnopqrstuvwx"
NOW_MS: Final = 1_776_900_000_000
CORPUS: Final = Path(__file__).parent / "corpus"
#: How many examples of each property; more by the environment variable, for a night's run.
EXAMPLES: Final = int(os.environ.get("EVERTURN_FUZZ_EXAMPLES", "150"))

_ROW: Final = ("status", "runTags", "payload", "output", "metadata", "error", "isTest")
_HELLO = link.Hello("worker_1", "v1", [], {}, [])


def _in_pieces(data: bytes) -> Iterator[bytes]:
    """The same bytes in pieces whose sizes the bytes themselves choose."""
    at = 0
    while at < len(data):
        size = 1 + data[at] * 7 % 61
        yield data[at : at + size]
        at += size


def events(data: bytes) -> None:
    decoder = sse.Decoder(event_bytes_max=1 << 16)
    for piece in _in_pieces(data):
        for event in decoder.feed(piece):
            with suppress(EverturnError):
                sse.decode_batch(event.data)
    sse.decode_batch(data)


def records(data: bytes) -> None:
    open_envelope(data)
    headers = (
        ("trigger-control", "turn-complete"),
        ("session-in-event-id", data.decode("latin-1")),
    )
    for record in (Record(0, 1, (), data, 0, -1), Record(0, 1, headers, b"", 0, -1)):
        parse_input(record)
        InputCursor.of(record)
        record.wire.decode("utf-8")
    trim_target((("", "trim"),), data)


def token(data: bytes) -> None:
    text = text_of(data)
    is_public(text)
    tokens.peek(text)
    tokens.grants([text, f"read:{text}"], "read", "sessions", "a")
    for candidate in (text, _signed(data)):
        with suppress(EverturnError):
            tokens.verify(candidate, KEY, now_ms=NOW_MS)
    tokens.lifetime_s(text, now_ms=NOW_MS)


def _signed(payload: bytes) -> str:
    """Any payload under our own signature, to reach what looks at it."""
    import base64
    import hashlib
    import hmac

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    text = encoded(b'{"alg":"HS256"}') + "." + encoded(payload)
    return f"{text}.{encoded(hmac.new(KEY.encode(), text.encode(), hashlib.sha256).digest())}"


def link_server(data: bytes) -> None:
    unpacker: link.Unpacker[link.WorkerFrame] = link.Unpacker(link.WorkerFrame, 1 << 20)
    for message in (data, b"\x91" + data, link.Packer.message([_slice(data)])):
        with suppress(EverturnError):
            unpacker.decode(message)


def link_worker(data: bytes) -> None:
    unpacker: link.Unpacker[link.ServerFrame] = link.Unpacker(link.ServerFrame, 1 << 20)
    for message in (data, b"\x91" + data, link.Packer.message([_slice(data)])):
        with suppress(EverturnError):
            unpacker.decode(message)


def _slice(data: bytes) -> bytes:
    return msgspec.msgpack.encode(link.Slice(1, True, data))


def messages(data: bytes) -> None:
    value = json_of(data)
    whole = ui_messages.repair(value if isinstance(value, list) else [value])
    assert ui_messages.repair(whole) == whole
    for message in whole:
        ui_messages.text_of(message)
        ui_messages.awaits_model(message)
        ui_messages.tool_call_ids(message)
        list(message_chunks(message))
    ui_messages.merge_by_id(whole, whole)


def chunks(data: bytes) -> None:
    value = json_of(data)
    reducer = MessageReducer()
    log = [Record(0, 1, (), data_body(b'{"type":"start","messageId":"m"}', "1-0"), 0, -1)]
    for chunk in value if isinstance(value, list) else [value]:
        chunk_problem(chunk)
        log.append(Record(len(log), 1, (), data_body(msgspec.json.encode(chunk), "g"), 0, -1))
        if isinstance(chunk, dict):
            with suppress(EverturnError):
                check_chunk(chunk)
            with suppress(EverturnError):
                reducer.feed(chunk)
    done = control_record("turn-complete")
    log.append(Record(len(log), 1, done.headers, done.body, 0, -1))
    replay_out(log, [])
    replay_out([Record(0, 1, (), data, 0, -1), *log[1:]], [])
    parse_input(Record(0, 1, (), input_body(data.decode("utf-8", "replace"), "p"), 0, -1))


def snapshots(data: bytes) -> None:
    found = transcript.decode(data)
    if found is not None:
        ui_messages.repair(found.messages)
        written = codec.encode(transcript.document_of(found))
        assert transcript.decode(written) == found._replace(stored=len(found.messages))


def times(data: bytes) -> None:
    text = text_of(data)
    for read in (durations.parse, durations.idempotency_ttl):
        with suppress(EverturnError):
            read(text)
    with suppress(EverturnError):
        tokens.lifetime_s(text)
    value = json_of(data)
    if isinstance(value, (str, int, float)):
        with suppress(EverturnError):
            durations.parse(value)
        with suppress(EverturnError):
            parse_date(value, "at")


def s2(data: bytes) -> None:
    reader = s2_frames.FrameReader(1 << 20)
    for piece in _in_pieces(data):
        reader.feed(piece)
        for frame in reader.frames():
            with suppress(EverturnError):
                s2_frames.decode_input(frame.body)


def s2_bodies(data: bytes) -> None:
    for read in (
        s2_frames.decode_input,
        s2_frames.decode_ack,
        s2_frames.decode_input_json,
        s2_frames.decode_frames,
        s2_frames.split_last_frame,
    ):
        with suppress(EverturnError):
            read(data)


def bodies(data: bytes) -> None:
    for kind in (CreateSession, UpdateSession, CreateBatch, CreateToken, metadata.MetadataChange):
        with suppress(EverturnError):
            decode(data, kind)
    with suppress(EverturnError):
        parse_line(data, 10)
    with suppress(EverturnError):
        change = decode(data, metadata.MetadataChange)
        metadata.change(change.operations or [])(b'{"a":[1],"b":{"c":2}}')


def stored(data: bytes) -> None:
    """Rows whose checksum is right and whose content is not what we write."""
    for read in (frames.decode_log_row, frames.decode_segment):
        with suppress(EverturnError):
            read(data, frames.checksum(data), "here")
        with suppress(EverturnError):
            read(data, 0, "here")


def packets(data: bytes) -> None:
    """Payloads and outputs, as whoever triggers a run wrote them; and what answers them."""
    for kind in (codec.JSON, codec.SUPER_JSON, codec.TEXT, "", "application/store"):
        with suppress(EverturnError):
            codec.decode_packet(data, kind)
    whole = msgspec.json.encode({"json": json_of(data), "meta": {"values": json_of(data)}})
    with suppress(EverturnError):
        codec.decode_packet(whole, codec.SUPER_JSON)
    for kind_name in ("Date", "bigint", "set", "map", "number", "undefined"):
        packet = {"json": {"a": json_of(data)}, "meta": {"values": {"a": [kind_name]}}}
        with suppress(EverturnError):
            codec.decode_packet(msgspec.json.encode(packet), codec.SUPER_JSON)


def triggers(data: bytes) -> None:
    value = json_of(data)
    text = {"payload": data.decode("utf-8", "replace")}
    for body in (value, text, {"payload": value, "options": value}, {"options": {"delay": value}}):
        if not isinstance(body, dict):
            continue
        with suppress(EverturnError):
            parsed = trigger_options.parse_body(body)
            trigger_options.payload_of(parsed)
            trigger_options.metadata_of(parsed.options)
    for moment in (value, text_of(data)):
        if isinstance(moment, str | int | float):
            with suppress(EverturnError):
                trigger_options.moment_of(moment, NOW_MS, "delay")


def queries(data: bytes) -> None:
    """What a list, a page and a subscription may be asked for, and a segment of a path."""
    text = text_of(data)
    for name in ("page[size]", "page[after]", "filter[createdAt][from]", "filter[status]"):
        with suppress(EverturnError):
            calls.page_query({name: text}, 20)
        with suppress(EverturnError):
            calls.check_filters({name: text, text: name}, (name,))
        calls.listed({name: text}, name)
    for name in ("from", "to", "period"):
        with suppress(EverturnError):
            calls.created_range({f"filter[createdAt][{name}]": text}, NOW_MS)
    with suppress(EverturnError):
        offset = shapes.parse_offset(text)
        assert offset is None or shapes.parse_offset(str(offset)) == offset
    with suppress(EverturnError):
        segment = calls.decode_segment(data)
        assert calls.decode_segment(paths.encode_segment(segment)) == segment


def answers(data: bytes) -> None:
    """What a client is answered: errors, and the rows of a subscription."""
    for status in (200, 400, 404, 409, 422, 500):
        problems.error_for(status, data, subject="session", headers={"x": "y"})
    with suppress(EverturnError):
        for _, row in run_shapes.changes_of(data):
            run_shapes.body_of(row)
    value = json_of(data)
    row = value if isinstance(value, dict) else dict.fromkeys(_ROW, data.decode("utf-8", "replace"))
    with suppress(EverturnError):
        ((_, told),) = run_shapes.changes_of(
            msgspec.json.encode([{"key": "k", "value": {**row, "friendlyId": "run_x"}}])
        )
        run_shapes.body_of(told)


def arguments(data: bytes) -> None:
    """A tool's input as a model writes it, cut off anywhere; and a skill from a folder."""
    text = data.decode("utf-8", "replace")[:100_000]
    for end in {len(text) // 2, len(text)}:
        parse_partial(text[:end])
    with suppress(EverturnError):
        parse_skill(text, "here")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (
        events,
        records,
        token,
        link_server,
        link_worker,
        messages,
        chunks,
        snapshots,
        times,
        s2,
        s2_bodies,
        bodies,
        stored,
        packets,
        triggers,
        queries,
        answers,
        arguments,
    )
}


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape") if len(data) % 2 else data.decode("latin-1")


def json_of(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# --- where inputs come from ------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """The kept corpus: one input a file."""
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


_WORDS = (
    *("type", "id", "role", "parts", "text", "data", "start", "finish", "delta", "messageId"),
    *("tool-x", "dynamic-tool", "toolCallId", "state", "input", "output", "user", "assistant"),
    *("text-start", "text-delta", "text-end", "reasoning-delta", "tool-input-available", "error"),
    *("tool-output-available", "data-restarted", "version", "messages", "records", "headers"),
    *("input-streaming", "output-available", "streaming", "done", "message", "kind", "payload"),
    *("tool-input-delta", "inputTextDelta", "toolName", "tool-input-start", "approval"),
)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(_WORDS)
)
json_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=25,
)


def _mutated(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, new in edits:
        place = at % (len(seed) + 1)
        seed = seed[:place] + new + seed[place + cut :]
    return seed


_edit = st.tuples(st.integers(0, 4000), st.integers(0, 12), st.binary(max_size=12))
inputs = (
    st.binary(max_size=400)
    | st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | json_values.map(msgspec.json.encode)
    | json_values.map(msgspec.msgpack.encode)
    | st.builds(
        _mutated, st.deferred(lambda: st.sampled_from(_small())), st.lists(_edit, max_size=4)
    )
)


def _small() -> list[bytes]:
    return [seed for seed in seeds() if len(seed) < 4000]
