"""What happens by the clock: waits that are due, delayed runs, links whose grace is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from everturn.errors import EverturnError
from everturn.rules import limits

if TYPE_CHECKING:
    from everturn.server.services import Services

#: Waits ended in one pass.
_DUE_MAX: Final = 500
_IDLE_S: Final = limits.SWEEP_MS / 1000


async def due(services: Services) -> int:
    """Wake runs whose wait has reached its time, and end tokens that have; how many."""
    woken = 0
    now_ms = services.clock.now_ms()
    for run in await services.state.due_runs(now_ms=now_ms, limit=_DUE_MAX):
        woken += await services.waits.wake_if_over(run)
    for token in await services.state.due_waitpoints(now_ms=now_ms, limit=_DUE_MAX):
        woken += await services.waitpoints.time_out(token)
    # A delayed run may be claimable since now. That is a hint, not a repair.
    services.links.kick()
    return woken


async def untold(services: Services) -> int:
    """Completions of tokens that were cut short before whoever waited was woken."""
    return await services.waitpoints.tell_again()


async def until_due(services: Services, woken: int) -> None:
    """Sleep until something is due, at most a sweep interval, or until an earlier one appears.

    A row that stays due although nothing could be woken must not make this spin: after a pass
    without effect the whole interval is slept.
    """
    if woken >= _DUE_MAX:
        return
    pause_s = _IDLE_S
    try:
        next_ms = await services.state.next_due_ms(now_ms=services.clock.now_ms())
    except (EverturnError, OSError):
        next_ms = None  # The store is away; the next pass says so.
    if next_ms is not None:
        ahead_s = (next_ms - services.clock.now_ms()) / 1000
        if ahead_s > 0:
            pause_s = min(ahead_s, _IDLE_S)
    await services.links.timer.wait(pause_s)


async def lost(services: Services) -> int:
    """Give away the runs of workers whose link has been lost for too long; how many workers."""
    return await services.links.give_up_lost()


async def until_lost(services: Services, given_up: int) -> None:
    """Sleep until the next grace is over, or until another link is lost."""
    pause_s = services.links.next_grace_s()
    await services.links.graces.wait(_IDLE_S if pause_s is None else pause_s + 0.001)
