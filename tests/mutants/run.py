"""Break each guarantee in a copy of the tree and see that its tests fail.

    python tests/mutants/run.py [words of a name]

Prints a table; exits 1 when a mutant survives, when its text is not where it says, or when its tests
fail without it: a test that fails anyway catches nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Final

from mutants import MUTANTS, Mutant

ROOT: Final = Path(__file__).resolve().parents[2]
#: Seconds for one mutant's tests. Running out of them counts as caught: a test that hangs fails.
TIMEOUT_S: Final = 600
_COPIED: Final = ("src", "tests", "examples")


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="everturn-mutants-") as folder:
        copy = Path(folder)
        for name in _COPIED:
            ignored = shutil.ignore_patterns("node_modules", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        outcomes = [_outcome(copy, mutant) for mutant in chosen]
    caught = outcomes.count("caught")
    print(f"\n{caught} of {len(chosen)} caught")
    return 0 if chosen and caught == len(chosen) else 1


@cache
def _healthy(copy: Path, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass without a mutant. If they do not, they say nothing about one."""
    done = _pytest(copy, tests)
    healthy = done is not None and done.returncode == 0
    if not healthy:
        print(f"these fail without a mutant: pytest {' '.join(tests)}")
        print("(too slow)" if done is None else done.stdout[-1000:])
    return healthy


def _outcome(copy: Path, mutant: Mutant) -> str:
    file = copy / mutant.file
    before = file.read_text()
    if before.count(mutant.text) != 1:
        outcome, seconds = "MISPLACED", 0.0
    elif not _healthy(copy, mutant.tests):
        outcome, seconds = "UNTESTED", 0.0
    else:
        file.write_text(before.replace(mutant.text, mutant.replacement))
        began = time.monotonic()
        try:
            done = _pytest(copy, mutant.tests)
        finally:
            file.write_text(before)
        seconds = time.monotonic() - began
        # 1 is "tests failed"; anything else means that nothing was tried.
        caught = done is None or done.returncode == 1
        outcome = "caught" if caught else "SURVIVED"
    print(f"{mutant.promise:5} {outcome:10} {seconds:6.1f} s  {mutant.name}", flush=True)
    return outcome


def _pytest(copy: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
    """The finished run, None when it took too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    # The copy's package goes before the installed one, here and in processes that tests start.
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        return subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
