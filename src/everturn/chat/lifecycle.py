"""Hooks around the run of a chat agent: those that every task has (chat-agent §3.3, last row).

A run is one process serving a session for a while, so `on_start` and `on_complete` of an agent
come once per run and not once per chat: a conversation that was continued has several of each.
They are what a task's hooks are (`everturn.tasks.hooks`), receive what they declare by name
(`ctx`, `payload`, `signal`, …), and run in the same order; hooks of the whole app
(`@tasks.on_failure`) run for agents too. `on_complete` is the place to let go of what the run
holds: a sub-agent's chat, a connection. A run that is evicted, or whose process dies, has no time
for it.

An agent without such hooks goes without all this: it would cost every parked chat some memory.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from everturn.tasks import codec
from everturn.tasks.hooks import MOMENTS, HookSet, hooks_of
from everturn.tasks.runtime import RunRuntime

F = TypeVar("F", bound=Callable[..., Any])
RUN_HOOKS: Final = frozenset(MOMENTS)


class RunHooks:
    """The decorators for them; each returns the function it was given."""

    def __init__(self) -> None:
        self.run_hooks = HookSet()

    def on_start(self, fn: F) -> F:
        """Before the first attempt of a run."""
        return self.run_hooks.on_start(fn)

    def on_start_attempt(self, fn: F) -> F:
        """Before every attempt of a run."""
        return self.run_hooks.on_start_attempt(fn)

    def on_success(self, fn: F) -> F:
        """The run ended by itself: closed, idle for too long, at `max_turns`, on request."""
        return self.run_hooks.on_success(fn)

    def on_failure(self, fn: F) -> F:
        """The last attempt of the run failed; gets `error`. Failed turns are no failed runs."""
        return self.run_hooks.on_failure(fn)

    def on_complete(self, fn: F) -> F:
        """After either of them; gets `result`."""
        return self.run_hooks.on_complete(fn)

    def on_cancel(self, fn: F) -> F:
        """The run was cancelled while it worked; has 30 s."""
        return self.run_hooks.on_cancel(fn)

    def on_wait(self, fn: F) -> F:
        """Before the run suspends; gets `wait`. `on_chat_suspend` knows more of the chat."""
        return self.run_hooks.on_wait(fn)

    def on_resume(self, fn: F) -> F:
        """After it went on; gets `wait`."""
        return self.run_hooks.on_resume(fn)

    def catch_error(self, fn: F) -> F:
        """A failure of the run; gets `error`, may return a CatchErrorResult."""
        return self.run_hooks.catch_error(fn)

    def cleanup(self, fn: F) -> F:
        """At the end of every attempt that was not stopped from outside."""
        return self.run_hooks.cleanup(fn)

    def middleware(self, fn: F) -> F:
        """Around the run; gets `next`, and has to await it once."""
        return self.run_hooks.middleware(fn)


def surrounded(
    task_id: str, own: HookSet, runtime: RunRuntime, work: Coroutine[Any, Any, bytes | None]
) -> Coroutine[Any, Any, bytes | None]:
    """The work of one attempt inside the hooks there are for it; gives the output as JSON text.

    Raises what `work` raises where there are none; else AttemptFailed for a failure, and what
    ends an attempt without being one as it is.
    """
    if not any(hooks_of(own, moment) for moment in MOMENTS):
        return work
    return _executed(task_id, own, runtime, work)


async def _executed(
    task_id: str, own: HookSet, runtime: RunRuntime, work: Coroutine[Any, Any, bytes | None]
) -> bytes | None:
    # Here, because a chat without hooks around its runs needs nothing of what tasks are made of.
    from everturn.tasks.definition import Task
    from everturn.tasks.execution import Execution

    async def drive() -> Any:
        output = await work
        return None if output is None else codec.decode(output)

    task = Task[Any](
        drive,
        task_id,
        queue=None,
        retry=None,
        max_duration=None,
        schema=None,
        description=None,
        machine=None,
        ttl=None,
    )
    task.include(own)
    try:
        return await Execution(task, runtime).run()
    finally:
        work.close()  # a hook before it may have failed
