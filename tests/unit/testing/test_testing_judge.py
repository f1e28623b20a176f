"""The judge of recorded histories finds what it is there to find."""

from __future__ import annotations

import pytest

from everturn.protocol.records import Record, data_body, input_body, trim_record
from everturn.testing.checker import (
    Acknowledged,
    PromiseBroken,
    check_acknowledged,
    check_history,
    check_reader,
)


def data(seq_num: int, part_id: str = "") -> Record:
    return Record(seq_num, 1, (), data_body(b'{"type":"start"}', part_id or f"1-{seq_num}"))


def trim(seq_num: int, to: int) -> Record:
    new = trim_record(to)
    return Record(seq_num, 1, new.headers, new.body)


LOG = [data(0), data(1), data(2), trim(3, 2), data(4)]


def told(seq_num: int, text: str = "hi") -> Acknowledged:
    return Acknowledged("chat", "in", "p", seq_num, text)


def test_a_reader_that_saw_everything_in_order_is_content() -> None:
    check_reader(LOG, LOG)


def test_a_reader_may_miss_what_was_trimmed_while_it_was_away() -> None:
    check_reader([data(0), *LOG[2:]], LOG)


@pytest.mark.parametrize(
    "seen",
    [
        [LOG[0], LOG[2], LOG[1], LOG[3], LOG[4]],
        [LOG[0], LOG[0], *LOG[1:]],
        [LOG[0], LOG[1], LOG[2], LOG[4]],
        LOG[:4],
        [],
        [LOG[0], data(1, "another"), *LOG[2:]],
    ],
    ids=["out of order", "twice", "a gap", "the end missing", "nothing", "something else"],
)
def test_p2_a_reader_that_saw_anything_else_is_a_broken_promise(seen: list[Record]) -> None:
    with pytest.raises(PromiseBroken, match="P-2"):
        check_reader(seen, LOG)


def test_p1_an_acknowledged_append_that_is_not_where_it_should_be_is_a_broken_promise() -> None:
    stored = [Record(0, 1, (), input_body("hi", "p"))]
    check_acknowledged(stored, [told(0)])
    for missing in (told(1), told(0, "ho")):
        with pytest.raises(PromiseBroken, match="P-1"):
            check_acknowledged(stored, [missing])


def test_p4_parts_of_an_older_fence_behind_a_newer_one_are_a_broken_promise() -> None:
    with pytest.raises(PromiseBroken, match="P-4"):
        check_history([], [data(0, "2-0"), data(1, "1-1")], settled=False)
