"""Whole systems through bad weather, from seeds (`testing/simulation.py`).

A failing seed names itself: `simulate(app, <seed>)` is the same run again. `make faults` tries
many more; EVERTURN_SEEDS=first:count tries others here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everturn.testing.simulation import simulate
from everturn.worker.loading import App, load_app

APP = Path(__file__).parent.parent / "apps" / "simulated.py"
FIRST, COUNT = map(int, os.environ.get("EVERTURN_SEEDS", "1:64").split(":"))
GROUP = 8


@pytest.fixture(scope="module")
def app() -> App:
    return load_app(str(APP))


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, GROUP))
def test_every_promise_holds_through_bad_weather(app: App, first: int) -> None:
    """P-1 to P-11."""
    answered = 0
    for seed in range(first, min(first + GROUP, FIRST + COUNT)):
        answered += simulate(app, seed).turns["answered"]
    assert answered > 0


def test_the_same_seed_gives_the_same_records(app: App) -> None:
    for seed in (1, 2, 3):
        assert simulate(app, seed) == simulate(app, seed)


def test_other_seeds_give_other_records(app: App) -> None:
    assert simulate(app, 1).digest != simulate(app, 2).digest


@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (128, "a worker that stalled past its lease stopped its runs and told nobody"),
        (192, "a late Started of an older claim took the newer claim from its worker"),
        (540, "a lost answer, continued on a newer version, was neither given again nor ended"),
        (38, "messages behind a run whose worker had let go of it"),
        (1264, "a half answer that its continuation took for the answer"),
    ],
)
def test_a_seed_that_failed_once_holds(app: App, seed: int, what: str) -> None:
    """P-3."""
    assert simulate(app, seed).seed == seed, what
