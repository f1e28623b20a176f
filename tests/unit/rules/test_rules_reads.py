"""How much a reader gets at once, and where a follower starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import InvalidRequest
from everturn.protocol.records import Record, metered_bytes
from everturn.rules.reads import Page, bounded, clamp_cursor

RECORDS = st.lists(
    st.builds(
        lambda body, headers: Record(0, 0, headers, body),
        st.binary(max_size=50),
        st.sampled_from([(), (("name", "välue"),)]),
    ),
    max_size=10,
)


def size(records: list[Record]) -> int:
    return sum(metered_bytes(r.headers, r.body) for r in records)


@given(records=RECORDS, records_max=st.integers(1, 12), bytes_max=st.integers(0, 300))
def test_a_page_is_the_longest_beginning_within_both_bounds_but_at_least_one_record(
    records: list[Record], records_max: int, bytes_max: int
) -> None:
    taken = bounded(records, records_max, bytes_max)

    assert taken == records[: len(taken)]
    assert len(taken) <= records_max
    assert size(taken) <= bytes_max or len(taken) == 1
    assert bool(taken) == bool(records)
    if len(taken) < min(len(records), records_max):
        assert size(records[: len(taken) + 1]) > bytes_max


@given(records=RECORDS, records_max=st.integers(1, 12), cut=st.integers(0, 10))
def test_filling_a_page_in_two_steps_is_filling_it_in_one(
    records: list[Record], records_max: int, cut: int
) -> None:
    page = Page(records_max, 150)
    page.take(records[:cut])
    if not page.full:
        page.take(records[cut:])
    assert page.records == bounded(records, records_max, 150)


def test_a_page_of_no_records_makes_no_sense() -> None:
    with pytest.raises(InvalidRequest):
        bounded([], 0, 1)


@given(after=st.none() | st.integers(-3, 30), first=st.integers(0, 10), more=st.integers(0, 10))
def test_a_follower_starts_inside_what_is_visible(after: int | None, first: int, more: int) -> None:
    cursor = clamp_cursor(after, first, first + more)
    if after is None:
        assert cursor is None
    else:
        start = 0 if cursor is None else cursor + 1
        assert first <= start <= first + more
        assert start == min(max(after + 1, first), first + more)
