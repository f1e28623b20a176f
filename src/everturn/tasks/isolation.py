"""Where a task's function runs: async ones here, on the loop; sync ones outside of it.

A thread cannot be stopped, so a worker runs `def` tasks in processes of a pool (rulings §5.6),
and sets `sync_runner` around its attempts. Without one (the test harness, a task called by hand)
they run in a thread, which is fine where nothing has to be killed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread

from everturn.tasks import hooks
from everturn.tasks.runtime import RunRuntime

if TYPE_CHECKING:
    from everturn.tasks.definition import Task


class SyncRunner(Protocol):
    """Runs the function of a sync task somewhere it can be stopped."""

    async def run_sync(self, task_id: str, runtime: RunRuntime) -> Any:
        """The function's result. Raises what it raised. Cancelling kills it."""
        ...


sync_runner: ContextVar[SyncRunner | None] = ContextVar("everturn.sync_runner", default=None)


async def run(task: Task[Any], arguments: Mapping[str, Any], runtime: RunRuntime) -> Any:
    """Call the task's function where it belongs, and return its result."""
    if inspect.iscoroutinefunction(task.fn):
        return await task.fn(**arguments_of(task, arguments))
    runner = sync_runner.get()
    if runner is not None:
        return await runner.run_sync(task.task_id, runtime)
    call = functools.partial(task.fn, **arguments_of(task, arguments))
    return await anyio.to_thread.run_sync(call)


def arguments_of(task: Task[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The function's arguments: its first parameter is the payload, whatever it is called."""
    named = dict(arguments)
    first = task.payload_name
    if first is not None:
        named[first] = arguments["payload"]
    return hooks.accepted(task.fn, named)
