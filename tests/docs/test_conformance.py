"""The conformance page says what the tests say, and no promise of it is empty."""

from __future__ import annotations

import conformance
from clauses import CLAUSES, DECIDED, NOT_BUILT


def test_there_is_one_row_for_each_clause() -> None:
    assert list(CLAUSES) == list(range(1, 264))
    assert {*DECIDED, *NOT_BUILT} <= set(CLAUSES)


def test_every_clause_has_a_test_or_a_reason() -> None:
    empty = {number for number, tests in conformance.checked().items() if not tests}
    assert empty == set(NOT_BUILT), sorted(empty ^ set(NOT_BUILT))


def test_the_index_counts_every_clause_once_and_leads_to_each_chapter() -> None:
    covered = [number for _, numbers in conformance.chapters() for number in numbers]
    assert covered == list(CLAUSES)
    page = conformance.page()
    for title, _ in conformance.chapters():
        assert f"[{title}](#{conformance.anchor(title)})" in page
        assert f"\n## {title}\n" in page
    assert f"| all | R-001 to R-263 | {len(CLAUSES)} | {len(DECIDED)} |" in page


def test_the_page_is_up_to_date() -> None:
    """To mend: `make conformance`."""
    assert conformance.PAGE.read_text() == conformance.page()


def test_ranges_and_names_count_for_every_number() -> None:
    assert list(conformance.clauses_in("R-154 to R-156, R-009")) == [154, 155, 156, 9]
    assert conformance.sentence("TestStop::test_r194_the_answer") == "the answer"
