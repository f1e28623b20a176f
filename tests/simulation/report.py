"""Run the fault tests at length and write what held to `docs/faults.md`.

    python tests/simulation/report.py [--seeds 2000] [--step 1] [--no-processes]

Exits 1 when anything was broken; the page then says what.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

TESTS: Final = Path(__file__).resolve().parents[1]
ROOT: Final = TESTS.parent
PAGE: Final = ROOT / "docs" / "faults.md"
sys.path.insert(0, str(TESTS / "crash"))

from fault_scenarios import SCENARIOS, play, the_app  # noqa: E402  (lies in the tests' folder)

from everturn.testing.faults import Fault  # noqa: E402
from everturn.testing.simulation import simulate  # noqa: E402

PROMISES: Final = {
    "P-1": "acknowledged is kept",
    "P-2": "readers see each record once, in order",
    "P-3": "each message is answered once or visibly failed",
    "P-4": "one writer at a time",
    "P-5": "a repeated append adds nothing",
    "P-6": "a stop ends its own turn only",
    "P-7": "the end of a turn is in the log",
    "P-8": "history cannot be poisoned",
    "P-9": "nothing is forgotten before it is stored",
    "P-10": "suspended sessions go on without their worker",
    "P-11": "one external id, one session",
}
#: Promises that single faults put to the test, and in which scenarios; None is all of them. The
#: judge of the log (`testing/checker.py`) looks at every run, the rest are the scenarios' own checks.
SINGLE: Final[dict[str, frozenset[str] | None]] = {
    "P-2": None,
    "P-3": None,
    "P-4": None,
    "P-5": None,
    "P-6": frozenset({"stop"}),
    "P-7": None,
    "P-9": frozenset({"action", "upgrade", "suspend_and_resume", "continuation", "close"}),
    "P-10": frozenset({"suspend_and_resume", "continuation"}),
}
#: Promises that the judges of a simulation look at.
SIMULATED: Final = frozenset({"P-1", "P-2", "P-3", "P-4", "P-5", "P-7"})
PROCESS_TESTS: Final = (
    "test_crash_promises.py",
    "test_crash_tasks.py",
    "test_crash_tools.py",
    "test_crash_power_loss.py",
)
POINTS_MAX: Final = 5_000


class Points(NamedTuple):
    """One scenario under one fault, at all its points."""

    scenario: str
    fault: str
    tried: int
    broken: tuple[str, ...]


class Seeds(NamedTuple):
    """What a run of one seed left."""

    seed: int
    faults: Counter[str]
    turns: Counter[str]
    broken: str


def try_points(job: tuple[str, str, int]) -> Points:
    scenario, fault, step = job
    _quiet()
    tried, broken = 0, []
    for nth in range(1, POINTS_MAX, step):
        try:
            if not play(scenario, Fault[fault], nth).fired:
                break
        except Exception as error:  # whatever it is, it is the finding
            broken.append(f"{scenario}, {fault}, call {nth}: {_first_line(error)}")
        tried += 1
    return Points(scenario, fault, tried, tuple(broken))


def try_seed(seed: int) -> Seeds:
    _quiet()
    try:
        history = simulate(the_app(), seed)
    except Exception as error:  # whatever it is, it is the finding
        return Seeds(seed, Counter(), Counter(), _first_line(error))
    return Seeds(seed, history.faults, history.turns, "")


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _first_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def run_processes() -> tuple[Counter[str], Counter[str], list[str]]:
    """The tests with real processes: runs and failures by promise, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        files = [str(TESTS / "crash" / name) for name in PROCESS_TESTS]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={result}", *files],
            cwd=ROOT,
            env={**os.environ},
            check=False,
            stdout=subprocess.DEVNULL,
        )
        cases = list(ET.parse(result).iter("testcase"))
    cited = dict(_citations())
    runs: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    broken = []
    for case in cases:
        name = (case.get("name") or "").partition("[")[0]
        bad = case.find("failure") is not None or case.find("error") is not None
        if bad:
            broken.append(f"{case.get('classname')}.{case.get('name')}")
        for promise in cited.get(name, ()):
            runs[promise] += 1
            failed[promise] += bad
    return runs, failed, broken


