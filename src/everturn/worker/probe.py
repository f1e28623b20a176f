"""A probe for a blocked loop: how long was the worst stall, and who caused it.

All runs of a worker share one loop, so one that computes instead of awaiting holds up all others,
heartbeats included. The loop ticks; a thread watches the ticks, and when none came for a while it
writes the main thread's stack to the log, which names the line that blocks. (It cannot stop it.)
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

from everturn.clock import Clock

log = logging.getLogger("everturn.worker")

TICK_S: Final = 0.25
#: A stall this long is worth a line once it is over.
STALL_S: Final = 1.0
#: A loop that has not ticked for this long is reported while it still hangs.
HANG_S: Final = 10.0
_FRAMES_MAX: Final = 12


class StallProbe:
    """Watches the loop it is started on."""

    def __init__(
        self,
        clock: Clock,
        *,
        hang_s: float = HANG_S,
        running: Callable[[], str] = lambda: "",
    ) -> None:
        """`running` names what runs right now, for the log line."""
        self._clock = clock
        self._hang_s = hang_s
        self._running = running
        self._ticked_at = clock.monotonic()
        self._reported = False
        self._stop = threading.Event()
        self.worst_s = 0.0
        #: Stacks written so far; the newest is what a test looks at.
        self.reports = 0
        self.last_stack = ""

    async def run(self) -> None:
        """Tick until cancelled. Call it on the loop to be watched, in the main thread."""
        loop_thread = threading.get_ident()
        watcher = threading.Thread(
            target=self._watch, args=(loop_thread,), name="everturn-probe", daemon=True
        )
        self._ticked_at = self._clock.monotonic()
        watcher.start()
        try:
            while True:
                await self._clock.sleep(TICK_S)
                self._tick()
        finally:
            self._stop.set()
            # The thread looks at the event several times a second; this wait is short.
            watcher.join(timeout=1.0)

    def _tick(self) -> None:
        now = self._clock.monotonic()
        stall_s = now - self._ticked_at - TICK_S
        self._ticked_at = now
        self._reported = False
        if stall_s > self.worst_s:
            self.worst_s = stall_s
            if stall_s >= STALL_S:
                log.warning("loop.stalled: for %.1f s, the longest so far", stall_s)

    def _watch(self, loop_thread: int) -> None:
        while not self._stop.wait(min(TICK_S, self._hang_s / 4)):
            hung_s = self._clock.monotonic() - self._ticked_at
            if hung_s >= self._hang_s and not self._reported:
                self._reported = True
                self._report(loop_thread, hung_s)

    def _report(self, loop_thread: int, hung_s: float) -> None:
        frame = sys._current_frames().get(loop_thread)
        self.last_stack = stack_text(frame)
        self.reports += 1
        log.error(
            "loop.blocked: for %.0f s; runs here: %s\n%s",
            hung_s,
            self._running() or "none",
            self.last_stack,
        )


def stack_text(frame: FrameType | None) -> str:
    """The innermost frames of a stack, outermost first."""
    if frame is None:
        return ""
    return "".join(traceback.format_list(traceback.extract_stack(frame)[-_FRAMES_MAX:]))
