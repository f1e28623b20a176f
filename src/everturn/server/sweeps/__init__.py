"""Sweeps: timed repair of what a crash, a lost hint or a dead process left half done.

Every sweep is safe to run twice, and at the same time as what it repairs: it goes through the
same guarded changes as everybody else. Every pass is bounded; what is left comes with the next
pass. A sweep that repaired something says so in the log, by name.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import anyio

from everturn.errors import EverturnError
from everturn.rules import limits
from everturn.server.sweeps import inputs, relatives, retention, runs, timers

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.sweeps")

Sweep = Callable[["Services"], Awaitable[int]]

#: When the server starts, each until it has succeeded once: what a crash of the server can leave.
AT_START: Final[Mapping[str, Sweep]] = {
    "absent_workers": runs.expect_workers,
    "waits_on_finished_runs": relatives.wake_parents,
    "children_of_cancelled_runs": relatives.cancel_children,
    "unread_input": inputs.ensure_readers,
}
#: Every `limits.SWEEP_MS`.
OFTEN: Final[Mapping[str, Sweep]] = {
    "expired_workers": runs.expired_workers,
    "unstarted_runs": runs.unstarted,
    "orphaned_runs": runs.orphaned,
    "unchecked_sessions": runs.unchecked,
    "interrupted_endings": runs.untold,
    "interrupted_completions": timers.untold,
    "stranded_versions": runs.stranded,
    "expired_runs": runs.expired,
    "overdue_runs": runs.overdue,
    "failed_run_checks": inputs.repeat_checks,
}
#: Every `limits.HEARTBEAT_MS`.
REGULARLY: Final[Mapping[str, Sweep]] = {"disagreements": runs.disagreements}
_SELDOM_S: Final = 600.0
#: Every ten minutes.
SELDOM: Final[Mapping[str, Sweep]] = {
    "input_trims": inputs.trim_all,
    "superseded_runs": runs.superseded,
    # Beside one that crashed, another server may go on for months without a start.
    "waits_on_finished_runs": relatives.wake_parents,
    "children_of_cancelled_runs": relatives.cancel_children,
    "old_rows": retention.forget_old,
}


async def run_sweeps(services: Services) -> None:
    """Run all sweeps until cancelled."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_forever, services, {"due_waits": timers.due}, timers.until_due)
        tasks.start_soon(_forever, services, {"lost_links": timers.lost}, timers.until_lost)
        # Beside the others: with many sessions it takes a while, and leases do not wait for it.
        tasks.start_soon(_at_start, services)
        tasks.start_soon(_forever, services, OFTEN, _often)
        tasks.start_soon(_forever, services, REGULARLY, _regularly)
        tasks.start_soon(_forever, services, SELDOM, _seldom)


async def sweep_once(services: Services, sweeps: Mapping[str, Sweep]) -> int:
    """One pass of each of these; how much they repaired."""
    total = 0
    for name, sweep in sweeps.items():
        total += await _pass(services, name, sweep) or 0
    return total


async def _pass(services: Services, name: str, sweep: Sweep) -> int | None:
    """One pass of one sweep; how much it repaired, None when it could not be made."""
    try:
        repaired = await sweep(services)
    except (EverturnError, OSError) as error:
        # The store is away. What is broken stays broken until the next pass.
        log.warning("sweep.failed", extra={"sweep": name, "error": type(error).__name__})
        return None
    except Exception:
        # The edge of the process: a mistake in one sweep must not end the server, and with
        # it the other repairs and everybody's sessions.
        log.exception("sweep.broken", extra={"sweep": name})
        return None
    if repaired:
        log.info("sweep.repaired", extra={"sweep": name, "count": repaired})
    return repaired


async def _at_start(services: Services) -> None:
    """A server may start before its store does: what could not be looked at is looked at again."""
    left = dict(AT_START)
    while True:
        left = {n: sweep for n, sweep in left.items() if await _pass(services, n, sweep) is None}
        if not left:
            return
        await _often(services, 0)


async def _forever(
    services: Services,
    sweeps: Mapping[str, Sweep],
    pause: Callable[[Services, int], Awaitable[None]],
) -> None:
    while True:
        await pause(services, await sweep_once(services, sweeps))


async def _often(services: Services, repaired: int) -> None:
    await services.clock.sleep(limits.SWEEP_MS / 1000)


async def _regularly(services: Services, repaired: int) -> None:
    await services.clock.sleep(limits.HEARTBEAT_MS / 1000)


async def _seldom(services: Services, repaired: int) -> None:
    await services.clock.sleep(_SELDOM_S)
