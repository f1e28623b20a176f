"""JSON that is still being written is read as far as it goes (R-150)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.chat.partial_json import parse_partial


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{", {}),
        ('{"a', {}),
        ('{"a":', {}),
        ('{"a": "b', {"a": "b"}),
        ('{"a": "b\\', {"a": "b"}),
        ('{"a": "b\\u00', {"a": "b"}),
        ('{"a": "\\ud83d', {"a": ""}),
        ('{"a": "\\ud83d\\ude00', {"a": "😀"}),
        ('{"a": 1', {"a": 1}),
        ('{"a": 1.', {"a": 1}),
        ('{"a": -', {}),
        ('{"a": 1e', {"a": 1}),
        ('{"a": tr', {"a": True}),
        ('{"a": n', {"a": None}),
        ('{"a": 1, ', {"a": 1}),
        ('{"a": [1, {"b": [', {"a": [1, {"b": []}]}),
        ("[1, 2", [1, 2]),
        ('"text', "text"),
        ("  12", 12),
        ("null", None),
    ],
)
def test_a_beginning_is_read_as_far_as_it_goes(text: str, value: Any) -> None:
    """R-150."""
    assert parse_partial(text) == (value, True)


@pytest.mark.parametrize("text", ["", "  ", "-", "x", "{]", '{"a" 1', "[1 2", "tru e", "]"])
def test_what_is_no_beginning_of_json_is_not_read(text: str) -> None:
    assert parse_partial(text) == (None, False)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(value=VALUES, ascii_only=st.booleans(), data=st.data())
def test_every_beginning_of_an_object_is_read_and_can_be_written_again(
    value: Any, ascii_only: bool, data: st.DataObject
) -> None:
    """R-150."""
    text = json.dumps({"key": value}, ensure_ascii=ascii_only)
    cut = data.draw(st.integers(1, len(text)))
    read, readable = parse_partial(text[:cut])

    assert readable
    assert isinstance(read, dict)
    msgspec.json.encode(read)
    if cut == len(text):
        assert read == {"key": value}


def test_a_deep_text_is_given_up_and_not_followed_for_ever() -> None:
    assert parse_partial("[" * 100_000) == (None, False)
