"""Real processes that kill themselves at a counted moment, a few moments of each kind.

`make faults` tries far more of them, in every scenario, and counts them in `docs/faults.md`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest
from kill_points import Processes, try_deaths

from everturn.testing.doomed import Kill

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

#: Which scenario, the first moment and the distance between moments: two or three of each kind.
#: Those of a worker cost the three seconds after which it is given up, so there are fewer.
POINTS = {
    Kill.SERVER_BEFORE_CALL: ("follow_up", 5, 31),
    Kill.SERVER_AFTER_CALL: ("suspend_and_resume", 9, 41),
    Kill.SERVER_BEFORE_MESSAGE: ("stop_in_a_tool", 3, 13),
    Kill.SERVER_AFTER_MESSAGE: ("two_at_once", 4, 13),
    Kill.WORKER_BEFORE_MESSAGE: ("follow_up", 6, 12),
    Kill.WORKER_AFTER_MESSAGE: ("action", 2, 16),
    Kill.BOTH_BEFORE_CALL: ("steer", 7, 47),
    Kill.BOTH_AFTER_CALL: ("suspend_and_resume", 22, 61),
}


@pytest.mark.parametrize("kill", list(Kill), ids=lambda kill: kill.name.lower())
async def test_a_scenario_survives_the_death_of_a_process_at_any_moment(
    tmp_path: Path, kill: Kill
) -> None:
    """P-1 to P-11."""
    scenario, first, step = POINTS[kill]
    async with Processes(tmp_path / "system") as processes:
        result = await try_deaths(processes, scenario, kill, first=first, step=step)
        assert not result.broken, "\n".join([*result.broken, processes.logs()])
    assert result.tried >= 1


async def test_a_doomed_process_dies_at_its_moment_and_not_before(tmp_path: Path) -> None:
    """The proof would be empty if nothing died, or something else did."""
    async with Processes(tmp_path / "system") as processes:
        processes.worker.kill()
        victim = processes.worker = await processes.start(Kill.WORKER_BEFORE_MESSAGE, 1)
        assert victim.alive, "it said hello already, but it is not armed"
        victim.tally.arm()
        processes.server.kill()  # the worker comes back with another hello
        processes.server = await processes.start(Kill.SERVER_BEFORE_CALL, 0)
        with anyio.fail_after(20):
            while victim.alive:
                await anyio.sleep(0.01)
        assert victim.exit_status == -signal.SIGKILL
        assert (victim.tally.count, victim.tally.last) == (1, "sent")


async def test_a_server_that_takes_its_worker_along_leaves_neither(tmp_path: Path) -> None:
    async with Processes(tmp_path / "system") as processes:
        processes.server.kill()
        victim = processes.server = await processes.start(Kill.BOTH_BEFORE_CALL, 1)
        victim.tally.arm(processes.worker.pid)
        with anyio.fail_after(20):
            while victim.alive or processes.worker.alive:
                await anyio.sleep(0.01)
        assert victim.exit_status == processes.worker.exit_status == -signal.SIGKILL
