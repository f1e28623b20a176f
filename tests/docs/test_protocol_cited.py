"""PROTOCOL.md and the tests belong together: every clause is checked, every citation exists.

A test cites a clause by its number in a docstring, in a comment, or as data of a vector. Numbers
are for good: a clause that goes leaves its number behind, and no other clause gets it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parent.parent.parent
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()
CLAUSES: Final = re.findall(r"^- \*\*([WL]-\d+)\*\*", PROTOCOL, re.MULTILINE)
_CITATION: Final = re.compile(r"\b[WL]-[1-9][0-9]*\b")


def citations() -> dict[str, list[str]]:
    """Clause -> the files that cite it."""
    found: dict[str, list[str]] = {}
    tests = ROOT / "tests"
    for path in sorted([*tests.rglob("*.py"), *(tests / "wire" / "vectors").glob("*.yaml")]):
        if path == Path(__file__):
            continue
        for number in set(_CITATION.findall(path.read_text())):
            found.setdefault(number, []).append(str(path.relative_to(ROOT)))
    return found


def test_every_clause_is_cited_by_a_test() -> None:
    cited = citations()
    assert [number for number in CLAUSES if number not in cited] == []


def test_every_citation_names_a_clause() -> None:
    strangers = {number: files for number, files in citations().items() if number not in CLAUSES}
    assert strangers == {}


def test_the_protocol_refers_to_clauses_that_exist() -> None:
    assert set(_CITATION.findall(PROTOCOL)) <= set(CLAUSES)


def test_clauses_rise_within_their_chapters() -> None:
    """So that a reader finds one by its number."""
    for chapter in re.split(r"^##+ ", PROTOCOL, flags=re.MULTILINE):
        numbers = [int(n) for n in re.findall(r"^- \*\*[WL]-(\d+)\*\*", chapter, re.MULTILINE)]
        assert numbers == sorted(numbers)
