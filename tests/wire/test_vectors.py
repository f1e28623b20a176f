"""The vectors of `tests/wire/vectors`, run against this implementation.

They are data, so that another implementation can be held to the same bytes; here nothing is
expected that a file does not say. What each file holds stands at its top.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from everturn import errors
from everturn.ids import internal_id
from everturn.protocol import link, paths, problems, records, s2_frames, sse, tokens
from everturn.protocol.waitpoints import callback_hash
from everturn.rules import limits
from everturn.tasks import idempotency

FOLDER: Final = Path(__file__).parent / "vectors"
PROTOCOL: Final = (Path(__file__).parents[2] / "PROTOCOL.md").read_text()


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


SSE = load("sse")
TOKENS = load("tokens")
SCOPES = load("scopes")
RECORDS = load("records")
HASHES = load("hashes")
WRITES = load("direct_writes")
ERRORS = load("errors")
LINK = load("link")


def each(cases: list[dict[str, Any]]) -> Any:
    """A test per case, named as the case is."""
    names = [str(case.get("name", sorted(case.items(), key=str))) for case in cases]
    return pytest.mark.parametrize("case", cases, ids=names)


def body_of(case: dict[str, Any]) -> bytes:
    if "body_hex" in case:
        return bytes.fromhex(case["body_hex"])
    return str(case.get("body", "")).encode()


def headers_of(case: dict[str, Any]) -> records.Headers:
    return tuple((name, value) for name, value in case.get("headers", []))


def test_every_file_of_the_folder_is_run_here() -> None:
    loaded = {"sse", "tokens", "scopes", "records", "hashes", "direct_writes", "errors", "link"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == loaded


# --- server-sent events --------------------------------------------------------------------------


@each(SSE["encode"])
def test_records_are_encoded_to_these_bytes(case: dict[str, Any]) -> None:
    batch = [
        records.Record(r["seq_num"], r["timestamp_ms"], headers_of(r), body_of(r))
        for r in case["records"]
    ]
    tail = None if case["tail"] is None else tuple(case["tail"])
    sent_records, sent_bytes = case["sent"]
    encoded = sse.encode_batch(batch, sent_records=sent_records, sent_bytes=sent_bytes, tail=tail)
    assert encoded.decode() == case["text"]


@each(SSE["ping"])
def test_pings_are_encoded_to_these_bytes(case: dict[str, Any]) -> None:
    tail = None if case["tail"] is None else tuple(case["tail"])
    assert sse.encode_ping(case["timestamp_ms"], tail).decode() == case["text"]


def test_the_end_is_these_bytes() -> None:
    assert SSE["done"].encode() == sse.DONE


@each(SSE["decode"])
def test_bytes_are_decoded_to_these_events_whatever_the_cuts(case: dict[str, Any]) -> None:
    data = case["text"].encode()
    for size in (1, 2, 3, 5, len(data)):
        decoder = sse.Decoder()
        found = [
            event
            for at in range(0, len(data), size)
            for event in decoder.feed(data[at : at + size])
        ]
        shown = [{"event": e.event, "data": e.data.decode(), "id": e.id} for e in found]
        assert shown == case["events"], size


# --- tokens and scopes ---------------------------------------------------------------------------


def encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@each(TOKENS["sign"])
def test_claims_are_signed_to_this_token(case: dict[str, Any]) -> None:
    claims = msgspec.convert(case["claims"], tokens.Claims)
    assert tokens.sign(claims, TOKENS["key"], now_ms=0) == case["token"]
    assert encoded(case["payload"].encode()) == case["token"].split(".")[1]


@each(TOKENS["verify"]["cases"])
def test_a_token_is_valid_or_not(case: dict[str, Any]) -> None:
    token = case.get("token")
    if token is None:
        header = json.dumps(case.get("header", {"alg": "HS256"})).encode()
        signed = f"{encoded(header)}.{encoded(json.dumps(case['payload']).encode())}"
        key = case.get("signing_key", TOKENS["key"])
        token = f"{signed}.{encoded(hmac.digest(key.encode(), signed.encode(), 'sha256'))}"
    now_ms = TOKENS["verify"]["now"] * 1000
    if case["valid"]:
        claims = tokens.verify(token, TOKENS["key"], now_ms=now_ms)
        assert claims.sub == case["payload"]["sub"]
    else:
        with pytest.raises(errors.NotAuthenticated):
            tokens.verify(token, TOKENS["key"], now_ms=now_ms)


@each(TOKENS["lifetimes"])
def test_an_expiration_is_this_far_ahead(case: dict[str, Any]) -> None:
    now_ms = TOKENS["verify"]["now"] * 1000
    if case.get("error"):
        with pytest.raises(errors.InvalidRequest):
            tokens.lifetime_s(case["expiration"], now_ms=now_ms)
    else:
        assert tokens.lifetime_s(case["expiration"], now_ms=now_ms) == case["seconds"]


@each(SCOPES["cases"])
def test_a_scope_opens_this_or_not(case: dict[str, Any]) -> None:
    opened = tokens.grants([case["scope"]], case["action"], case["type"], case["id"])
    assert opened is case["opens"]


# --- records -------------------------------------------------------------------------------------


@each(RECORDS["metered"])
def test_a_record_is_charged_this_much(case: dict[str, Any]) -> None:
    assert records.metered_bytes(headers_of(case), body_of(case)) == case["bytes"]


@each(RECORDS["envelopes"])
def test_a_posted_text_is_stored_as_this(case: dict[str, Any]) -> None:
    assert records.input_body(case["text"], case["part_id"]) == case["body"].encode()


@each(RECORDS["trims"])
def test_a_trim_is_this_record(case: dict[str, Any]) -> None:
    made = records.trim_record(case["before"])
    assert made.body == bytes.fromhex(case["body_hex"])
    assert records.trim_target(made.headers, made.body) == case["before"]


@each(RECORDS["cursors"])
def test_a_turn_complete_says_this_is_decided(case: dict[str, Any]) -> None:
    cursor = records.InputCursor.of(records.Record(0, 0, headers_of(case)))
    assert (cursor.seq_num, sorted(cursor.decided)) == (case["seq_num"], case["decided"])
    assert (records.Record(0, 0, headers_of(case)).headers[1:]) == cursor.headers()


@each(RECORDS["inputs"])
def test_an_input_says_this(case: dict[str, Any]) -> None:
    found = records.parse_input(records.Record(0, 0, (), body_of(case)))
    assert (found.kind, found.trigger) == (case["kind"], case["trigger"])
    assert found.needs_answer is case["needs_answer"]


# --- hashes and ids ------------------------------------------------------------------------------


@each(HASHES["idempotency"])
def test_a_key_is_this_digest(case: dict[str, Any]) -> None:
    assert str(idempotency.create(case["parts"], scope="global")) == case["digest"]


@each(HASHES["callbacks"])
def test_a_callback_url_ends_in_this_digest(case: dict[str, Any]) -> None:
    assert callback_hash(case["key"], case["id"]) == case["digest"]


@each(HASHES["ids"])
def test_an_id_has_this_body(case: dict[str, Any]) -> None:
    assert internal_id(case["id"]) == case["body"]


@each(HASHES["segments"])
def test_an_id_is_this_segment_of_a_path(case: dict[str, Any]) -> None:
    assert paths.encode_segment(case["id"]) == case["segment"]


# --- direct writes -------------------------------------------------------------------------------


@each(WRITES["inputs"])
def test_an_append_is_these_bytes(case: dict[str, Any]) -> None:
    asked = s2_frames.AppendInput(
        tuple(s2_frames.InputRecord(body_of(r), headers_of(r)) for r in case["records"])
    )
    assert s2_frames.encode_input(asked) == bytes.fromhex(case["hex"])
    assert s2_frames.decode_input(bytes.fromhex(case["hex"])) == asked


@each(WRITES["frames"])
def test_a_message_has_this_frame(case: dict[str, Any]) -> None:
    body, frame = bytes.fromhex(case["body_hex"]), bytes.fromhex(case["hex"])
    assert s2_frames.encode_frame(body) == frame
    assert [found.body for found in s2_frames.decode_frames(frame)] == [body]


@each(WRITES["acks"])
def test_an_ack_is_these_bytes(case: dict[str, Any]) -> None:
    places = (s2_frames.Position(*case[name]) for name in ("start", "end", "tail"))
    ack = s2_frames.AppendAck(*places)
    assert s2_frames.encode_ack(ack) == bytes.fromhex(case["hex"])
    assert s2_frames.decode_ack(bytes.fromhex(case["hex"])) == ack
    assert s2_frames.encode_ack_json(ack).decode() == case["json"]


@each(WRITES["refused"])
def test_bytes_that_are_no_append_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidRequest):
        s2_frames.decode_input(bytes.fromhex(case["hex"]))


# --- errors --------------------------------------------------------------------------------------


def kinds(of: type[errors.EverturnError] = errors.EverturnError) -> dict[str, type]:
    """Code -> exception."""
    found = {of.code: of}
    for kind in of.__subclasses__():
        found = kinds(kind) | found
    return found


@each(ERRORS["cases"])
def test_a_refusal_is_this_answer(case: dict[str, Any]) -> None:
    kind: Any = RuntimeError if case["error"] == "internal" else kinds()[case["error"]]
    error = kind(case["message"], **case.get("details", {}))
    answer = problems.problem(error, problems.Shape(case["shape"]))
    shown = {name.decode(): value.decode() for name, value in answer.headers}
    usual = "text/plain; charset=utf-8" if case["shape"] == "text" else "application/json"
    assert shown.pop("content-type") == case.get("content_type", usual)
    assert (answer.status, answer.body.decode()) == (case["status"], case["body"])
    assert shown == case["headers"]


def test_every_code_of_the_protocols_table_has_a_refusal() -> None:
    rows = [line.split("|") for line in PROTOCOL.splitlines() if line.startswith("| `")]
    codes = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row[2])} - {"allow"}
    assert codes <= {case["error"] for case in ERRORS["cases"]}
    assert len(codes) > 12


# --- the link ------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A frame as the vectors write it."""
    if isinstance(value, bytes):
        return {"hex": value.hex(" ")}
    if isinstance(value, list):
        return [plain(member) for member in value]
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items()}
    return value


