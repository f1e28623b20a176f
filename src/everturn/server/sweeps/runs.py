"""Runs that nobody works on although somebody should, and endings that were not settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from everturn.rules import limits
from everturn.rules.leases import start_overdue_before
from everturn.rules.run_states import RunEvent, RunState
from everturn.server.services.results import internal_error

if TYPE_CHECKING:
    from everturn.server.services import Services

#: Rows looked after in one pass of one sweep.
_ROWS_MAX: Final = 500


async def expired_workers(services: Services) -> int:
    """Workers whose lease ran out: their runs are given away (rulings §2.6)."""
    expired = await services.state.expired_workers(now_ms=services.clock.now_ms())
    for worker in expired:
        services.links.close(worker.id)
        await services.recovery.worker_gone(worker.id)
    return len(expired)


async def expect_workers(services: Services) -> int:
    """After a start: workers of the process before this one have the grace of a lost link.

    Their links broke with it. One that was killed together with it would otherwise keep its runs
    until its lease is over. With several servers a worker may well be connected to another.
    """
    if services.settings.servers > 1:
        return 0
    now_ms = services.clock.now_ms()
    for environment in await services.state.environments():
        for worker in await services.state.live_workers(environment.id, now_ms=now_ms):
            services.links.expect(worker.id)
    return 0


async def unstarted(services: Services) -> int:
    """Claims that no worker confirmed in time go back to their queue."""
    before_ms = start_overdue_before(services.clock.now_ms())
    runs = await services.state.unstarted_runs(claimed_before_ms=before_ms)
    return await services.recovery.recover_all(runs[:_ROWS_MAX], reason="unstarted", died=False)


async def orphaned(services: Services) -> int:
    """Runs of workers that nobody knows any more: a recovery that was cut short."""
    runs = await services.state.orphaned_runs()
    return await services.recovery.recover_all(runs[:_ROWS_MAX], reason="orphaned", died=True)


async def unchecked(services: Services) -> int:
    """Sessions whose run ended, and whose ending was not settled (rulings §1.9, §1.10)."""
    sessions = await services.state.unchecked_sessions(limit=_ROWS_MAX)
    for session in sessions:
        if session.current_run_id is None:
            continue
        run = await services.state.run(session.environment_id, session.current_run_id)
        if run is not None:
            await services.finishing.settle(run)
    return len(sessions)


async def stranded(services: Services) -> int:
    """Queued session runs whose version nobody serves move to the newest (rulings §1.19)."""
    now_ms = services.clock.now_ms()
    runs = await services.state.stranded_runs(
        queued_before_ms=now_ms - limits.VERSION_WAIT_MS, now_ms=now_ms
    )
    moved = 0
    for run in runs[:_ROWS_MAX]:
        ended = await services.finishing.end(
            run, RunEvent.COMPLETE, only_from=frozenset({RunState.QUEUED})
        )
        moved += ended is not None
    return moved


async def overdue(services: Services) -> int:
    """Runs past their longest duration that their worker did not stop."""
    ended = 0
    for run in (await services.state.overdue_runs(now_ms=services.clock.now_ms()))[:_ROWS_MAX]:
        if run.session_id is not None:
            session = await services.state.session(run.environment_id, run.session_id)
            if session is not None and session.current_run_id == run.id:
                await services.outbox.fence_off(session, run)
        gone = await services.finishing.end(
            run,
            RunEvent.TIME_OUT,
            error=internal_error("MAX_DURATION_EXCEEDED"),
            stop="maximum duration exceeded",
        )
        ended += gone is not None
    return ended
