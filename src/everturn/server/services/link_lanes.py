"""Appends of the runs on one link: many in flight, in order for each run.

A run's frames are stored one after the other, and what came while one was being stored is stored
together with the next. Different runs do not wait for each other, so the store's group commit
sees all of them at once. Acknowledgements are per frame, and in order per run.

A run has a task only while something of it is being stored, and the task then waits for the next
run that needs one: starting a task in a group costs ten times what waking one does, and a run
that speaks twenty times a second would start twenty.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anyio.abc import TaskGroup

from everturn.errors import EverturnError, Fenced, TooLarge, Unavailable
from everturn.protocol.link import Acked, Append, Refused
from everturn.protocol.records import NewRecord
from everturn.rules import limits

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.server.services.link_sender import Sender

log = logging.getLogger("everturn.link")

#: Bytes received and not yet stored, over all runs of a link; past it the link reads no more.
PENDING_BYTES_MAX: Final = 64 * limits.MIB
_RETRY_S_MAX: Final = 2.0
#: Tasks that wait for work; more than that end when they have none.
_IDLE_MAX: Final = 256


class Lanes:
    """Stores Append frames and answers each with Acked or Refused."""

    def __init__(
        self,
        services: Services,
        sender: Sender,
        tasks: TaskGroup,
        on_fenced: Callable[[str, int], None],
    ) -> None:
        self._services = services
        self._sender = sender
        self._tasks = tasks
        self._on_fenced = on_fenced
        self._waiting: dict[str, deque[Append]] = {}
        self._bytes = 0
        self._room = asyncio.Event()
        self._idle: list[asyncio.Future[str]] = []

    async def put(self, frame: Append) -> None:
        """Take a frame; waits while too much is waiting to be stored."""
        while self._bytes >= PENDING_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
        self._bytes += _size(frame)
        lane = self._waiting.get(frame.run_id)
        if lane is not None:
            lane.append(frame)
            return
        self._waiting[frame.run_id] = deque([frame])
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():  # else the link is ending
                waiting.set_result(frame.run_id)
                return
        self._tasks.start_soon(self._work, frame.run_id)

    async def _work(self, run_id: str) -> None:
        """Drain one run after another. Ends with the link, or when too many wait already."""
        loop = asyncio.get_running_loop()
        while True:
            await self._drain(run_id)
            if len(self._idle) >= _IDLE_MAX:
                return
            following: asyncio.Future[str] = loop.create_future()
            self._idle.append(following)
            run_id = await following

    async def _drain(self, run_id: str) -> None:
        lane = self._waiting[run_id]
        while lane:
            batch = _take(lane)
            try:
                await self._store(batch)
            finally:
                self._bytes -= sum(map(_size, batch))
                self._room.set()
        del self._waiting[run_id]

    async def _store(self, batch: list[Append]) -> None:
        """Store frames that follow each other in one append, and answer each."""
        first = batch[0]
        records = [record for frame in batch for record in frame.records]
        try:
            seq_nums = await self._append(first, records)
        except TooLarge as error:
            if len(batch) == 1:
                self._refuse(first, error)
                return
            # Nothing was stored. Alone, each frame gets its own answer.
            for frame in batch:
                await self._store([frame])
            return
        except EverturnError as error:
            for frame in batch:
                self._refuse(frame, error)
            if isinstance(error, Fenced):
                self._on_fenced(first.run_id, first.fence)
            return
        at = 0
        for frame in batch:
            part = list(seq_nums[at : at + len(frame.records)])
            at += len(frame.records)
            self._sender.send(
                Acked(frame.run_id, frame.fence, frame.first_part, part), f"run:{frame.run_id}"
            )

    async def _append(self, first: Append, records: list[NewRecord]) -> tuple[int, ...]:
        """Append until the store takes it. The parts make trying again harmless (P-5)."""
        delay_s = 0.05
        while True:
            try:
                appended = await self._services.outbox.append_run(
                    first.run_id,
                    first.fence,
                    first.first_part,
                    records,
                )
            except Unavailable as error:
                log.warning(
                    "append.unavailable",
                    extra={"run_id": first.run_id, "reason": error.message},
                )
                await self._services.clock.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_S_MAX)
            else:
                return appended.seq_nums

    def _refuse(self, frame: Append, error: EverturnError) -> None:
        self._sender.send(
            Refused(frame.run_id, frame.fence, frame.first_part, error.code, error.message),
            f"run:{frame.run_id}",
        )


def _take(lane: deque[Append]) -> list[Append]:
    """The next frame and those that continue it, within one append's bounds."""
    batch = [lane.popleft()]
    count, size = len(batch[0].records), _size(batch[0])
    while lane:
        last, frame = batch[-1], lane[0]
        follows = frame.fence == last.fence and frame.first_part == last.first_part + len(
            last.records
        )
        count += len(frame.records)
        size += _size(frame)
        if not follows or count > limits.BATCH_RECORDS_MAX or size > limits.RECORD_BYTES_MAX:
            break
        batch.append(lane.popleft())
    return batch


def _size(frame: Append) -> int:
    records = frame.records
    return len(records[0].body) if len(records) == 1 else sum(len(r.body) for r in records)
