"""Parents and children: what a crash between an ending and its telling left behind.

Runs that wait for a run that is final or for a token that is completed, and children of a run that
was cancelled. Only a crash, or a store that was away for long, leaves these; so all runs that are
alive are looked at when a server starts, and then seldom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from everturn.rules import limits
from everturn.rules.run_states import FINAL, RunState
from everturn.storage.ports.rows import Run, RunFilter

if TYPE_CHECKING:
    from everturn.server.services import Services

#: Runs looked at in one environment. Beyond it there are more runs alive than one server serves.
_RUNS_MAX: Final = 200_000
_ALIVE: Final = tuple(state for state in RunState if state not in FINAL)


async def wake_parents(services: Services) -> int:
    """Wake suspended runs whose wait for a run or a token is over by now; how many."""
    woken = 0
    async for run in _runs(services, (RunState.SUSPENDED,)):
        if run.wait is not None and run.wait.kind in ("run", "token"):
            woken += await services.waits.wake_if_over(run)
    return woken


async def cancel_children(services: Services) -> int:
    """Cancel what is still alive beneath a cancelled run; how many."""
    cancelled = 0
    async for run in _runs(services, _ALIVE):
        if run.parent_run_id is None:
            continue
        parent = await services.state.run(run.environment_id, run.parent_run_id)
        if parent is not None and parent.state is RunState.CANCELED:
            await services.runs.cancel(run.environment_id, run.id, "Parent run was cancelled")
            cancelled += 1
    return cancelled


async def _runs(services: Services, states: tuple[RunState, ...]) -> AsyncIterator[Run]:
    """Runs in these states, of every environment, page by page."""
    for environment in await services.state.environments():
        after: str | None = None
        seen = 0
        while seen < _RUNS_MAX:
            page = await services.state.runs(
                environment.id,
                RunFilter(states=states),
                limit=limits.PAGE_SIZE_MAX,
                after=after,
            )
            for run in page.items:
                yield run
            seen += len(page.items)
            after = page.next
            if after is None:
                break
