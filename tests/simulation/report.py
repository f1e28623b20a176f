"""Run the fault tests at length and write what held to `docs/faults.md`.

    python tests/simulation/report.py [--seeds 2000] [--step 1] [--kill-step 4] [--only NAME …]

Three kinds of trials, one after another: single faults and simulated systems in virtual time, in
one process for each processor; deaths of real processes at counted moments; the tests that kill
real processes at chosen ones. The figures of the last soak are taken over as they are
(`make soak`). Exits 1 when anything was broken; the page then says what.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from faults_page import Results, page
from trials import (
    NAMES,
    ON_POSTGRES,
    Points,
    Seeds,
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
SOAK: Final = ROOT / "docs" / "faults" / "soak.json"
POOL: Final = 2


def main() -> int:
    options = _options()
    began = time.monotonic()
    results = Results(step=options.step, kill_step=options.kill_step, soak=_last_soak())
    results.points, results.seeds = _virtual(options)
    _say_time("single faults and seeds", began)
    if not options.no_kills:
        results.kills = try_kills(_scenarios(options), _tell, step=options.kill_step)
        _say_time("deaths of processes on SQLite", began)
        results.postgres_kills = try_kills_on_postgres(
            [name for name in ON_POSTGRES if name in _scenarios(options)],
            _tell,
            step=3 * options.kill_step,
        )
        _say_time("deaths of processes with PostgreSQL", began)
    if not options.no_processes:
        results.directed = run_directed()
        _say_time("tests with real processes", began)
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
    parser.add_argument("--only", nargs="+", choices=NAMES, help="scenarios; all of them")
    parser.add_argument("--no-kills", action="store_true", help="no deaths of real processes")
    parser.add_argument("--no-processes", action="store_true", help="no tests with real processes")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes")
    return parser.parse_args()


def _virtual(options: argparse.Namespace) -> tuple[list[Points], list[Seeds]]:
    jobs = [(name, fault.name, options.step) for fault in Fault for name in _scenarios(options)]
    seeds = []
    with get_context("spawn").Pool(POOL) as pool:
        points = []
        for done in pool.imap(try_points, jobs):
            print(f"{done.fault:22} {done.scenario:20} {done.tried:4} points", flush=True)
            points.append(done)
        for one in pool.imap(
            try_seed, range(options.first, options.first + options.seeds), chunksize=8
        ):
            seeds.append(one)
            if one.broken:
                print(f"    BROKEN seed {one.seed}: {one.broken}", flush=True)
    return points, seeds


def _scenarios(options: argparse.Namespace) -> list[str]:
    return list(options.only or NAMES)


def _tell(done: Any) -> None:
    print(f"{Kill[done.kill].value:30} {done.scenario:20} {done.tried:4} deaths", flush=True)


def _say_time(what: str, began: float) -> None:
    print(f"--- {what}: done after {time.monotonic() - began:.0f} s", flush=True)


def _last_soak() -> dict[str, Any] | None:
    return json.loads(SOAK.read_text()) if SOAK.exists() else None


if __name__ == "__main__":
    sys.exit(main())
