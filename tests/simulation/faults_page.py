"""The page `docs/faults.md`, from the figures of all trials."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from faults_kept import Results, Seeds, Stage, rows
from trials import NAMES, ON_POSTGRES, Directed, Killed, Points

from everturn.testing.doomed import Kill
from everturn.testing.faults import Fault

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mutants"))

from listing import Tried, table, tried

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
    "P-12": "a token opens what its scopes say",
}
#: Promises that a scenario puts to the test, and in which; None is all of them. The judges of the
#: log (`testing/checker.py`) and of the stored history (`testing/verdicts.py`) look at every run,
#: the rest are the scenarios' own checks.
SCENARIOS_OF: Final[dict[str, frozenset[str] | None]] = {
    "P-2": None,
    "P-3": None,
    "P-4": None,
    "P-5": None,
    "P-6": frozenset({"stop", "stop_in_a_tool"}),
    "P-7": None,
    "P-8": None,
    "P-9": None,
    "P-10": frozenset({"suspend_and_resume", "continuation"}),
    "P-11": frozenset({"two_at_once"}),
}
#: What a store in memory cannot show and one on disk can: that what was acknowledged outlives
#: the process. Every scenario's client has its acknowledgements, and its log is read back.
DEATHS_OF: Final[dict[str, frozenset[str] | None]] = {"P-1": None, **SCENARIOS_OF}
#: Promises that the judges of a simulation look at.
SIMULATED: Final = frozenset(
    {"P-1", "P-2", "P-3", "P-4", "P-5", "P-6", "P-7", "P-8", "P-9", "P-11"}
)
#: Promises that the judges of a soak look at.
SOAKED: Final = frozenset({"P-1", "P-2", "P-3", "P-4", "P-5", "P-6", "P-7", "P-8", "P-9", "P-10"})

_INTRODUCTION: Final = """\
# Faults

Written by `make faults`; do not edit. What was done to everturn, how often, and what
held. The promises are those of `ARCHITECTURE.md`.

## By promise and engine

How often each promise was put to the test, and in which way:

* *Single faults*: a whole scenario, with one fault at its n-th call, for every n. The whole road
  (client, HTTP, server, link, worker, agent) in one process and virtual time, over the engines in
  memory, which are the executable specification of the others.
* *Simulated systems*: forty seconds of bad weather each, drawn from a seed; over the same.
* *Deaths*: real processes over sockets and files; one of them, or both, is killed (`SIGKILL`)
  before or after its n-th store call or link message. Streams in SQLite, snapshots on disk, the
  state in SQLite or in PostgreSQL.
* *Process tests*: real processes killed, stopped, drained and robbed of their power (the data
  folder is put back to what had been synced) at moments of interest, and under more load, less
  disk and another time than they should have; on the embedded engine.
* *Soak*: many live conversations on real processes on the embedded engine, and a fault every few
  seconds.
