"""The figures of the stages of `make faults`, kept in a folder between them, one file each."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec
from trials import Directed, Killed, Points, Seed

T = TypeVar("T")

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "faults"


class Seeds(msgspec.Struct, frozen=True, kw_only=True):
    """Many simulated systems, summed up."""

    first: int
    last: int
    faults: dict[str, int]
    turns: dict[str, int]
    broken: tuple[str, ...]

    @property
    def tried(self) -> int:
        return self.last - self.first + 1


class Stage(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What one stage found: rows of its kind, and of which tree that is true."""

    rows: tuple[T, ...]
    #: Every call or moment for 1, every second for 2.
    step: int
    #: The commit it ran on, with a `+` when the tree held more than that.
    commit: str


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What the last run of each stage found; None for one that never ran."""

    single: Stage[Points] | None = None
    seeds: Stage[Seeds] | None = None
    deaths: Stage[Killed] | None = None
    postgres: Stage[Killed] | None = None
    processes: Stage[Directed] | None = None
    soak: dict[str, Any] | None = None

    def broken(self) -> list[str]:
        """A line for each thing that did not hold."""
        found = [line for run in rows(self.single) for line in run.broken]
        found += [line for run in rows(self.seeds) for line in run.broken]
        found += [line for run in rows(self.deaths) for line in run.broken]
        found += [f"PostgreSQL: {line}" for run in rows(self.postgres) for line in run.broken]
        found += [line for run in rows(self.processes) for line in run.broken]
        return [*found, *(self.soak["broken"] if self.soak is not None else ())]


def rows(stage: Stage[T] | None) -> Sequence[T]:
    """The rows of a stage; none when it did not run."""
    return () if stage is None else stage.rows


def keep(folder: Path, name: str, found: Sequence[Any], *, step: int) -> None:
    """Put down what a stage found, over what its last run had."""
    if name == "seeds":
        found = [_sum(found)]
    stage = Stage(rows=tuple(found), step=step, commit=_commit())
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(msgspec.to_builtins(stage), indent=1)
    (folder / f"{name}.json").write_text(text + "\n")


def load(folder: Path) -> Results:
    """Everything that is kept there. The file of the soak is `make soak`'s."""
    kept = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return msgspec.convert(kept, Results)


def _sum(seeds: Sequence[Seed]) -> Seeds:
    return Seeds(
        first=seeds[0].number,
        last=seeds[-1].number,
        faults=dict(sum((Counter(s.faults) for s in seeds), Counter()).most_common()),
        turns=dict(sum((Counter(s.turns) for s in seeds), Counter())),
        broken=tuple(f"seed {s.number}: {s.broken}" for s in seeds if s.broken),
    )


def _commit() -> str:
    """The commit of the tree; "unknown" where it is no clone."""
    try:
        command = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
        done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
