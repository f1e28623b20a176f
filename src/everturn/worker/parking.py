"""What holds suspended runs, and lets go of them.

A suspended run is its coroutine and an entry here; it has no task beyond its own, no timer and no
buffers. What it costs is the garbage collector's attention: a full collection walks every frame
of every parked run and stops the loop for seconds when there are many. So the collector is told
to leave them alone: full collections are rare from the start of the process (`calm_collector`),
and as runs park, everything alive is frozen once per FREEZE_EVERY. Frozen objects are never
looked at again, and cycles among them would stay for ever; so the young ones are collected first,
which takes a moment only, and `thaw` undoes it when few runs are left. A run that ends leaves
cycles behind. So after as many ended runs as are parked, and at least ENDED_MAX, everything is
looked at once: what is left behind is never more than what is held, and the pause is shared by as
many runs as it is long for.

Eviction asks the server first (call `evict`), because a message may be waking the run at that
very moment: the server compares and sets, and the answer `evicted: false` means that the wake won
and the run goes on (rulings §1.18). Oldest first; only runs of sessions and those of tasks, which
all have a way back: the next message, or the next attempt with its journal.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import anyio

from everturn.clock import Clock

log = logging.getLogger("everturn.worker")

#: Often, so that a full collection between two freezes has little to look at.
FREEZE_EVERY: Final = 250
#: Objects made before a young collection, young ones before a middle one, middle ones before a
#: full one. The interpreter's own are (700, 10, 10), for programs that hold little.
THRESHOLDS: Final = (2_000, 10, 200)
#: Runs that may end before what they left behind is collected, when fewer than that are parked.
ENDED_MAX: Final = 200
IDLE_TTL_S: Final = 15 * 60.0
PARKED_MAX: Final = 200_000
MEMORY_HIGH: Final = 0.8
#: Runs evicted per look when memory is short: some, then look again.
_EVICT_AT_ONCE: Final = 100
#: Evictions asked for at the same time, so that a drain of thousands shares the store's commits.
_EVICTIONS_AT_ONCE: Final = 32
_LOOK_EVERY_S: Final = 5.0


class Evicted(BaseException):
    """Ends the coroutine of a run that was let go of while it waited.

    Not an Exception, so that an author's `except Exception` cannot keep a run alive that no
    longer belongs to this worker; `finally` blocks run.
    """


class Parked(Protocol):
    """A run as the parking sees it."""

    async def evict(self) -> bool:
        """Ask the server; True when the run was let go of and its coroutine is ending."""
        ...


class Parking:
    """Suspended runs, oldest first."""

    def __init__(
        self,
        clock: Clock,
        *,
        idle_ttl_s: float = IDLE_TTL_S,
        parked_max: int = PARKED_MAX,
        memory_high: float = MEMORY_HIGH,
        memory_used: Callable[[], float] | None = None,
    ) -> None:
        """`memory_used` tells the used share of the memory this process may have, 0 to 1."""
        self._clock = clock
        self._idle_ttl_s = idle_ttl_s
        self._parked_max = parked_max
        self._memory_high = memory_high
        self._memory_used = memory_used or memory_share
        #: Insertion order is age; the value is the time of parking.
        self._parked: dict[Parked, float] = {}
        self._since_freeze = 0
        self._frozen = False
        self._ended = 0

    def __len__(self) -> int:
        return len(self._parked)

    def __iter__(self) -> Iterator[Parked]:
        """The oldest first."""
        return iter(list(self._parked))

    def add(self, run: Parked) -> None:
        self._parked[run] = self._clock.monotonic()
        self._since_freeze += 1
        if self._since_freeze >= FREEZE_EVERY:
            self._freeze()

    def discard(self, run: Parked) -> None:
        self._parked.pop(run, None)
        if self._frozen and len(self._parked) < FREEZE_EVERY // 2:
            self.thaw()

    def _freeze(self) -> None:
        self._since_freeze = 0
        if not self._frozen:
            self._frozen = True
            gc.set_threshold(*THRESHOLDS)
        gc.collect(1)
        gc.freeze()

    def ended(self) -> None:
        """A run of this process is over, parked before or not."""
        self._ended += 1
        if self._ended < max(ENDED_MAX, len(self._parked)):
            return
        self._ended = 0
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def thaw(self) -> None:
        """Give what was frozen back to the collector."""
        if self._frozen:
            self._frozen = False
            gc.unfreeze()

    def overdue(self) -> list[Parked]:
        """Runs to let go of now, oldest first: by age, by number, by memory."""
        aged_until = self._clock.monotonic() - self._idle_ttl_s
        runs = list(self._parked)
        aged = next((n for n, run in enumerate(runs) if self._parked[run] > aged_until), len(runs))
        over = len(runs) - self._parked_max
        short = _EVICT_AT_ONCE if runs and self._memory_used() > self._memory_high else 0
        return runs[: max(aged, over, short)]

    async def keep(self) -> None:
        """Evict what is overdue, every few seconds, until cancelled."""
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            evicted = await evict_all(self.overdue())
            if evicted:
                log.info("run.evicted: let go of %d parked runs, %d left", evicted, len(self))


def calm_collector() -> None:
    """For a process that is a worker: leave alone what its start has made, and look rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


async def evict_all(runs: list[Parked]) -> int:
    """Evict runs, oldest first, several at once; how many went."""
    queue = iter(runs)
    count = 0

    async def evict_next() -> None:
        nonlocal count
        for run in queue:
            if await run.evict():
                count += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(min(_EVICTIONS_AT_ONCE, len(runs))):
            tasks.start_soon(evict_next)
    return count


def memory_share() -> float:
    """The share of this process's memory bound in use; 0 where it cannot be told.

    The bound is the control group's where there is one, else the machine's memory.
    """
    used = _first_number("/proc/self/statm", 1)
    if used is None:
        return 0.0
    bound = _first_number("/sys/fs/cgroup/memory.max", 0)
    if bound is None:
        kib = _first_number("/proc/meminfo", 1)
        bound = kib * 1024 if kib is not None else None
    return used * _PAGE_BYTES / bound if bound else 0.0


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def _first_number(path: str, word: int) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.readline().split()
        return int(text[word])
    except (OSError, ValueError, IndexError):
        return None
