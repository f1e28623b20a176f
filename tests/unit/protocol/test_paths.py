"""Paths: one segment per id, whatever the id holds."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.protocol import paths


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("chat/1", "chat%2F1"),
        ("a:b", "a%3Ab"),
        ("AZaz09-_.!~*'()", "AZaz09-_.!~*'()"),
        ("ä %?#&+", "%C3%A4%20%25%3F%23%26%2B"),
        ("..", "%2E%2E"),
    ],
)
def test_segments_are_encoded_as_the_browser_encodes_them(value: str, encoded: str) -> None:
    assert paths.encode_segment(value) == encoded


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_an_id_survives_its_trip_as_one_segment(value: str) -> None:
    path = paths.fill(paths.CHANNEL_APPEND, session=value, io="in")
    segments = path.split("/")
    assert len(segments) == 7
    assert unquote(segments[4]) == value


def test_every_template_is_absolute_and_its_placeholders_are_whole_segments() -> None:
    templates = [
        value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str)
    ]
    assert len(templates) >= 15
    for template in templates:
        assert template.startswith("/")
        for segment in template.split("/"):
            assert "{" not in segment or (segment.startswith("{") and segment.endswith("}"))
