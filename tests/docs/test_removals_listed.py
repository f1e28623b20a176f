"""Removals are what `sample.py` can make. It tries them; this takes a second."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from removal import Removal  # noqa: E402  (lies beside this file)
from removals import REMOVALS  # noqa: E402

ALL = [removal for removals in REMOVALS.values() for removal in removals]


@pytest.mark.parametrize("removal", ALL, ids=lambda removal: f"R-{removal.clause}: {removal.name}")
def test_what_a_removal_takes_away_is_where_it_says(removal: Removal) -> None:
    """Whoever moves the code moves the removal too: `tests/docs/removals_*.py` has the text."""
    before = (ROOT / removal.file).read_text()
    assert before.count(removal.text) == 1, "the text stands there once, word for word"
    assert removal.text != removal.replacement
    ast.parse(before.replace(removal.text, removal.replacement))