def unpacker(side: str) -> link.Unpacker[Any]:
    frames = link.WorkerFrame if side == "worker" else link.ServerFrame
    return link.Unpacker(frames, limits.LINK_FRAME_BYTES_MAX)


@pytest.mark.parametrize("side", ["worker", "server"])
def test_frames_are_these_bytes(side: str) -> None:
    for case in LINK[side]:
        data = bytes.fromhex(case["hex"])
        assert plain(msgspec.msgpack.decode(data)) == case["frame"], case["name"]
        (frame,) = unpacker(side).decode(link.Packer.message([data]))
        assert link.Packer(limits.LINK_SLICE_BYTES_MAX).encode(frame) == [data], case["name"]


def test_every_frame_has_a_vector() -> None:
    for side, frames in (("worker", link.WorkerFrame), ("server", link.ServerFrame)):
        names = {kind.__struct_config__.tag for kind in frames.__args__}
        shown = {case["frame"][0] for case in LINK[side]}
        # Slices have cases of their own.
        assert names - shown == {"slice"}


@each(LINK["messages"])
def test_a_message_is_an_array_of_frames(case: dict[str, Any]) -> None:
    items = [msgspec.msgpack.encode(frame) for frame in case["frames"]]
    assert link.Packer.message(items) == bytes.fromhex(case["hex"])


@each(LINK["slices"])
def test_a_large_frame_travels_in_these_slices(case: dict[str, Any]) -> None:
    frame = msgspec.convert(case["frame"], link.ServerFrame)
    cut = link.Packer(case["bytes_max"]).encode(frame)
    assert [plain(msgspec.msgpack.decode(piece)) for piece in cut] == case["frames"]
    assert unpacker("server").decode(link.Packer.message(cut)) == [frame]


@each(LINK["malformed"])
@pytest.mark.parametrize("side", ["worker", "server"])
def test_a_malformed_message_is_refused(case: dict[str, Any], side: str) -> None:
    with pytest.raises(errors.ProtocolError):
        unpacker(side).decode(bytes.fromhex(case["hex"]))
