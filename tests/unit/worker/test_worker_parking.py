"""Parking: order and reasons of eviction, the collector, and the stall probe."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import anyio
import pytest

from everturn.clock import SystemClock
from everturn.worker.parking import ENDED_MAX, FREEZE_EVERY, Parking, evict_all, memory_share
from everturn.worker.probe import StallProbe

pytestmark = pytest.mark.anyio


class Clock(SystemClock):
    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at


class Run:
    def __init__(self, goes: bool = True) -> None:
        self.goes = goes

    async def evict(self) -> bool:
        return self.goes


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


async def test_the_oldest_are_evicted_when_their_time_is_over() -> None:
    clock = Clock()
    parking = Parking(clock, idle_ttl_s=10, memory_used=lambda: 0.0)
    old, young = Run(), Run()
    parking.add(old)
    clock.at = 5
    parking.add(young)
    assert parking.overdue() == []
    clock.at = 11

    assert parking.overdue() == [old]


async def test_over_the_cap_the_oldest_go() -> None:
    parking = Parking(Clock(), parked_max=2, memory_used=lambda: 0.0)
    runs = [Run() for _ in range(5)]
    for run in runs:
        parking.add(run)

    assert parking.overdue() == runs[:3]


async def test_when_memory_is_short_some_of_the_oldest_go() -> None:
    """Conformance 144."""
    parking = Parking(Clock(), memory_used=lambda: 0.9)
    runs = [Run() for _ in range(150)]
    for run in runs:
        parking.add(run)

    assert parking.overdue() == runs[:100]


async def test_evicting_counts_those_that_went() -> None:
    assert await evict_all([Run(), Run(goes=False), Run()]) == 2


async def test_the_collector_leaves_many_parked_runs_alone() -> None:
    parking = Parking(Clock(), memory_used=lambda: 0.0)
    runs = [Run() for _ in range(FREEZE_EVERY)]
    for run in runs:
        parking.add(run)
    assert gc.get_freeze_count() > 0
    for run in runs:
        parking.discard(run)

    assert gc.get_freeze_count() == 0


async def test_the_used_memory_is_a_share() -> None:
    assert 0 <= memory_share() < 1


async def test_a_blocked_loop_is_reported_with_the_line_that_blocks() -> None:
    """Conformance 146."""
    probe = StallProbe(SystemClock(), hang_s=0.2, running=lambda: "run_c1 (t)")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(probe.run)
        await anyio.lowlevel.checkpoint()
        _compute_for_a_while(probe)
        tasks.cancel_scope.cancel()

    assert probe.reports == 1
    assert "_compute_for_a_while" in probe.last_stack


def _compute_for_a_while(probe: StallProbe) -> None:
    until = time.monotonic() + 10
    while not probe.reports and time.monotonic() < until:
        pass


async def test_what_ended_runs_leave_behind_is_collected_though_others_stay_parked() -> None:
    """Frozen while they were parked, their cycles would otherwise stay for as long as others are."""

    class Left:
        def __init__(self) -> None:
            self.itself = self

    left = Left()
    gone = weakref.ref(left)
    parking = Parking(Clock())
    gc.collect()
    gc.freeze()
    try:
        del left
        gc.collect()
        assert gone() is not None, "it is frozen"
        for _ in range(ENDED_MAX):
            parking.ended()
        assert gone() is None
    finally:
        gc.unfreeze()
