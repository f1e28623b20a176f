"""Attempts whose code does not end when it is told to.

An attempt is stopped by cancelling it, and Python leaves the last word to the code: one that
catches everything in a loop, or whose cleanup waits for ever, goes on. The run must end all the
same, because somebody waits for its answer: after a while the worker reports in its place, and
from then on the code can write nothing. It cannot be killed; it keeps its slot until it ends or
the process does, and the log names it, because only its author can mend it.

A worker that is leaving has no time for that while. It hands over the runs, and when nothing but
such code is left in its process, the process ends without waiting for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from typing import Final

from everturn.clock import Clock
from everturn.worker.attempt import Attempt

log = logging.getLogger("everturn.worker")

#: How long stopped code may take: more than the 30 s that its hooks have when it is cancelled.
GIVE_UP_S: Final = 45.0
#: The same in a process that is leaving, and that its supervisor kills a little later.
GIVE_UP_LEAVING_S: Final = 4.0
#: Exit status of a process that left such code behind.
LEFT_BEHIND: Final = 70
_LOOK_S: Final = 0.5


class Stubborn:
    """Looks after the stopped attempts of one worker."""

    def __init__(
        self,
        clock: Clock,
        attempts: Callable[[], Collection[Attempt]],
        *,
        leaving: Callable[[], bool],
        give_up_s: float = GIVE_UP_S,
        give_up_leaving_s: float = GIVE_UP_LEAVING_S,
    ) -> None:
        """`attempts` are those that have not ended; `leaving` says whether the worker stops."""
        self._clock = clock
        self._attempts = attempts
        self._leaving = leaving
        self._give_up_s = give_up_s
        self._give_up_leaving_s = give_up_leaving_s
        #: What is left in a process that was told to leave; called once, and may not return.
        self.on_left_behind: Callable[[], object] | None = None

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            # Seldom, because a worker may hold ten thousand runs that wait and never come to this.
            await self._clock.sleep(_LOOK_S if self._leaving() else 8 * _LOOK_S)
            limit_s = self._give_up_leaving_s if self._leaving() else self._give_up_s
            attempts = list(self._attempts())
            for attempt in attempts:
                if not attempt.given_up and attempt.stopped_for_s() >= limit_s:
                    await self._give_up(attempt)
            if self._leaving() and attempts and all(one.given_up for one in attempts):
                self._leave(len(attempts))

    async def _give_up(self, attempt: Attempt) -> None:
        info = attempt.runtime.info
        log.error(
            "run.stubborn: the code of %s (%s) goes on %.0f s after it was stopped (%s); "
            "the run ends without it",
            info.task_id,
            info.run_id,
            attempt.stopped_for_s(),
            attempt.stopped,
        )
        await attempt.give_up()

    def _leave(self, count: int) -> None:
        told, self.on_left_behind = self.on_left_behind, None
        if told is not None:
            log.error("worker.left_behind: code of %d runs does not end; leaving without it", count)
            told()


def end_process() -> None:
    """End the process at once: nothing in it that matters is left to be done."""
    os._exit(LEFT_BEHIND)
