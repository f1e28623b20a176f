"""Break each guarantee in a copy of the tree and see that its tests fail.

    python tests/mutants/run.py [--jobs 2] [words of a name, or a promise]

Two mutants are tried at a time, each in a copy of its own. A test that fails anyway catches nothing,
so at the end whatever caught a mutant is run once more, all of it together, in a copy without one.

Prints a line for each mutant as it ends, and a summary. Exits 1 when a mutant survives, when its
text is not where it says, or when its tests cannot be run or fail without it. What was found is kept
in `caught.json` beside this file, for each mutant from its last run: `docs/faults.md` lists them from
there.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from mutant import Mutant
from mutants import MUTANTS

ROOT: Final = Path(__file__).resolve().parents[2]
#: What caught each mutant when it was tried last.
CAUGHT: Final = Path(__file__).with_name("caught.json")
#: Seconds for one mutant's tests. Running out of them counts as caught: a test that hangs fails.
TIMEOUT_S: Final = 150
#: Seconds for everything that caught something, without a mutant.
HEALTHY_TIMEOUT_S: Final = 900
#: Those that tests need. Loading every installed one takes longer than most of the tests.
_PLUGINS: Final = (
    "anyio.pytest_plugin",
    "pytest_timeout",
    "_hypothesis_pytestplugin",
    "everturn.testing.plugin",
)
_COPIED: Final = ("src", "tests", "examples")
_IGNORED: Final = shutil.ignore_patterns("node_modules", "__pycache__", ".everturn")
#: A line of `pytest -v`: the test it is about to run, and how that ended.
_RUNNING: Final = re.compile(
    r"^(tests/\S+?::.+?)(?: (PASSED|FAILED|ERROR|SKIPPED)(?: \(.*\))?(?: +\[ *\d+%\].*)?)? *$",
    re.MULTILINE,
)


class Outcome(NamedTuple):
    """How one mutant ended."""

    mutant: Mutant
    verdict: str
    seconds: float
    #: The tests that failed, as pytest names them.
    caught_by: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if all(w in m.name or w == m.promise for w in options.words)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everturn-mutants-") as folder:
        copies = [_copy(Path(folder) / str(n)) for n in range(max(1, options.jobs))]
        outcomes = _try_all(chosen, copies)
        unsound = _fail_without_a_mutant(copies[0], outcomes)
    outcomes = [
        o._replace(verdict="UNTESTED") if unsound.intersection(o.caught_by) else o for o in outcomes
    ]
    _summarise(outcomes, time.monotonic() - began)
    _keep(outcomes)
    return 0 if chosen and all(o.verdict == "caught" for o in outcomes) else 1


def _copy(folder: Path) -> Path:
    for name in _COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=_IGNORED)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _try_all(chosen: list[Mutant], copies: list[Path]) -> list[Outcome]:
    """Every mutant, in the order they were given, as many at a time as there are copies."""
    waiting: queue.SimpleQueue[tuple[int, Mutant]] = queue.SimpleQueue()
    for item in enumerate(chosen):
        waiting.put(item)
    found: dict[int, Outcome] = {}

    def work(copy: Path) -> None:
        while True:
            try:
                place, mutant = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = found[place] = _outcome(copy, mutant)
            print(
                f"{len(found):3}/{len(chosen)} {mutant.promise:5} {outcome.verdict:10}"
                f"{outcome.seconds:6.1f} s  {mutant.name}",
                flush=True,
            )

    threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(chosen))]


def _outcome(copy: Path, mutant: Mutant) -> Outcome:
    file = copy / mutant.file
    before = file.read_text()
    if before.count(mutant.text) != 1:
        return Outcome(mutant, "MISPLACED", 0.0)
    file.write_text(before.replace(mutant.text, mutant.replacement))
    began = time.monotonic()
    try:
        status, failed = _pytest(copy, ["-x", *mutant.tests], TIMEOUT_S)
    finally:
        file.write_text(before)
    seconds = time.monotonic() - began
    # 1 is "tests failed", None a test that hung; any other but 0 means that nothing was tried.
    if status in (None, 1) and failed:
        verdict = "caught"
    else:
        verdict = "SURVIVED" if status == 0 else "NOT TRIED"
    return Outcome(mutant, verdict, seconds, failed)


def _fail_without_a_mutant(copy: Path, outcomes: list[Outcome]) -> set[str]:
    """Which of the tests that caught something fail by themselves."""
    nodes = sorted({node for outcome in outcomes for node in outcome.caught_by})
    if not nodes:
        return set()
    print(f"{len(nodes)} tests caught them; running those without a mutant", flush=True)
    status, failed = _pytest(copy, nodes, HEALTHY_TIMEOUT_S)
    # Nothing is known of tests that were not run: those that failed, or all.
    return set(failed) if status in (0, 1) else set(nodes)


def _pytest(
    copy: Path, arguments: list[str], timeout_s: float
) -> tuple[int | None, tuple[str, ...]]:
    """The exit status, None when it took too long, and the tests that failed or hang."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=no", "-p", "no:cacheprovider"]
    command += [word for plugin in _PLUGINS for word in ("-p", plugin)]
    environment = {
        **os.environ,
        # The copy's package goes before the installed one, here and in processes that tests start.
        "PYTHONPATH": str(copy / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    # A test that hangs is reported, and ends the run, well before our own patience does.
    limit = ["-o", f"timeout={TIMEOUT_S // 3}"]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(
            [*command, *limit, *arguments],
            cwd=copy,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                status: int | None = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                status = None
        output.seek(0)
        return status, _failed(output.read())


def _failed(output: str) -> tuple[str, ...]:
    progress = output.partition("short test summary info")[0]
    found = dict(_RUNNING.findall(progress))
    return tuple(node for node, ended in found.items() if ended not in ("PASSED", "SKIPPED"))


def _summarise(outcomes: list[Outcome], seconds: float) -> None:
    print(f"\n{'promise':8} {'mutants':>7} {'caught':>6}")
    tried = Counter(o.mutant.promise for o in outcomes)
    caught = Counter(o.mutant.promise for o in outcomes if o.verdict == "caught")
    for promise in sorted(tried, key=lambda name: int(name[2:])):
        print(f"{promise:8} {tried[promise]:7} {caught[promise]:6}")
    for outcome in outcomes:
        if outcome.verdict != "caught":
            print(f"{outcome.verdict}: {outcome.mutant.name} ({outcome.mutant.file})")
            print(f"    pytest {' '.join(outcome.mutant.tests)}")
    print(f"\n{caught.total()} of {len(outcomes)} caught in {seconds / 60:.1f} minutes")


def _keep(outcomes: list[Outcome]) -> None:
    """Note how these ended, beside those of earlier runs; forget mutants that are no more."""
    earlier = json.loads(CAUGHT.read_text()) if CAUGHT.exists() else []
    rows = {row["name"]: row for row in earlier}
    rows |= {
        outcome.mutant.name: {
            "promise": outcome.mutant.promise,
            "name": outcome.mutant.name,
            "file": outcome.mutant.file,
            "verdict": outcome.verdict,
            "caught_by": outcome.caught_by[0] if outcome.caught_by else None,
        }
        for outcome in outcomes
    }
    kept = [rows[mutant.name] for mutant in MUTANTS if mutant.name in rows]
    CAUGHT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
