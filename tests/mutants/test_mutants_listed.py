"""The list of mutants is one that can be run. `make mutants` runs it; this takes a second."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from listing import table, tried  # noqa: E402  (lies beside this file)
from mutant import Mutant  # noqa: E402
from mutants import MUTANTS  # noqa: E402
from run import _failed  # noqa: E402

PROMISES = [f"P-{n}" for n in range(1, 13)]


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_is_broken_in_more_than_one_way(promise: str) -> None:
    assert sum(mutant.promise == promise for mutant in MUTANTS) > 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_where_it_says_and_is_code(mutant: Mutant) -> None:
    """Whoever moves the code moves the mutant too: `tests/mutants` has the text to change."""
    before = (ROOT / mutant.file).read_text()
    assert before.count(mutant.text) == 1, "the text stands there once, word for word"
    assert mutant.text != mutant.replacement
    ast.parse(before.replace(mutant.text, mutant.replacement))
    assert mutant.promise in PROMISES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_of_a_mutant_exist(mutant: Mutant) -> None:
    files = [name for name in mutant.tests if name.startswith("tests/")]
    assert files
    for name in files:
        assert (ROOT / name).exists(), name


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_what_caught_a_mutant_is_read_off_the_output_of_pytest() -> None:
    output = """\
collecting ... collected 4 items
tests/unit/test_a.py::test_one PASSED                                    [ 25%]
tests/unit/test_a.py::test_two[a b - c] PASSED                           [ 50%]
tests/unit/test_a.py::TestX::test_three[x FAILED y] FAILED               [ 75%]
tests/unit/test_a.py::test_hangs
=========================== short test summary info ============================
FAILED tests/unit/test_a.py::TestX::test_three[x FAILED y] - assert False
"""
    assert _failed(output) == (
        "tests/unit/test_a.py::TestX::test_three[x FAILED y]",
        "tests/unit/test_a.py::test_hangs",
    )


def test_the_list_of_the_last_run_is_a_table_of_three_columns() -> None:
    lines = list(table())
    assert len(lines) == 2 + len(tried())
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 4, line
