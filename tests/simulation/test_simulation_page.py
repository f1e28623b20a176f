"""The page of faults says what the trials found, and nothing better than that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import faults_kept
from faults_kept import Results
from faults_page import PROMISES, page
from trials import Directed, Killed, Points, Seed, citations, promises_in

GOOD = {
    "single": [Points("stop", "REFUSED", 11, ()), Points("two_at_once", "REFUSED", 2, ())],
    "seeds": [Seed(n, {"links cut": 2}, {"answered": 3}, "") for n in range(1, 5)],
    "deaths": [Killed("stop", "SERVER_BEFORE_CALL", 7, ())],
    "postgres": [Killed("follow_up", "WORKER_AFTER_MESSAGE", 3, ())],
    "processes": [Directed({"P-10": 5}, {}, 6, ())],
}
BAD = {
    "single": [Points("stop", "REFUSED", 11, ("stop, call 3: PromiseBroken: lost",))],
    "seeds": [Seed(1, {}, {"answered": 3}, "PromiseBroken: lost")],
    "deaths": [Killed("stop", "SERVER_BEFORE_CALL", 7, ("stop, 2: PromiseBroken: lost",))],
    "postgres": [Killed("stop", "BOTH_AFTER_CALL", 7, ("stop, 2: PromiseBroken: lost",))],
    "processes": [Directed({"P-3": 5}, {"P-3": 1}, 6, ("test_x",))],
}


def results(folder: Path, **stages: list[object]) -> Results:
    """What a run of these stages leaves for the page."""
    for name, rows in stages.items():
        faults_kept.keep(folder, name, rows, step=1)
    return faults_kept.load(folder)


def row(text: str, promise: str) -> str:
    """The line of a promise in the first table."""
    return next(line for line in text.splitlines() if line.startswith(f"| {promise}: "))


def test_every_stage_counts_for_the_promises_it_puts_to_the_test(tmp_path: Path) -> None:
    text = page(results(tmp_path, **GOOD))
    assert "| 13 | 4 | 7 | 3 | – | – |" in row(text, "P-2")
    assert "| 11 | 4 | 7 | – | – | – |" in row(text, "P-6")
    assert "| – | – | – | – | 5 | – |" in row(text, "P-10")
    assert "| – | 4 | 7 | 3 | – | – |" in row(text, "P-1"), "memory outlives no process"
    assert "In all 23 distinct points of failure, 4 simulated systems and 6 tests" in text
    assert "Nothing." in text
    assert "**no**" not in text


@pytest.mark.parametrize("stage", list(BAD))
def test_what_broke_in_any_stage_is_on_the_page_and_at_its_promise(
    tmp_path: Path, stage: str
) -> None:
    found = results(tmp_path, **{**GOOD, stage: BAD[stage]})
    text = page(found)
    assert len(found.broken()) == 1
    assert f"* {found.broken()[0]}" in text
    assert row(text, "P-3").endswith("| **no** |")


def test_a_stage_run_again_takes_the_place_of_its_last_run_only(tmp_path: Path) -> None:
    results(tmp_path, **{**GOOD, "deaths": BAD["deaths"]})
    again = results(tmp_path, deaths=GOOD["deaths"])
    assert not again.broken()
    assert again.single is not None


def test_what_was_never_tried_is_not_called_held(tmp_path: Path) -> None:
    text = page(results(tmp_path))
    for promise in PROMISES:
        assert row(text, promise).endswith("| – |")
    assert "None ran yet." in text


def test_the_promises_a_test_names_are_found_one_by_one_and_in_ranges() -> None:
    assert promises_in("p-3, and p-9 to p-11") == ("P-3", "P-9", "P-10", "P-11")
    assert any(named for _, named in citations())
