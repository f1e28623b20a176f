"""What `make faults` tries: single faults, seeds, deaths of real processes, the process tests.

Each kind of trial answers with plain figures, which `faults_page.py` puts on the page.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import re
import subprocess
import sys
import tempfile
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

TESTS: Final = Path(__file__).resolve().parents[1]
CRASH: Final = TESTS / "crash"
#: Where the tests with real processes lie that name promises.
FOLDERS: Final = (CRASH, TESTS / "load")
sys.path.insert(0, str(CRASH))

from fault_scenarios import SCENARIOS, play, the_app  # noqa: E402  (lies in the tests' folder)
from kill_points import Killed, try_all  # noqa: E402  (lies in the tests' folder)

from everturn.testing.doomed import Kill  # noqa: E402  (after the path)
from everturn.testing.faults import Fault  # noqa: E402  (after the path)
from everturn.testing.simulation import simulate  # noqa: E402  (after the path)

NAMES: Final = tuple(SCENARIOS)
POINTS_MAX: Final = 5_000
#: What runs against PostgreSQL too: there the state engine is what differs, and these scenarios
#: make every kind of call to it.
ON_POSTGRES: Final = ("follow_up", "suspend_and_resume", "two_at_once")


class Points(msgspec.Struct, frozen=True):
    """One scenario under one fault, at all its points."""

    scenario: str
    fault: str
    tried: int
    broken: tuple[str, ...]


class Seed(msgspec.Struct, frozen=True):
    """What a run of one seed left."""

    number: int
    faults: dict[str, int]
    turns: dict[str, int]
    broken: str


class Directed(msgspec.Struct, frozen=True):
    """The tests that kill real processes at chosen moments: by promise, and what failed."""

    runs: dict[str, int]
    failed: dict[str, int]
    total: int
    broken: tuple[str, ...]


# --- in one process, in virtual time -------------------------------------------------------------


def try_points(job: tuple[str, str, int]) -> Points:
    """A scenario under one kind of fault, at every `step`th call until it outruns the fault."""
    scenario, fault, step = job
    be_quiet()
    tried, broken = 0, []
    for nth in range(1, POINTS_MAX, step):
        try:
            if not play(scenario, Fault[fault], nth).fired:
                break
        except Exception as error:  # whatever it is, it is the finding
            broken.append(f"{scenario}, {fault}, call {nth}: {first_line(error)}")
        tried += 1
    return Points(scenario, fault, tried, tuple(broken))


def try_seed(seed: int) -> Seed:
    """One simulated system."""
    be_quiet()
    try:
        history = simulate(the_app(), seed)
    except Exception as error:  # whatever it is, it is the finding
        return Seed(seed, {}, {}, first_line(error))
    return Seed(seed, dict(history.faults), dict(history.turns), "")


def be_quiet() -> None:
    """What a system says about its faults is not for the terminal."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def first_line(error: BaseException) -> str:
    """The innermost error of a group, in a line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# --- real processes ------------------------------------------------------------------------------


def try_kills(
    scenarios: Sequence[str], done: Callable[[Killed], None], *, step: int
) -> list[Killed]:
    """Scenarios at every `step`th moment, on SQLite."""
    jobs = [(scenario, kill) for kill in Kill for scenario in scenarios]
    with tempfile.TemporaryDirectory() as folder:

        async def run() -> list[Killed]:
            return await try_all(Path(folder), jobs, done, step=step)

        return anyio.run(run)


def try_kills_on_postgres(
    scenarios: Sequence[str], done: Callable[[Killed], None], *, step: int
) -> list[Killed]:
    """The same with the state in PostgreSQL and the streams in SQLite."""
    jobs = [(scenario, kill) for kill in Kill for scenario in scenarios]
    with tempfile.TemporaryDirectory() as folder, _postgres() as server:

        async def run() -> list[Killed]:
            return await try_all(
                Path(folder),
                jobs,
                done,
                step=step,
                environment=lambda: {"EVERTURN_DATABASE_URL": server.create_database()},
            )

        return anyio.run(run)


@contextmanager
def _postgres() -> Iterator[Any]:
    """The server that the contract tests use. It is part of their fixtures."""
    place = TESTS / "contract" / "conftest.py"
    spec = importlib.util.spec_from_file_location("contract_fixtures", place)
    assert spec is not None
    assert spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = fixtures
    spec.loader.exec_module(fixtures)
    with tempfile.TemporaryDirectory() as folder:
        server = fixtures.PostgresServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def run_directed() -> Directed:
    """The tests that start real processes, and the promises each of them names."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "processes"),
                *("--numprocesses", "2", "--dist", "loadfile"),
                *(f"--ignore={CRASH / 'test_crash_kill_points.py'}", f"--junitxml={result}"),
                *map(str, FOLDERS),
            ],
            cwd=TESTS.parent,
            check=False,
            stdout=subprocess.DEVNULL,
        )
        cases = list(ET.parse(result).iter("testcase"))
    cited = dict(citations())
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
    return Directed(dict(runs), dict(failed), len(cases), tuple(broken))


def citations() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which promises each of those tests names, in its name or its docstring."""
    for file in sorted(file for folder in FOLDERS for file in folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = f"{node.name.replace('_', '-')} {ast.get_docstring(node) or ''}"
                yield node.name, promises_in(text.lower())


def promises_in(text: str) -> tuple[str, ...]:
    """The promises a text names, `p-1` and also `p-1 to p-11`, which is all between."""
    found = {int(n) for n in re.findall(r"\bp-?(\d+)\b", text)}
    for first, last in re.findall(r"\bp-(\d+) to p-(\d+)\b", text):
        found.update(range(int(first), int(last) + 1))
    return tuple(f"P-{n}" for n in sorted(found))
