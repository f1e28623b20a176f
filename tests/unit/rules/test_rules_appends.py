"""What may be appended at all."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import InvalidRequest, TooLarge
from everturn.protocol.records import NewRecord, metered_bytes
from everturn.rules import limits
from everturn.rules.appends import FENCE_MAX, check_append, check_fence, check_parts


@given(
    records=st.lists(
        st.builds(
            NewRecord,
            body=st.binary(max_size=30),
            headers=st.sampled_from([(), (("a", "ü"), ("", "trim"))]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_batch_is_charged_with_the_metered_size_of_its_records(
    records: list[NewRecord],
) -> None:
    assert check_append(records, None, None) == sum(
        metered_bytes(r.headers, r.body) for r in records
    )


@pytest.mark.parametrize("body", ["text", bytearray(b"x"), memoryview(b"x"), None])
def test_a_body_that_is_not_bytes_is_refused_before_it_can_be_stored(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="record 0"):
        check_append([NewRecord(cast(bytes, body))], None, None)


def test_headers_count_towards_the_limit() -> None:
    headers = (("name", "v" * limits.RECORD_BYTES_MAX),)
    with pytest.raises(TooLarge) as refused:
        check_append([NewRecord(headers=headers)], None, None)
    assert refused.value.details["bytes"] == metered_bytes(headers, b"")
    assert refused.value.details["bytes_max"] == limits.RECORD_BYTES_MAX


@pytest.mark.parametrize("fence", [0, -1, FENCE_MAX + 1])
def test_a_fence_is_a_positive_number_that_json_can_carry(fence: int) -> None:
    with pytest.raises(InvalidRequest):
        check_fence(fence)


def test_part_ids_of_a_lease_holder_are_not_looked_at() -> None:
    record = NewRecord(part_id="p" * (limits.PART_ID_CHARS_MAX + 1))
    assert check_append([record], 1, 0) == 8


def test_questions_about_parts_are_bounded() -> None:
    check_parts(1, 0, limits.PARTS_ASKED_MAX)
    with pytest.raises(TooLarge):
        check_parts(1, 0, limits.PARTS_ASKED_MAX + 1)
    for first, count in ((-1, 1), (0, -1)):
        with pytest.raises(InvalidRequest):
            check_parts(1, first, count)
