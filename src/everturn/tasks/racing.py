"""Awaiting something for so long and no longer, by the run's own clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from everturn.clock import Clock


async def within(
    clock: Clock, limit_s: float | None, wait: Callable[[], Awaitable[object]]
) -> bool:
    """Await `wait()` for at most `limit_s` of the clock's seconds. False when time was up."""
    if limit_s is None:
        await wait()
        return True
    done = False
    async with anyio.create_task_group() as race:

        async def alarm() -> None:
            await clock.sleep(limit_s)
            race.cancel_scope.cancel()

        race.start_soon(alarm)
        await wait()
        done = True
        race.cancel_scope.cancel()
    return done
