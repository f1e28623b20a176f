"""What belongs to one attempt besides its runtime: context, journal, metadata, locals.

Found through the runtime, not through a context variable of its own, so that whoever runs an
attempt (the worker, the test harness) needs to know nothing of it, and code in copied contexts
sees the same objects.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from everturn.errors import ConcurrentWaitError, EverturnError
from everturn.tasks.context import TaskContext, context_of
from everturn.tasks.journal import Journal
from everturn.tasks.metadata import MetadataBuffer
from everturn.tasks.runtime import RunRuntime

log = logging.getLogger("everturn.tasks")

#: `on_wait` and `on_resume` hooks of the task: called with what is waited for.
WaitHook = Callable[[dict[str, Any]], Awaitable[None]]


class RunScope:
    """State of one attempt."""

    def __init__(self, runtime: RunRuntime, *, first_lane: int = 0) -> None:
        self._info = runtime.info
        self._started_ms = runtime.clock.now_ms()
        self._first_lane = first_lane
        self.metadata = MetadataBuffer(runtime.info.metadata)
        self.locals: dict[object, Any] = {}
        self.on_wait: WaitHook | None = None
        self.on_resume: WaitHook | None = None
        self._waiting = False
        #: Weak: the scope is found through its runtime, and must not keep it alive.
        self._runtime = weakref.ref(runtime)
        self.metadata.on_dirty = lambda: _dirty.add(self)

    # Made when first asked for: a parked chat asks for neither, and there are many of those.

    @cached_property
    def context(self) -> TaskContext:
        return context_of(self._info, now_ms=self._started_ms)

    @cached_property
    def journal(self) -> Journal:
        return Journal(self._info, first_lane=self._first_lane)

    async def flush(self) -> None:
        """Send metadata that was not sent yet: before suspending, before the report, and at
        most once a second while the run works (`flush_dirty`)."""
        _dirty.discard(self)
        runtime = self._runtime()
        if runtime is not None:
            await self.metadata.flush(runtime)

    @property
    def waiting(self) -> bool:
        return self._waiting

    def begin_wait(self) -> None:
        """Raises ConcurrentWaitError while another wait of this run is pending."""
        if self._waiting:
            raise ConcurrentWaitError("this run waits already: one wait at a time")
        self._waiting = True

    def end_wait(self) -> None:
        self._waiting = False


#: Attempts with metadata to send; one loop of the worker serves them all, so that a run that
#: writes metadata needs no task or timer of its own.
_dirty: WeakSet[RunScope] = WeakSet()

_scopes: WeakKeyDictionary[RunRuntime, RunScope] = WeakKeyDictionary()


def put(runtime: RunRuntime, scope: RunScope) -> None:
    """Make `scope` the state of that attempt, before anybody asked for it."""
    _scopes[runtime] = scope


def of(runtime: RunRuntime) -> RunScope:
    """The state of the attempt that `runtime` runs; made when first asked for."""
    scope = _scopes.get(runtime)
    if scope is None:
        scope = _scopes[runtime] = RunScope(runtime)
    return scope


async def flush_dirty() -> None:
    """Send the queued metadata of every attempt of this process; called each second."""
    for scope in list(_dirty):
        try:
            await scope.flush()
        except EverturnError as error:
            # The run finds out by itself: its own writes fail too.
            log.warning("metadata.unsent: %s", error)
