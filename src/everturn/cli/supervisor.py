"""Worker processes as children: started, watched, restarted with back-off, stopped by pid.

A child that ends by itself is started again after 0.2 s, doubling to 5 s while it keeps dying
within ten seconds. Stopping sends SIGTERM, which lets it drain, again to interrupt what it has not
finished then, and at last SIGKILL.

A child outlives nobody: it holds the reading end of a pipe whose writing end is ours alone, and
drains when that is closed, which the system does however we end. Without it a worker whose
`everturn dev` was killed would serve old code for days, and no one would know its pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import anyio
import anyio.abc

from everturn.ids import RandomIds

RESTART_S_MIN = 0.2
RESTART_S_MAX = 5.0
#: Exit status of a worker whose app cannot be loaded: starting it again would change nothing.
UNUSABLE = 78
#: A child that lived this long was healthy: the next restart is quick again.
HEALTHY_S = 10.0
#: How long a child may take to interrupt what it could not finish in its grace.
INTERRUPT_S = 3.0

#: Names to a child the descriptor of its end of the pipe.
_PARENT_FD = "EVERTURN_PARENT_FD"

Gone = Callable[[str], Awaitable[None]]


class Child:
    """One worker process. `worker_id` is new at each start: it is what the server knows it by."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.worker_id = RandomIds().new("worker")
        self._ours: int | None
        theirs, self._ours = os.pipe()
        own = {"EVERTURN_WORKER_ID": self.worker_id, _PARENT_FD: str(theirs)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "everturn", *arguments],
                env={**os.environ, **environment, **own},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs],
                # Its own group: a Ctrl-C in the terminal reaches us alone, and we tell the
                # children.
                process_group=0,
            )
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def wait(self) -> int:
        """The exit status; negative when a signal ended it."""
        status = await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        if self._ours is not None:
            os.close(self._ours)
            self._ours = None
        return status

    async def stop(self, grace_s: float) -> None:
        """SIGTERM; again after `grace_s` seconds, which interrupts what still runs; then SIGKILL.

        An interrupted run goes on elsewhere at no cost, while a death of its process counts.
        """
        for wait_s in (grace_s, INTERRUPT_S):
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with anyio.move_on_after(wait_s):
                await self.wait()
                return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.wait()


def leave_with_parent() -> None:
    """In a child of a supervisor: drain, as on SIGTERM, when the supervisor is gone."""
    named = os.environ.pop(_PARENT_FD, None)
    if named is None:
        return
    pipe = int(named)
    os.set_inheritable(pipe, False)

    def watch() -> None:
        os.read(pipe, 1)  # nothing is ever written: it returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()


class _Slot:
    """A place that holds one child after another, until it is retired."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self._retired = False

    def retire(self) -> None:
        self._retired = True

    def is_retired(self) -> bool:
        return self._retired


class Supervisor:
    """Keeps one worker process alive, and replaces it by a newer one on request."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        grace_s: float,
        on_gone: Gone | None = None,
        on_restart: Callable[[int, float], None] | None = None,
        on_unusable: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            arguments: of the `everturn` command of the child.
            environment: added to our own.
            grace_s: how long a stopped child may drain.
            on_gone: told the worker id of a child that has exited: its runs can move at once.
            on_restart: told exit status and delay in seconds before a restart.
            on_unusable: called when the app cannot be loaded; the child is not started again.
        """
        self._arguments = arguments
        self._environment = environment
        self._grace_s = grace_s
        self._on_gone = on_gone
        self._on_restart = on_restart
        self._on_unusable = on_unusable
        self._slot = _Slot()
        self._tasks: anyio.abc.TaskGroup | None = None

    @property
    def worker_id(self) -> str | None:
        """The id of the newest child."""
        return self._slot.child.worker_id if self._slot.child is not None else None

    async def run(self) -> None:
        """Keep one child running until cancelled; then stop all, within grace."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._keep, self._slot)

    async def replace(self, ready: Callable[[str], Awaitable[bool]], timeout_s: float) -> bool:
        """Start a newer child; once `ready(worker id)` says so, stop the older one.

        False when the newer one did not get ready in time or died: then it is stopped and the
        older one stays.
        """
        assert self._tasks is not None, "run() has not begun"
        older, newer = self._slot, _Slot()
        newer.child = Child(self._arguments, self._environment)
        with anyio.move_on_after(timeout_s):
            while newer.child.running and not await ready(newer.child.worker_id):
                await anyio.sleep(0.05)
            if newer.child.running:
                self._slot = newer
                self._tasks.start_soon(self._keep, newer)
                self._tasks.start_soon(self._retire, older)
                return True
        await newer.child.stop(self._grace_s)
        return False

    async def _retire(self, slot: _Slot) -> None:
        slot.retire()
        if slot.child is not None:
            await slot.child.stop(self._grace_s)

    async def _keep(self, slot: _Slot) -> None:
        delay = RESTART_S_MIN
        try:
            while not slot.is_retired():
                if slot.child is None:
                    slot.child = Child(self._arguments, self._environment)
                started = anyio.current_time()
                status = await slot.child.wait()
                if self._on_gone is not None:
                    await self._on_gone(slot.child.worker_id)
                if slot.is_retired():
                    return
                slot.child = None
                if status == UNUSABLE:
                    if self._on_unusable is not None:
                        self._on_unusable()
                    return
                if anyio.current_time() - started > HEALTHY_S:
                    delay = RESTART_S_MIN
                if self._on_restart is not None:
                    self._on_restart(status, delay)
                await anyio.sleep(delay)
                delay = min(delay * 2, RESTART_S_MAX)
        finally:
            if slot.child is not None:
                with anyio.CancelScope(shield=True):
                    await slot.child.stop(self._grace_s)
