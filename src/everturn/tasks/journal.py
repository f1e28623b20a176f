"""The journal: what a recovered run need not do again.

Every operation of a plain task that has an effect outside (a step, a wait, a triggered child)
takes the next position, and stores its result under it before the author sees it. When the run is
interrupted, its next attempt starts from the top with the journal in its hands: an operation
whose position is filled returns what is stored. The key says which operation it was; another key
at the same position means that the code took another way than before, and since nobody can say
which results still fit, the run fails with NonDeterminismError.

Concurrent branches. Branches of one run reach their operations in an order that may differ the
next time, so each asyncio task counts for itself: a *lane*, given in the order in which tasks
reach their first operation, which for the branches of one group is the order they were started
in. An operation's place is `lane.number`; it is part of the stored key, and the position it is
stored under is just a free number.

An attempt that follows a *failure* starts with an empty journal (tasks-and-runs §29.4).
"""

from __future__ import annotations

import asyncio
from typing import Final
from weakref import WeakKeyDictionary

import anyio

from everturn.errors import NonDeterminismError, Unprocessable
from everturn.protocol.runs import RunInfo
from everturn.tasks.runtime import RunRuntime

ENTRIES_MAX: Final = 10_000
RESULT_BYTES_MAX: Final = 1 << 20
#: Key of the journal's own name, which makes the request keys of its children unique.
_NAME: Final = "journal"


class Journal:
    """Places, and the results an earlier attempt stored at them."""

    def __init__(self, info: RunInfo, *, first_lane: int = 0) -> None:
        """`first_lane` keeps apart two processes that write one journal (`worker/child.py`)."""
        self._first_lane = first_lane
        self._stored: dict[str, tuple[str, bytes]] = {}
        self._used = {position for position, _, _ in info.journal}
        self._name: str | None = None
        self._new_name = f"{info.run_id}:{info.fence}"
        #: Made when first needed: most runs start no child.
        self._naming: anyio.Lock | None = None
        for _, key, result in info.journal:
            place, _, operation = key.partition(" ")
            self._stored[place] = (operation, result)
            if place == _NAME:
                self._name = result.decode()
        self._lanes: WeakKeyDictionary[asyncio.Task[object], int] = WeakKeyDictionary()
        self._next: dict[int, int] = {}
        self._position = first_lane

    def take(self, operation: str) -> tuple[str, bytes | None]:
        """The next place, and the result stored there; None when it is yet to be done.

        Raises:
            NonDeterminismError: another operation stood here before.
        """
        lane = self._lane()
        number = self._next.get(lane, 0)
        self._next[lane] = number + 1
        place = f"{lane}.{number}"
        stored = self._stored.get(place)
        if stored is None:
            return place, None
        if stored[0] != operation:
            raise NonDeterminismError(
                f"operation {number} of this run was {stored[0]!r} before, now {operation!r}: "
                "a recovered run has to repeat its steps and waits in the same order"
            )
        return place, stored[1]

    async def put(self, runtime: RunRuntime, place: str, operation: str, result: bytes) -> None:
        """Store a result; durable before it returns.

        Raises:
            Unprocessable: the result is over RESULT_BYTES_MAX bytes, or the run has more than
                ENTRIES_MAX operations.
        """
        if len(result) > RESULT_BYTES_MAX:
            raise Unprocessable(
                f"the result of {operation!r} is {len(result)} bytes, at most "
                f"{RESULT_BYTES_MAX}: store it elsewhere and return a reference"
            )
        while self._position in self._used:
            self._position += 1
        position = self._position
        if position >= ENTRIES_MAX:
            raise Unprocessable(f"a run journals at most {ENTRIES_MAX} steps and waits")
        self._used.add(position)
        await runtime.journal_put(position, f"{place} {operation}", result)

    async def name(self, runtime: RunRuntime) -> str:
        """Names this journal, over interruptions: with a place it is a request key.

        A run that was interrupted between triggering a child and noting its id asks again with
        the same request key and finds the same child. The name is the first fence the journal
        was written under, so it is stored before it is used.
        """
        if self._naming is None:
            self._naming = anyio.Lock()
        async with self._naming:  # several branches may start their first child at once
            if self._name is None:
                await self.put(runtime, _NAME, "", self._new_name.encode())
                self._name = self._new_name
        return self._name

    def _lane(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        lane = self._lanes.get(task)
        if lane is None:
            lane = self._lanes[task] = self._first_lane + len(self._next)
            self._next[lane] = 0
        return lane
