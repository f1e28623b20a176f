"""Run the fault tests at length and write what held to `docs/faults.md`.

    python tests/simulation/report.py [--seeds 2000] [--step 1] [--kill-step 4] [--only NAME …]
                                      [--stages single seeds deaths postgres processes]

Five stages, one after another: single faults and simulated systems in virtual time, in one process
for each processor; deaths of real processes at counted moments, on SQLite and with PostgreSQL; the
tests that kill real processes at chosen ones. Each stage keeps its figures in `docs/faults/` when it
ends, so that one can be run again by itself (`--stages`) and one that is cut short costs no other.
The page is made from what is kept there, with the last soak (`make soak`) and the last mutants
(`make mutants`); `--stages none` makes it and runs nothing.

Exits 1 when anything was broken; the page then says what.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import faults_kept
from faults_page import page
from trials import (
    NAMES,
    ON_POSTGRES,
    run_directed,
    try_kills,
    try_kills_on_postgres,
    try_points,
    try_seed,
)

from everturn.testing.doomed import Kill
from everturn.testing.faults import Fault

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "faults.md"
POOL: Final = 2


def main() -> int:
    options = _options()
    began = time.monotonic()
    for name in options.stages:
        rows = STAGES[name](options)
        faults_kept.keep(options.kept, name, rows, step=_step(options, name))
        print(f"--- {name}: done after {time.monotonic() - began:.0f} s", flush=True)
    results = faults_kept.load(options.kept)
    options.page.write_text(page(results))
    broken = results.broken()
    for line in broken:
        print(f"    BROKEN {line}")
    print(f"{len(broken)} broken; see {options.page}")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2000, help="simulated systems")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--step", type=int, default=1, help="single faults: every so many calls")
    parser.add_argument("--kill-step", type=int, default=4, help="deaths: every so many moments")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="scenarios; all")
    parser.add_argument(
        "--stages", nargs="+", choices=[*STAGES, "none"], default=list(STAGES), help="which; all"
    )
    parser.add_argument("--kept", type=Path, default=faults_kept.FOLDER, help="where figures are")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes")
    options = parser.parse_args()
    options.stages = [name for name in options.stages if name != "none"]
    return options


def _step(options: argparse.Namespace, stage: str) -> int:
    steps = {
        "single": options.step,
        "deaths": options.kill_step,
        "postgres": POSTGRES_STEP * options.kill_step,
    }
    return int(steps.get(stage, 1))


# --- the stages ----------------------------------------------------------------------------------

#: With PostgreSQL every so many times fewer moments: only the state engine differs there.
POSTGRES_STEP: Final = 3


def _single(options: argparse.Namespace) -> list[Any]:
    jobs = [(name, fault.name, options.step) for fault in Fault for name in options.only]
    points = []
    with get_context("spawn").Pool(POOL) as pool:
        for done in pool.imap(try_points, jobs):
            print(f"{done.fault:22} {done.scenario:20} {done.tried:4} points", flush=True)
            _say_broken(done.broken)
            points.append(done)
    return points


def _seeds(options: argparse.Namespace) -> list[Any]:
    seeds = []
    numbers = range(options.first, options.first + options.seeds)
    with get_context("spawn").Pool(POOL) as pool:
        for one in pool.imap(try_seed, numbers, chunksize=8):
            seeds.append(one)
            _say_broken([f"seed {one.number}: {one.broken}"] if one.broken else ())
            if len(seeds) % 100 == 0:
                print(f"{len(seeds):5} of {len(numbers)} seeds", flush=True)
    return seeds


def _deaths(options: argparse.Namespace) -> list[Any]:
    return try_kills(options.only, _say_death, step=options.kill_step)


def _postgres(options: argparse.Namespace) -> list[Any]:
    scenarios = [name for name in ON_POSTGRES if name in options.only]
    return try_kills_on_postgres(scenarios, _say_death, step=POSTGRES_STEP * options.kill_step)


def _processes(options: argparse.Namespace) -> list[Any]:
    return [run_directed()]


STAGES: Final[dict[str, Callable[[argparse.Namespace], list[Any]]]] = {
    "single": _single,
    "seeds": _seeds,
    "deaths": _deaths,
    "postgres": _postgres,
    "processes": _processes,
}


def _say_death(done: Any) -> None:
    print(f"{Kill[done.kill].value:30} {done.scenario:20} {done.tried:4} deaths", flush=True)
    _say_broken(done.broken)


def _say_broken(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"    BROKEN {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
