"""The page `docs/faults.md`, from the figures of all trials."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trials import NAMES, ON_POSTGRES, Directed, Killed, Points, Seeds

from everturn.testing.doomed import Kill
from everturn.testing.faults import Fault

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
#: Promises that a scenario puts to the test, and in which; None is all of them. The judge of the
#: log (`testing/checker.py`) looks at every run, the rest are the scenarios' own checks.
SCENARIOS_OF: Final[dict[str, frozenset[str] | None]] = {
    "P-2": None,
    "P-3": None,
    "P-4": None,
    "P-5": None,
    "P-6": frozenset({"stop", "stop_in_a_tool"}),
    "P-7": None,
    "P-8": frozenset({"stop_in_a_tool"}),
    "P-9": frozenset({"action", "upgrade", "suspend_and_resume", "continuation", "close"}),
    "P-10": frozenset({"suspend_and_resume", "continuation"}),
    "P-11": frozenset({"two_at_once"}),
}
#: Promises that the judges of a simulation look at.
SIMULATED: Final = frozenset({"P-1", "P-2", "P-3", "P-4", "P-5", "P-7"})
#: Promises that the judges of a soak look at.
SOAKED: Final = frozenset({"P-1", "P-2", "P-3", "P-4", "P-5", "P-6", "P-7", "P-9", "P-10"})

_INTRODUCTION: Final = """\
# Faults

Written by `make faults`; do not edit. What was done to everturn, how often, and what
held. The promises are those of `ARCHITECTURE.md`.

## By promise

How often each promise was put to the test, and in which way:

* *Single faults*: a whole scenario, with one fault at its n-th call, for every n. The whole road
  (client, HTTP, server, link, worker, agent) in one process and virtual time.
* *Simulated systems*: forty seconds of bad weather each, drawn from a seed.
* *Deaths*: real processes over sockets and files; one of them kills itself (`SIGKILL`) before or
  after its n-th store call or link message.
* *Process tests*: real processes killed, stopped, drained and robbed of their power (the data
  folder is put back to what had been synced) at moments of interest.
