"""Awaiting something for so long and no longer, by the run's own clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from everturn.clock import Clock, SystemClock


async def within(
    clock: Clock, limit_s: float | None, wait: Callable[[], Awaitable[object]]
) -> bool:
    """Await `wait()` for at most `limit_s` of the clock's seconds. False when time was up."""
    if limit_s is None:
        await wait()
        return True
    if type(clock) is SystemClock:
        # The loop's own alarm: no task, and no exception that holds on to its frames.
        with anyio.move_on_after(limit_s) as scope:
            await wait()
        return not scope.cancelled_caught
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
