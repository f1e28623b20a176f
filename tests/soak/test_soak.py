"""A short soak: twenty conversations on real processes, and a fault every few seconds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from soak import Plan, how_to_look, soak
from soak_memory import AGE_S, Life, Memory, slope_of

SECONDS = 20.0


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_is_lost_or_doubled_while_processes_are_killed_every_few_seconds(
    tmp_path: Path,
) -> None:
    """P-1 to P-11 on real processes; `make soak` does this for long."""
    plan = Plan(
        seconds=SECONDS,
        conversations=20,
        workers=2,
        seed=random.randrange(10**9),
        think_s=2.0,
    )
    said: list[str] = []
    figures = soak(plan, tmp_path / "data", said.append)

    assert not figures["broken"], "\n".join(
        [f"seed {plan.seed}", *figures["broken"], *said, how_to_look(tmp_path / "data")]
    )
    assert figures["judged"]["sessions"] >= 20
    assert figures["judged"]["answered"] >= 20
    assert figures["faults"], "something was done to it"


class TestMemory:
    """What counts as flat."""

    def test_one_burst_does_not_move_the_slope(self) -> None:
        samples = [(float(n), 100.0 + (50.0 if 40 < n < 50 else 0.0)) for n in range(100)]
        assert slope_of(samples) == 0

    @pytest.mark.parametrize(("per_hour", "flat"), [(0, True), (100, True), (1_000, False)])
    def test_growth_beyond_an_allocators_steps_is_told(self, per_hour: int, flat: bool) -> None:
        memory = Memory()
        memory.lives[1] = life = Life("server", 0)
        life.samples = [(float(n), 80 + n * per_hour / 3600) for n in range(400)]
        assert memory.report()["server"]["flat"] is flat
        assert bool(memory.complaints()) is not flat

    def test_a_life_that_was_too_short_proves_nothing(self) -> None:
        memory = Memory()
        memory.lives[1] = life = Life("server", 0)
        life.samples = [(float(n), 80.0 + n) for n in range(60)]
        assert memory.report()["server"]["flat"] is None
        assert memory.complaints() == []

    def test_servers_that_start_ever_larger_are_told(self) -> None:
        memory = Memory()
        for n in range(12):
            memory.lives[n] = life = Life("server", 0)
            life.samples = [(AGE_S, 60.0 + 20 * n)]
        assert memory.complaints() == [
            "memory: a server of the same age holds 250.0 MiB and held 90.0 MiB"
        ]
