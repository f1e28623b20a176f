"""What the mutants have shown when they were tried last, for `docs/faults.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

#: Written by `make mutants`.
CAUGHT: Final = Path(__file__).with_name("caught.json")


class Tried(NamedTuple):
    """One mutant, and how it ended when it was tried last."""

    promise: str
    name: str
    #: `caught`, or what is wrong: SURVIVED, MISPLACED, UNTESTED, NOT TRIED.
    verdict: str
    #: The test that failed, as pytest names it; None when none did.
    caught_by: str | None


def tried() -> list[Tried]:
    """All of them, by promise. Empty before the first run."""
    if not CAUGHT.exists():
        return []
    rows = json.loads(CAUGHT.read_text())
    found = [Tried(r["promise"], r["name"], r["verdict"], r["caught_by"]) for r in rows]
    return sorted(found, key=lambda one: int(one.promise.partition("-")[2]))


def table() -> Iterator[str]:
    """The lines of a Markdown table: promise, what was broken, and the test that noticed."""
    yield "| promise | deliberate break | noticed by |"
    yield "|---|---|---|"
    for one in tried():
        by = f"`{_short(one.caught_by)}`" if one.caught_by else f"**{one.verdict}**"
        yield f"| {one.promise} | {one.name} | {by} |"


def _short(node: str) -> str:
    """A test's name without its folder and its parameters, which may hold anything."""
    return node.partition("[")[0].rpartition("/")[2]
