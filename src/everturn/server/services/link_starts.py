"""Claims that the worker confirms: its Started frames.

What a run asks for comes behind its start on the link, and must in the state, too: a run that is not
RUNNING there can neither suspend nor end. Engines carry out several calls at once, so calls of a run
wait until its start is stored (`settled`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from everturn.errors import EverturnError
from everturn.protocol.link import Started
from everturn.rules.run_states import RESIDENT

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.server.services.link import Link

log = logging.getLogger("everturn.link")


class Starts:
    """The starts of one link that are on their way into the state."""

    def __init__(self, services: Services, link: Link) -> None:
        self._services = services
        self._link = link
        self._under_way: dict[tuple[str, int], anyio.Event] = {}

    def take(self, frame: Started, tasks: TaskGroup) -> None:
        """Store a start, in a task of its own."""
        stored = self._under_way[frame.run_id, frame.fence] = anyio.Event()
        tasks.start_soon(self._store, frame, stored)

    async def settled(self, run_id: str, fence: int) -> None:
        """Return when no start of that run is under way."""
        while (stored := self._under_way.get((run_id, fence))) is not None:
            await stored.wait()

    async def _store(self, frame: Started, stored: anyio.Event) -> None:
        try:
            if not await self._is_started(frame):
                self._link.lose(frame.run_id, frame.fence)
        except EverturnError as error:
            # The sweep of unconfirmed claims queues it again, and the worker is told then.
            log.warning("run.not_started", extra={"run_id": frame.run_id, "error": error.code})
        finally:
            stored.set()
            if self._under_way.get((frame.run_id, frame.fence)) is stored:
                del self._under_way[frame.run_id, frame.fence]

    async def _is_started(self, frame: Started) -> bool:
        state, link = self._services.state, self._link
        now_ms = self._services.clock.now_ms()
        if await state.start_run(frame.run_id, fence=frame.fence, now_ms=now_ms):
            return True
        run = await state.run(link.environment.id, frame.run_id)
        return (
            run is not None
            and run.fence == frame.fence
            and run.worker_id == link.worker_id
            and run.state in RESIDENT
        )
