"""Rows of subscriptions: what the server writes, the client reads back (wire-protocol §12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.client.run_shapes import _array
from everturn.errors import InvalidRequest
from everturn.protocol import shapes


@given(st.lists(st.text()))
def test_arrays_of_texts_come_back_as_they_were(values: list[str]) -> None:
    assert _array(shapes.text_array(values)) == values


@given(st.integers(0, 2**45), st.integers(0, 2**32 - 1))
def test_offsets_come_back_as_they_were(at_ms: int, mark: int) -> None:
    offset = shapes.Offset(at_ms, mark)

    assert shapes.parse_offset(str(offset)) == offset


@pytest.mark.parametrize("text", ["", "1", "1_", "_1", "a_b", "1_2_3", "-1_0", "1" * 60 + "_1"])
def test_what_is_no_offset_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        shapes.parse_offset(text)


def test_the_beginning_is_no_offset_at_all() -> None:
    assert shapes.parse_offset("-1") is None


def test_a_mark_tells_states_apart_and_not_the_order_of_rows() -> None:
    one, two = {"id": "1", "status": "PENDING"}, {"id": "2", "status": "PENDING"}

    assert shapes.mark_of([one, two]) == shapes.mark_of([two, one])
    assert shapes.mark_of([one, two]) != shapes.mark_of([one])
    assert shapes.mark_of([one]) != shapes.mark_of([one | {"status": "EXECUTING"}])
