"""One bound on how deep JSON nests, found without going deep."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.chat.chunks import check_chunk
from everturn.errors import InvalidRequest, UIMessageStreamError
from everturn.protocol.nesting import DEPTH_MAX, too_deep
from everturn.protocol.records import Record, input_body, parse_input
from everturn.tasks import codec

json_values = st.recursive(
    st.none() | st.integers(0, 9) | st.text('[]{}"\\,: a', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[}"a'), inner, max_size=3),
    max_leaves=30,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@settings(max_examples=400, derandomize=True)
@given(json_values, st.integers(0, 6))
def test_the_bound_is_the_depth_a_parser_finds_whatever_its_texts_hold(
    value: object, most: int
) -> None:
    text = msgspec.json.encode(value)
    assert too_deep(text, most) is (depth_of(value) > most)
    assert too_deep(text.decode(), most) is (depth_of(value) > most)


@pytest.mark.parametrize("pair", [b"[]", b"{}"], ids=["lists", "objects"])
@pytest.mark.parametrize("around", [0, 1, 200])
def test_the_limit_itself_is_allowed_and_one_more_is_not(pair: bytes, around: int) -> None:
    opened = b"[" if pair == b"[]" else b'{"a":'
    most = opened * DEPTH_MAX + b"1" + pair[1:] * DEPTH_MAX
    beside = b",".join([most] * (around + 1))
    assert not too_deep(beside)
    assert too_deep(b"[" + beside + b"]")


def test_texts_that_close_brackets_of_others_hide_no_depth() -> None:
    hidden = b'["]",' * 500 + b"1" + b',"["]' * 500
    assert msgspec.json.decode(hidden[: 5 * 3] + b"1" + b"]" * 3)
    assert too_deep(hidden)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b"[[]," * 250_000,
        b'["[",' * 200_000,
        b'["' + b'\\"[' * 300_000,
        b'"' * 1_000_000 + b"[" * 200,
        (b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b",") * 4000,
    ],
    ids=["deep", "pairs", "texts", "escapes", "quotes", "peaks"],
)
def test_a_mebibyte_of_anything_is_looked_at_in_linear_time(text: bytes) -> None:
    began = time.thread_time()
    too_deep(text)
    whole = time.thread_time() - began
    assert whole < 2.0


def nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_what_an_author_returns_is_held_to_the_bound_and_the_error_says_so() -> None:
    """Outputs, payloads, results of steps: a reader further on could not decode them."""
    assert codec.decode(codec.encode(nested(DEPTH_MAX))) == nested(DEPTH_MAX)
    with pytest.raises(InvalidRequest, match="at most 128 deep"):
        codec.encode(nested(DEPTH_MAX + 1))


def test_a_chunk_is_held_to_the_bound_before_it_becomes_part_of_a_history() -> None:
    """P-8: a history with it in would be stored and could not be read again."""

    def chunk(depth: int) -> dict[str, object]:
        return {"type": "data-x", "data": nested(depth)}

    assert check_chunk(chunk(DEPTH_MAX - 1))
    with pytest.raises(UIMessageStreamError, match="at most 128 deep"):
        check_chunk(chunk(DEPTH_MAX))


def test_a_message_past_the_bound_is_no_message_whichever_stack_it_is_read_on() -> None:
    def kind(depth: int) -> str:
        payload = {"kind": "message", "payload": {"metadata": nested(depth)}}
        text = msgspec.json.encode(payload).decode()
        return parse_input(Record(0, 1, (), input_body(text, "p"), 0, -1)).kind

    assert kind(DEPTH_MAX - 2) == "message"
    assert kind(DEPTH_MAX - 1) == ""