def _citations() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which promises each crash test names, in its name or its docstring."""
    for file in PROCESS_TESTS:
        for node in ast.walk(ast.parse((TESTS / "crash" / file).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = f"{node.name.replace('_', '-')} {ast.get_docstring(node) or ''}"
                found = re.findall(r"\bp-?(\d+)\b", text.lower())
                yield node.name, tuple(dict.fromkeys(f"P-{n}" for n in found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--no-processes", action="store_true")
    options = parser.parse_args()
    jobs = [(name, fault.name, options.step) for fault in Fault for name in SCENARIOS]
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        points = []
        for done in pool.imap(try_points, jobs):
            print(f"{done.fault:22} {done.scenario:20} {done.tried:4} points", flush=True)
            points.append(done)
            for line in done.broken:
                print(f"    BROKEN {line}", flush=True)
        seeds = []
        numbers = range(options.first, options.first + options.seeds)
        for one in pool.imap(try_seed, numbers, chunksize=8):
            seeds.append(one)
            if one.broken:
                print(f"    BROKEN seed {one.seed}: {one.broken}", flush=True)
    processes = None if options.no_processes else run_processes()
    broken = [line for p in points for line in p.broken]
    broken += [s.broken for s in seeds if s.broken]
    broken += processes[2] if processes is not None else []
    PAGE.write_text(page(points, seeds, processes, options.step, broken))
    print(f"{len(broken)} broken; see {PAGE.relative_to(ROOT)}")
    return 1 if broken else 0


def page(
    points: list[Points],
    seeds: list[Seeds],
    processes: tuple[Counter[str], Counter[str], list[str]] | None,
    step: int,
    broken: list[str],
) -> str:
    turns: Counter[str] = sum((s.turns for s in seeds), Counter())
    happened: Counter[str] = sum((s.faults for s in seeds), Counter())
    lines = [
        "# Faults",
        "",
        "Written by `make faults`; do not edit. What was done to everturn, how often, and what",
        "held. The promises are those of `ARCHITECTURE.md`.",
        "",
        "## By promise",
        "",
        "Single faults and simulated systems run the whole road (client, HTTP, server, link,",
        "worker, agent) in one process and virtual time over the memory engines, which are the",
        "executable specification of the others. Real processes run on the embedded engine",
        "(SQLite streams and state, snapshots on disk) and are killed with `kill -9`, or lose",
        "their power: the data folder is put back to what had been synced.",
        "",
        "| promise | single faults, memory | simulated systems, memory | real processes, SQLite | held |",
        "|---|---:|---:|---:|---|",
    ]
    runs, failed = (processes[0], processes[1]) if processes is not None else (Counter(), Counter())
    for promise, meaning in PROMISES.items():
        among = [
            p for p in points if promise in SINGLE and p.scenario in (SINGLE[promise] or SCENARIOS)
        ]
        tried = sum(p.tried for p in among)
        simulated = len(seeds) if promise in SIMULATED else 0
        bad = failed[promise] + sum(len(p.broken) for p in among)
        bad += sum(bool(s.broken) for s in seeds) if simulated else 0
        held = "yes" if tried + simulated + runs[promise] else "not tried"
        cells = (f"{n or '–'}" for n in (tried, simulated, runs[promise]))
        lines.append(
            f"| {promise}: {meaning} | {' | '.join(cells)} | {'**no**' if bad else held} |"
        )
    lines += ["", "## Single faults", "", *_single(points, step)]
    lines += ["", "## Simulated systems", "", *_simulated(seeds, turns, happened)]
    lines += ["", "## What broke", ""]
    lines += [f"* {line}" for line in broken] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _single(points: list[Points], step: int) -> Iterator[str]:
    every = "every call" if step == 1 else f"every {step}th call"
    yield f"One fault in each run, at {every} of the scenario, until the scenario outruns it."
    yield ""
    table: dict[str, dict[str, Points]] = defaultdict(dict)
    for point in points:
        table[point.scenario][point.fault] = point
    yield "| scenario | " + " | ".join(fault.value for fault in Fault) + " |"
    yield "|---|" + "---:|" * len(Fault)
    for scenario, row in table.items():
        cells = (
            f"{row[f.name].tried}"
            + (f" (**{len(row[f.name].broken)} broken**)" if row[f.name].broken else "")
            for f in Fault
        )
        yield f"| {scenario.replace('_', ' ')} | " + " | ".join(cells) + " |"


def _simulated(seeds: list[Seeds], turns: Counter[str], happened: Counter[str]) -> Iterator[str]:
    yield f"{len(seeds)} seeds from {seeds[0].seed} to {seeds[-1].seed}: in each, three people talk"
    yield "to agents on two workers for forty seconds of bad weather. Of their turns "
    yield f"{turns['answered']} were answered and {turns['failed']} failed visibly;"
    yield f"{turns['restarted']} were interrupted and answered again."
    yield ""
    yield "| fault | times |"
    yield "|---|---:|"
    for name, times in sorted(happened.items(), key=lambda item: -item[1]):
        yield f"| {name} | {times} |"


if __name__ == "__main__":
    sys.exit(main())
