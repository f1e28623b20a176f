"""Draws 40 clauses by seed, takes away what each promises, and sees its tests fail.

    python tests/docs/sample.py [seed] [clause …]

What the page says a clause is checked by must notice when the clause is broken. Each removal is
made in a copy of the tree, one at a time; of a clause's tests those in one process are run, because
they take a second. Prints a table, and exits 1 when a removal survives or is not found where it
says. Clauses of the draw that have no removal yet are listed at the end.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from clauses import CLAUSES
from conformance import ROOT, checked
from removals import REMOVALS, Removal

SIZE: Final = 40
SEED: Final = 1
#: Seconds for the tests of one clause; running out of them counts as failing.
TIMEOUT_S: Final = 120


def drawn(seed: int) -> list[int]:
    """The clauses of a draw, in rising order."""
    return sorted(random.Random(seed).sample(list(CLAUSES), SIZE))


def main(seed: int, only: list[int]) -> int:
    tests = checked()
    numbers = [n for n in drawn(seed) if n in REMOVALS and (not only or n in only)]
    outcomes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="everturn-sample-") as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            ignored = shutil.ignore_patterns("node_modules", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for number in numbers:
            chosen = [f"{path}::{label}" for path, label in tests[number]]
            quick = [test for test in chosen if test.startswith("tests/unit")] or chosen
            outcomes.append(outcome(copy, REMOVALS[number], quick))
            print(f"R-{number:03} {outcomes[-1]:9} {REMOVALS[number].name}", flush=True)
    print(f"\n{outcomes.count('caught')} of {len(outcomes)} caught, seed {seed}")
    left = [f"R-{number:03}" for number in drawn(seed) if number not in REMOVALS]
    print(f"without a removal: {' '.join(left) or 'none'}")
    return 0 if outcomes.count("caught") == len(outcomes) else 1


def outcome(copy: Path, removal: Removal, tests: list[str]) -> str:
    """`caught`, `SURVIVED`, `MISPLACED` (its text is not there once) or `BROKEN` (no test ran)."""
    file = copy / removal.file
    before = file.read_text()
    if before.count(removal.text) != 1:
        return "MISPLACED"
    file.write_text(before.replace(removal.text, removal.replacement))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        file.write_text(before)
    # 1 says that tests failed; what is neither 0 nor 1 says that none could be tried.
    return {0: "SURVIVED", 1: "caught"}.get(done.returncode, "BROKEN")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(given[0] if given else SEED, given[1:]))
