"""`at_rest`: return when nothing can run any more.

anyio's own `wait_all_tasks_blocked` asks every tenth of a second, and a harness asks after each
step: a test of ten steps would take a second of doing nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

#: Rounds of the event loop that are watched closely; what is still busy then is left to anyio.
_ROUNDS: Final = 10_000
#: As many rounds in a row nobody may be found busy: callbacks of the loop, which belong to no
#: task, may wake one in the next round.
_QUIET_ROUNDS: Final = 6


async def at_rest() -> None:
    """Return when every other task waits for something, as far as this process can tell.

    Tasks that wait for a thread or a socket count as waiting.
    """
    own = asyncio.current_task()
    quiet = 0
    for _ in range(_ROUNDS):
        busy = any(_can_run(task) for task in asyncio.all_tasks() if task is not own)
        quiet = 0 if busy else quiet + 1
        if quiet == _QUIET_ROUNDS:
            return
        await checkpoint()
    await anyio.wait_all_tasks_blocked()


def _can_run(task: asyncio.Task[object]) -> bool:
    """Whether it is about to be resumed: what it waited for, if anything, has happened."""
    waiter: asyncio.Future[object] | None = getattr(task, "_fut_waiter", None)
    return waiter is None or waiter.done()
