"""Draws 40 clauses by seed, takes away what each promises, and sees its tests fail.

    python tests/docs/sample.py                     # the draws of seeds 1, 2 and 3
    python tests/docs/sample.py --seed 7            # another draw
    python tests/docs/sample.py --clause 197 202    # these, drawn or not
    python tests/docs/sample.py --all               # every clause with a removal

What the page says a clause is checked by must notice when the clause is broken. Each removal is
made in a copy of the tree, one at a time and in two copies side by side; of a clause's tests those
in one process are run where there are any, because they take a second. All of them pass first with
nothing removed, or a tree that is broken anyway would catch everything. Prints a line per removal,
and exits 1 when one survives or is not found where it says. Clauses of a draw that have no removal
yet are listed at the end.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

import pytest
from clauses import CLAUSES
from conformance import ROOT, checked
from removals import REMOVALS, Removal

SIZE: Final = 40
SEEDS: Final = (1, 2, 3)
#: Copies of the tree that are worked in at the same time.
COPIES: Final = 2
#: Seconds for the tests of one clause; running out of them counts as failing.
TIMEOUT_S: Final = 180
#: What takes long to import and is not ours.
PRELOADED: Final = ("pydantic_ai", "pydantic_ai.ui.vercel_ai", "starlette.applications", "httpx2")
FORK: Final = multiprocessing.get_context("fork")
MISPLACED: Final = -1
#: By exit status: 1 says that tests failed; what is not named says that none could be tried.
OUTCOMES: Final = {0: "SURVIVED", 1: "caught", MISPLACED: "MISPLACED"}
#: What the copies share with the tree: packages that tests of other runtimes fetched.
SHARED: Final = ".cache"


def drawn(seed: int) -> list[int]:
    """The clauses of a draw, in rising order."""
    return sorted(random.Random(seed).sample(list(CLAUSES), SIZE))


def main(wanted: list[int]) -> int:
    """Try every removal of the wanted clauses; the exit status."""
    tests = checked()
    work = deque((number, removal) for number in wanted for removal in REMOVALS.get(number, ()))
    tried = len(work)
    outcomes: Counter[str] = Counter()
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="everturn-sample-") as folder:
        free = [copied(Path(folder) / str(name)) for name in range(COPIES)]
        whole = sorted({test for number, _ in work for test in quick(tests[number])})
        log = Path(folder) / "log"
        if work and Trial(free[0], whole, TIMEOUT_S * 10, log).status() != 0:
            print(f"{log.read_text()[-4000:]}\nthe tests fail with nothing removed")
            return 1
        running: dict[Trial, tuple[int, Removal]] = {}
        while work or running:
            while work and free:
                number, removal = work.popleft()
                trial = Trial(free.pop(), quick(tests[number]), TIMEOUT_S, removal=removal)
                running[trial] = (number, removal)
            wait([trial.sentinel for trial in running], timeout=1)
            for trial in [trial for trial in running if trial.is_over()]:
                number, removal = running.pop(trial)
                found = OUTCOMES.get(trial.status(), "BROKEN")
                free.append(trial.copy)
                outcomes[found] += 1
                print(f"R-{number:03} {found:9} {removal.name}", flush=True)
    left = [f"R-{number:03}" for number in wanted if number not in REMOVALS]
    print(f"\n{outcomes['caught']} of {tried} caught, of {len(wanted) - len(left)} clauses")
    print(f"without a removal: {' '.join(left) or 'none'}")
    return 0 if outcomes["caught"] == tried else 1


class Trial:
    """One run of pytest in a copy, in a process of its own, with something removed or nothing.

    The process is a fork of this one, which has imported what takes long and is not ours.
    """

    def __init__(
        self,
        copy: Path,
        tests: list[str],
        timeout_s: float,
        log: Path = Path(os.devnull),
        removal: Removal | None = None,
    ) -> None:
        self.copy = copy
        self._file = copy / removal.file if removal is not None else None
        self._before = self._file.read_text() if self._file is not None else ""
        self._misplaced = removal is not None and self._before.count(removal.text) != 1
        if self._file is not None and removal is not None and not self._misplaced:
            self._file.write_text(self._before.replace(removal.text, removal.replacement))
        self._deadline = time.monotonic() + timeout_s
        self._process = FORK.Process(target=pytest_in, args=(copy, tests, log))
        self._process.start()

    @property
    def sentinel(self) -> int:
        """What becomes ready when the process has ended."""
        return self._process.sentinel

    def is_over(self) -> bool:
        """Whether it has ended, or is not waited for any longer."""
        return not self._process.is_alive() or time.monotonic() > self._deadline or self._misplaced

    def status(self) -> int:
        """Wait for the end and put back what was removed; pytest's exit status."""
        self._process.join(0 if self._misplaced else max(0.0, self._deadline - time.monotonic()))
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        if self._file is not None:
            self._file.write_text(self._before)
        if self._misplaced:
            return MISPLACED
        return 1 if late else self._process.exitcode or 0


def pytest_in(copy: Path, tests: list[str], log: Path) -> None:
    """Run these tests to the first failure, in this process, which is a fresh fork."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(copy)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy / "src"))
    os.environ.update(PYTHONPATH=str(copy / "src"), PYTHONDONTWRITEBYTECODE="1")
    # What was imported before pytest is not rewritten by it, and need not be.
    quiet = "-Wignore::pytest.PytestAssertRewriteWarning"
    os._exit(pytest.main(["-q", "-x", "-n0", "-p", "no:cacheprovider", quiet, *tests]))


def quick(tests: list[tuple[Path, str]]) -> list[str]:
    """Of a clause's tests those in one process; all of them when it has none."""
    chosen = [f"{path}::{label}" for path, label in tests]
    return [test for test in chosen if test.startswith("tests/unit")] or chosen


def copied(place: Path) -> Path:
    """A copy of what the tests need."""
    for name in ("src", "tests", "examples", "docs"):
        ignored = shutil.ignore_patterns("node_modules", "__pycache__")
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    if (ROOT / SHARED).exists():
        (place / SHARED).symlink_to(ROOT / SHARED)
    return place


def arguments() -> list[int]:
    """The clauses asked for, in rising order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[])
    parser.add_argument("--clause", type=int, nargs="+", default=[])
    parser.add_argument("--all", action="store_true")
    given = parser.parse_args()
    if given.all:
        return sorted(REMOVALS)
    seeds = given.seed or ([] if given.clause else SEEDS)
    return sorted({*given.clause, *(number for seed in seeds for number in drawn(seed))})


if __name__ == "__main__":
    sys.exit(main(arguments()))
