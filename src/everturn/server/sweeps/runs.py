"""Runs that nobody works on although somebody should, and endings that were not settled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from everturn.errors import EverturnError, Unavailable
from everturn.rules import durations, limits
from everturn.rules.leases import renewed_until, start_overdue_before
from everturn.rules.run_states import RunEvent, RunState
from everturn.server.services.results import internal_error

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.sweeps")

#: Rows looked after in one pass of one sweep.
_ROWS_MAX: Final = 500
_STUCK: Final = frozenset({RunState.QUEUED, RunState.SUSPENDED})


async def expired_workers(services: Services) -> int:
    """Workers whose lease ran out: their runs are given away (rulings §2.6).

    Not those whose lease holds by our stopwatch: then the clock was set forward, and giving all
    runs away at once would interrupt every answer there is.
    """
    now_ms = services.clock.now_ms()
    given_away = 0
    for worker in await services.state.expired_workers(now_ms=now_ms):
        if services.links.lease_holds(worker.id):
            await services.state.renew_worker(worker.id, lease_until_ms=renewed_until(now_ms))
            continue
        services.links.close(worker.id)
        await services.recovery.worker_gone(worker.id)
        given_away += 1
    return given_away


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


async def disagreements(services: Services) -> int:
    """Runs that only their worker believes to be its own, or only the state does."""
    return await services.links.agree()


async def unstarted(services: Services) -> int:
    """Claims that no worker confirmed in time go back to their queue."""
    now_ms = services.clock.now_ms()
    runs = await services.state.unstarted_runs(
        claimed_before_ms=start_overdue_before(now_ms), now_ms=now_ms
    )
    return await services.recovery.recover_all(runs[:_ROWS_MAX], reason="unstarted", died=False)


async def orphaned(services: Services) -> int:
    """Runs of workers that nobody knows any more: a recovery that was cut short."""
    runs = await services.state.orphaned_runs()
    return await services.recovery.recover_all(runs[:_ROWS_MAX], reason="orphaned", died=True)


async def unchecked(services: Services) -> int:
    """Sessions whose run ended, and whose ending was not settled (rulings §1.9, §1.10)."""
    settled = 0
    for session in await services.state.unchecked_sessions(limit=_ROWS_MAX):
        if session.current_run_id is None:
            continue
        run = await services.state.run(session.environment_id, session.current_run_id)
        if run is None:
            continue
        try:
            await services.finishing.settle(run)
        except Unavailable:
            raise
        except EverturnError as error:
            # Of this session alone, whose log cannot be read: the others are looked after.
            log.error("session.unsettled", extra={"session_id": session.id, "error": error.code})
        else:
            settled += 1
    return settled


async def untold(services: Services) -> int:
    """Endings that were interrupted before parents and children heard of them."""
    return await services.finishing.tell_again()


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


async def superseded(services: Services) -> int:
    """Runs that were swapped from outside, and that a crash kept from being ended then.

    No record wakes them any more and nobody claims them, so they would stay for ever. One that
    swapped itself and goes on to its end is RUNNING, and is let be (rulings §1.11).
    """
    ended = 0
    for run in await services.state.superseded_runs(limit=_ROWS_MAX):
        session = await services.state.session(run.environment_id, run.session_id or "")
        if session is not None:
            ended += await services.dispatch.retire(session, run, only_from=_STUCK)
    return ended


async def expired(services: Services) -> int:
    """Runs that nobody claimed within their time to live (tasks-and-runs §4.5)."""
    ended = 0
    now_ms = services.clock.now_ms()
    for run in await services.state.expired_runs(now_ms=now_ms, limit=_ROWS_MAX):
        ttl = durations.written((run.ttl_ms or 0) // 1000)
        gone = await services.finishing.end(
            run,
            RunEvent.EXPIRE,
            error={
                "type": "STRING_ERROR",
                "raw": f"Run expired because the TTL ({ttl}) was reached",
            },
            only_from=frozenset({RunState.QUEUED}),
        )
        ended += gone is not None
    return ended


async def overdue(services: Services) -> int:
    """Runs past their longest duration that their worker did not stop."""
    ended = 0
    for run in (await services.state.overdue_runs(now_ms=services.clock.now_ms()))[:_ROWS_MAX]:
        gone = await services.finishing.end(
            run,
            RunEvent.TIME_OUT,
            error=internal_error("MAX_DURATION_EXCEEDED"),
            stop="maximum duration exceeded",
        )
        ended += gone is not None
    return ended