* *Soak*: many live conversations on real processes, and a fault every few seconds.
"""


@dataclass
class Results:
    """Everything that was tried."""

    step: int = 1
    kill_step: int = 1
    points: list[Points] = field(default_factory=list)
    seeds: list[Seeds] = field(default_factory=list)
    kills: list[Killed] = field(default_factory=list)
    postgres_kills: list[Killed] = field(default_factory=list)
    directed: Directed | None = None
    soak: dict[str, Any] | None = None

    def broken(self) -> list[str]:
        """A line for each thing that did not hold."""
        found = [line for p in self.points for line in p.broken]
        found += [f"seed {s.seed}: {s.broken}" for s in self.seeds if s.broken]
        found += [line for k in self.kills for line in k.broken]
        found += [f"PostgreSQL: {line}" for k in self.postgres_kills for line in k.broken]
        found += self.directed.broken if self.directed is not None else ()
        found += self.soak["broken"] if self.soak is not None else ()
        return found


def page(results: Results) -> str:
    """The whole page."""
    lines = [_INTRODUCTION]
    lines += _by_promise(results)
    lines += ["", "## By engine", "", *_by_engine(results)]
    lines += ["", "## Single faults", "", *_single(results)]
    lines += ["", "## Simulated systems", "", *_simulated(results.seeds)]
    lines += ["", "## Deaths of real processes", "", *_deaths(results)]
    lines += ["", "## Soak", "", *_soak(results.soak)]
    lines += ["", "## What broke", ""]
    lines += [f"* {line}" for line in results.broken()] or ["Nothing."]
    return "\n".join(lines) + "\n"


# --- by promise, by engine -----------------------------------------------------------------------


def _by_promise(results: Results) -> Iterator[str]:
    yield "| promise | single faults | simulated systems | deaths | process tests | soak | held |"
    yield "|---|---:|---:|---:|---:|---|---|"
    directed, soak = results.directed, results.soak
    for promise, meaning in PROMISES.items():
        points = _testing(promise, results.points)
        deaths = _testing(promise, [*results.kills, *results.postgres_kills])
        seeds = results.seeds if promise in SIMULATED else []
        runs = directed.runs[promise] if directed is not None else 0
        soaked = soak is not None and promise in SOAKED
        tried = [_tried(points), len(seeds), _tried(deaths), runs]
        bad = any(p.broken for p in (*points, *deaths)) or any(s.broken for s in seeds)
        bad = bad or (directed is not None and directed.failed[promise] > 0)
        bad = bad or (soak is not None and soaked and bool(soak["broken"]))
        held = "**no**" if bad else "yes" if any(tried) or soaked else "not tried"
        cells = [*(f"{n or '–'}" for n in tried), "yes" if soaked else "–", held]
        yield f"| {promise}: {meaning} | {' | '.join(cells)} |"


def _testing(promise: str, runs: Sequence[Points | Killed]) -> list[Points | Killed]:
    if promise not in SCENARIOS_OF:
        return []
    scenarios = SCENARIOS_OF[promise]
    return [run for run in runs if scenarios is None or run.scenario in scenarios]


def _tried(runs: Iterable[Points | Killed]) -> int:
    return sum(run.tried for run in runs)


def _by_engine(results: Results) -> Iterator[str]:
    yield "| engine | what ran |"
    yield "|---|---|"
    yield (
        "| memory (streams, state, objects), the executable specification of the others | "
        f"{_tried(results.points)} single faults, {len(results.seeds)} simulated systems |"
    )
    ran = [f"{_tried(results.kills)} deaths at counted moments"]
    if results.directed is not None:
        ran.append(f"{results.directed.total} process tests, power loss among them")
    if results.soak is not None:
        ran.append(f"a soak of {_minutes(results.soak['seconds'])}")
    yield f"| SQLite streams and state, snapshots on disk | {', '.join(ran)} |"
    yield (
        "| SQLite streams, PostgreSQL state, snapshots on disk | "
        f"{_tried(results.postgres_kills)} deaths at counted moments |"
    )
    yield ""
    yield "Every engine passes the contract tests of its port (`tests/contract`) besides; the"
    yield "state engines are also compared with the one in memory over random calls."


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 100 else f"{seconds:.0f} seconds"


# --- the kinds of trials -------------------------------------------------------------------------


def _single(results: Results) -> Iterator[str]:
    every = "every call" if results.step == 1 else f"every {results.step}th call"
    yield f"One fault in each run, at {every} of the scenario, until the scenario outruns it:"
    yield f"{_tried(results.points)} runs."
    yield ""
    yield from _matrix(results.points, {fault.name: fault.value for fault in Fault}, "fault")


def _simulated(seeds: Sequence[Seeds]) -> Iterator[str]:
    if not seeds:
        yield "None ran."
        return
    turns: Counter[str] = sum((s.turns for s in seeds), Counter())
    happened: Counter[str] = sum((s.faults for s in seeds), Counter())
    yield f"{len(seeds)} seeds from {seeds[0].seed} to {seeds[-1].seed}: in each, three people talk"
    yield "to agents on two workers for forty seconds of bad weather. Of their turns"
    yield f"{turns['answered']} were answered and {turns['failed']} failed visibly;"
    yield f"{turns['restarted']} were interrupted and answered again."
    yield ""
    yield "| fault | times |"
    yield "|---|---:|"
    for name, times in happened.most_common():
        yield f"| {name} | {times} |"


def _deaths(results: Results) -> Iterator[str]:
    if not results.kills:
        yield "None ran."
        return
    step = results.kill_step
    every = "each moment" if step == 1 else f"every {step}th moment"
    yield f"A server or a worker dies at {every} of a scenario, and is started again:"
    yield f"{_tried(results.kills)} deaths on SQLite. The client is the official one, over HTTP."
    yield ""
    kinds = {kill.name: kill.value for kill in Kill}
    yield from _matrix(results.kills, kinds, "kill")
    yield ""
    names = ", ".join(f"*{name.replace('_', ' ')}*" for name in ON_POSTGRES)
    yield f"With the state in PostgreSQL, at every {3 * step}th moment of {names}:"
    yield f"{_tried(results.postgres_kills)} deaths."


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
    yield "| fault | times |"
    yield "|---|---:|"
    for name, times in Counter(soak["faults"]).most_common():
        yield f"| {name} | {times} |"
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
