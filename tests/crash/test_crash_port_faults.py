"""Any single fault, anywhere on the road: the person gets every answer once, and the log agrees.

Eleven scenarios, ten kinds of fault, at the first call, at later and later ones, until the
scenario outruns the fault. Here a sample of the points, another one for each pair, so that the
suite stays quick; `make faults` tries all of them and writes what it found to `docs/faults.md`.
"""

from __future__ import annotations

import zlib

import pytest
from fault_scenarios import SCENARIOS, play

from everturn.testing.faults import Fault, Place

#: Every so many points are tried: there are about 110, 30 and 6 of them in a scenario.
STEPS = {Place.PORT: 11, Place.LINK: 5, Place.HTTP: 1}
#: More calls than any scenario makes: beyond it, the fault is not being outrun.
POINTS_MAX = 2_000


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_survives_any_single_fault(name: str, fault: Fault) -> None:
    """P-1 to P-11."""
    step = STEPS[fault.place]
    first = 1 + zlib.crc32(f"{name}/{fault.name}".encode()) % step
    for nth in range(first, POINTS_MAX, step):
        if not play(name, fault, nth).fired:
            assert nth > first, "the fault was reached at least once"
            return
    raise AssertionError(f"{name} makes more than {POINTS_MAX} calls")


class TestFoundByTheSweep:
    """Points at which something was lost once."""

    def test_a_wake_that_was_stored_but_not_answered_still_reaches_its_run(self) -> None:
        """P-3: the state said RUNNING, nobody had told the parked run, and nothing would have."""
        for nth in (1, 2):
            assert play("suspend_and_resume", Fault.ANSWER_LOST, nth, only="state.wake_run").fired

    def test_a_wake_that_was_lost_with_the_link_is_repeated_after_a_repeated_suspend(self) -> None:
        """P-3: the repeated call was taken for a sign of life, and the run waited for ever."""
        for nth in range(1, POINTS_MAX):
            if not play("suspend_and_resume", Fault.LINK_CUT_BEFORE, nth, only="to worker").fired:
                assert nth > 5
                return