* *Breaks*: the guarantee broken on purpose in a copy of the code, and how often a test failed then.
"""


def page(results: Results) -> str:
    """The whole page."""
    breaks = tried()
    lines = [_INTRODUCTION]
    lines += _by_promise(results, breaks)
    lines += ["", *_in_all(results)]
    lines += ["", "## Single faults", "", *_single(results.single)]
    lines += ["", "## Simulated systems", "", *_simulated(results.seeds)]
    lines += ["", "## Deaths of real processes", "", *_deaths(results)]
    lines += ["", "## Soak", "", *_soak(results.soak)]
    lines += ["", "## What broke", ""]
    lines += [f"* {line}" for line in results.broken()] or ["Nothing."]
    lines += ["", "## Deliberate breaks", "", *_breaks(breaks)]
    return "\n".join(lines) + "\n"


# --- by promise and engine -----------------------------------------------------------------------


def _by_promise(results: Results, breaks: Sequence[Tried]) -> Iterator[str]:
    yield (
        "| promise | single faults (memory) | simulated systems (memory) | deaths (SQLite) | "
        "deaths (PostgreSQL) | process tests (SQLite) | soak (SQLite) | breaks noticed | held |"
    )
    yield "|---|---:|---:|---:|---:|---:|---|---:|---|"
    for promise, meaning in PROMISES.items():
        trials = _trials(promise, results)
        soaked = results.soak is not None and promise in SOAKED
        broken = [bad for _, bad in trials]
        broken.append(results.soak is not None and soaked and bool(results.soak["broken"]))
        mine = [one for one in breaks if one.promise == promise]
        noticed = sum(one.verdict == "caught" for one in mine)
        held = "**no**" if any(broken) else "yes" if any(n for n, _ in trials) or soaked else "–"
        cells = [f"{n:,}" if n else "–" for n, _ in trials]
        cells += ["yes" if soaked else "–", f"{noticed} of {len(mine)}", held]
        yield f"| {promise}: {meaning} | {' | '.join(cells)} |"
    yield ""
    yield "P-12 is no matter of faults: its tests are those that `SECURITY.md` lists, and the breaks"
    yield "show that they notice. Every engine passes the contract tests of its port besides"
    yield "(`tests/contract`), and the state engines are compared with the one in memory over random"
    yield "calls."


def _trials(promise: str, results: Results) -> list[tuple[int, bool]]:
    """How often each kind put a promise to the test, and whether anything broke."""
    chosen: list[Sequence[Points | Killed]] = [
        _testing(promise, SCENARIOS_OF, rows(results.single)),
        _testing(promise, DEATHS_OF, rows(results.deaths)),
        _testing(promise, DEATHS_OF, rows(results.postgres)),
    ]
    single, deaths, postgres = ((_tried(runs), _any_broken(runs)) for runs in chosen)
    seeds: Sequence[Seeds] = rows(results.seeds) if promise in SIMULATED else ()
    processes: Sequence[Directed] = rows(results.processes)
    return [
        single,
        (_tried(seeds), _any_broken(seeds)),
        deaths,
        postgres,
        (
            sum(one.runs.get(promise, 0) for one in processes),
            any(one.failed.get(promise, 0) for one in processes),
        ),
    ]


def _testing(
    promise: str, scenarios_of: dict[str, frozenset[str] | None], runs: Sequence[Points | Killed]
) -> list[Points | Killed]:
    if promise not in scenarios_of:
        return []
    scenarios = scenarios_of[promise]
    return [run for run in runs if scenarios is None or run.scenario in scenarios]


def _tried(runs: Iterable[Points | Killed | Seeds]) -> int:
    return sum(run.tried for run in runs)


def _any_broken(runs: Iterable[Points | Killed | Seeds]) -> bool:
    return any(run.broken for run in runs)


def _in_all(results: Results) -> Iterator[str]:
    deaths = _tried(rows(results.deaths)) + _tried(rows(results.postgres))
    tests = sum(one.total for one in rows(results.processes))
    yield (
        f"In all {_tried(rows(results.single)) + deaths:,} distinct points of failure, "
        f"{_tried(rows(results.seeds)):,} simulated systems and {tests} tests with real processes."
    )
    stages: dict[str, Stage[Any] | None] = {
        "single faults": results.single,
        "simulated systems": results.seeds,
        "deaths": results.deaths,
        "deaths with PostgreSQL": results.postgres,
        "process tests": results.processes,
    }
    ran = [f"{name} at {stage.commit}" for name, stage in stages.items() if stage is not None]
    if ran:
        yield f"Last run: {', '.join(ran)} (`+`: with changes that were not committed yet)."


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 100 else f"{seconds:.0f} seconds"


# --- the kinds of trials -------------------------------------------------------------------------


def _single(stage: Stage[Points] | None) -> Iterator[str]:
    if stage is None:
        yield "None ran yet."
        return
    yield f"One fault in each run, at {_every(stage, 'call')} of the scenario, until the scenario"
    yield f"outruns it: {_tried(stage.rows):,} runs."
    yield ""
    yield from _matrix(stage.rows, {fault.name: fault.value for fault in Fault}, "fault")


def _simulated(stage: Stage[Seeds] | None) -> Iterator[str]:
    if stage is None:
        yield "None ran yet."
        return
    for seeds in stage.rows:
        turns = Counter(seeds.turns)
        yield f"{seeds.tried:,} seeds from {seeds.first} to {seeds.last}: in each, three people talk"
        yield "to agents on two workers for forty seconds of bad weather. Of their turns"
        yield f"{turns['answered']:,} were answered and {turns['failed']} failed visibly;"
        yield f"{turns['restarted']} were interrupted and answered again."
        yield ""
        yield from _times(seeds.faults)


def _deaths(results: Results) -> Iterator[str]:
    stage, postgres = results.deaths, results.postgres
    if stage is None:
        yield "None ran yet."
        return
    yield f"A server, a worker or both die at {_every(stage, 'moment')} of a scenario, and are"
    yield f"started again: {_tried(stage.rows):,} deaths on SQLite. The client is the official one"
    yield "of Python, over HTTP."
    yield ""
    kinds = {kill.name: kill.value for kill in Kill}
    yield from _matrix(stage.rows, kinds, "kill")
    if postgres is not None:
        names = ", ".join(f"*{name.replace('_', ' ')}*" for name in ON_POSTGRES)
        yield ""
        yield f"With the state in PostgreSQL, at {_every(postgres, 'moment')} of {names}:"
        yield f"{_tried(postgres.rows):,} deaths."


def _every(stage: Stage[Any], what: str) -> str:
    names = {1: "every", 2: "every second", 3: "every third"}
    return f"{names.get(stage.step, f'every {stage.step}th')} {what}"


def _matrix(
    runs: Sequence[Points | Killed], kinds: dict[str, str], attribute: str
) -> Iterator[str]:
    table: dict[str, dict[str, Points | Killed]] = defaultdict(dict)
    for run in runs:
        table[run.scenario][getattr(run, attribute)] = run
    yield "| scenario | " + " | ".join(kinds.values()) + " |"
    yield "|---|" + "---:|" * len(kinds)
    for scenario in NAMES:
        cells = []
        for kind in kinds:
            run = table[scenario].get(kind)
            bad = f" (**{len(run.broken)} broken**)" if run is not None and run.broken else ""
            cells.append(f"{run.tried}{bad}" if run is not None else "–")
        yield f"| {scenario.replace('_', ' ')} | " + " | ".join(cells) + " |"


def _times(happened: dict[str, int]) -> Iterator[str]:
    yield "| fault | times |"
    yield "|---|---:|"
    for name, times in Counter(happened).most_common():
        yield f"| {name} | {times:,} |"


# --- the soak ------------------------------------------------------------------------------------


def _soak(soak: dict[str, Any] | None) -> Iterator[str]:
    if soak is None:
        yield "None ran yet (`make soak`)."
        return
    judged, people = Counter(soak["judged"]), Counter(soak["people"])
    yield (
        f"`make soak`, {_minutes(soak['seconds'])}, {soak['conversations']} live conversations on "
        f"one server and {soak['workers']} workers, seed {soak['seed']}."
    )
    yield (
        f"People sent {people['messages']} messages and {people['approvals']} approvals, stopped "
        f"{people['stops']} answers, and left and came back {people['reconnects']} times, in "
        f"{judged['sessions']} sessions. Of their turns {judged['answered']} were answered "
        f"({judged['stopped']} of them stopped) and {judged['failed visibly']} failed visibly; "
        f"{judged['interrupted and answered again']} were interrupted and answered again. "
        f"{judged['records']} records were read back."
    )
    flat = all(figures["flat"] for figures in soak["memory"].values())
    held = "Nothing was lost and nothing doubled" + (", and memory stayed flat." if flat else ".")
    yield held if not soak["broken"] else f"**{len(soak['broken'])} broken**, see below."
    yield ""
    yield from _times(soak["faults"])
    yield ""
    yield from _memory(soak["memory"])


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    yield "Memory (MiB) of the longest life of each kind of process; the slope is the median of the"
    yield "slopes between its samples after warming up."
    yield ""
    yield "| process | age | first | last | max of all lives | slope per hour | flat |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for role, f in memory.items():
        flat = {True: "yes", False: "**no**", None: "too short to say"}[f["flat"]]
        yield (
            f"| {role} | {f['age_s']} s | {f['first_mib']} | {f['last_mib']} | {f['max_mib']} | "
            f"{f.get('mib_per_hour', '–')} | {flat} |"
        )
    equal = memory["server"]["at_equal_age"]
    if equal is not None:
        yield ""
        yield (
            f"A server {equal['age_s']:.0f} s after its start held {equal['first_mib']} MiB in the "
            f"first third of {equal['lives']} lives and {equal['last_mib']} MiB in the last."
        )


# --- deliberate breaks ---------------------------------------------------------------------------


def _breaks(breaks: Sequence[Tried]) -> Iterator[str]:
    if not breaks:
        yield "None were tried yet (`make mutants`)."
        return
    noticed = sum(one.verdict == "caught" for one in breaks)
    yield f"`make mutants`: {noticed} of {len(breaks)} breaks were noticed when they were tried last."
    yield ""
    yield from table()
