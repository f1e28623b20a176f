"""Behaviour removed on purpose: by clause, what `sample.py` takes away to see the tests fail.

Each removal is one exact piece of text and what replaces it. `sample.py` applies it in a copy of
the tree, and the tests of the clause must fail then. A text that is not found exactly once is an
error: whoever moves the code moves the removal too. A clause with several promises has several.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from removal import Removal
from removals_clients import CLIENTS
from removals_content import CONTENT
from removals_life import LIFE
from removals_turns import TURNS

REMOVALS: Final[dict[int, list[Removal]]] = defaultdict(list)
for _removal in (*TURNS, *LIFE, *CONTENT, *CLIENTS):
    REMOVALS[_removal.clause].append(_removal)
REMOVALS.default_factory = None  # type: ignore[attr-defined]  # a clause without one is a KeyError
