"""Processes for sync tasks: one child of the zygote per run, killed when the run is stopped.

The zygote is started with the worker when the app has a sync task, and again when it died. A child's in-run calls
arrive here and are made on the run's own runtime, so suspending, journalling and fencing are the
same as for async tasks; a suspended sync run keeps its process, which waits for the answer.
"""

from __future__ import annotations

import inspect
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup, UNIXSocketStream

from everturn.client import config
from everturn.errors import ConfigurationError, EverturnError, NotInRunError
from everturn.protocol.runs import RunOutcome
from everturn.tasks import waits
from everturn.tasks.definition import Task
from everturn.tasks.failures import AttemptFailed, internal_error
from everturn.tasks.runtime import RunRuntime
from everturn.worker import packets, zygote
from everturn.worker.child import pickled, raised
from everturn.worker.loading import App

log = logging.getLogger("everturn.worker")

#: Children at the same time; further sync runs wait for one to end.
CHILDREN_MAX: Final = 32
_START_S_MAX: Final = 60.0
_EXIT_CODES: Final = {
    -signal.SIGKILL: "TASK_PROCESS_MAYBE_OOM_KILLED",
    -signal.SIGSEGV: "TASK_PROCESS_SIGSEGV",
}
_METHODS: Final = frozenset(
    {
        "suspend_until",
        "suspend_on_run",
        "suspend_on_token",
        "trigger",
        "run_result",
        "token_result",
        "cancel_run",
        "change_metadata",
        "add_tags",
        "journal_put",
        "mint_token",
    }
)


class _Zygote:
    """A started zygote, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], control: UNIXSocketStream) -> None:
        self.process = process
        self._control = control
        self._forked: list[int] = []
        self._exits: dict[int, int] = {}
        self._said = anyio.Event()
        self._forking = anyio.Lock()
        self.ready = False
        self.failure = ""
        self.gone = False

    async def listen(self) -> None:
        """Take in what the zygote says, until it is gone."""
        unpacker = packets.Unpacker()
        try:
            while True:
                for message in unpacker.feed(await self._control.receive()):
                    self._heard(message)
                    self._say()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self.gone = True
            self._say()

    def _heard(self, message: list[Any]) -> None:
        if message[0] == "ready":
            self.ready = True
        elif message[0] == "failed":
            self.failure = message[1]
        elif message[0] == "forked":
            self._forked.append(message[1])
        elif message[0] == "exit":
            self._exits[message[1]] = message[2]

    def _say(self) -> None:
        self._said.set()
        self._said = anyio.Event()

    async def wait_ready(self) -> None:
        with anyio.fail_after(_START_S_MAX):
            while not (self.ready or self.failure or self.gone):
                await self._said.wait()
        if not self.ready:
            raise ConfigurationError(self.failure or "the process for sync tasks did not start")

    async def fork(self, sock: socket.socket) -> int:
        """A child that serves the other end of `sock`; its process id."""
        async with self._forking:
            with anyio.CancelScope(shield=True), anyio.fail_after(_START_S_MAX):
                # Shielded: a fork whose answer nobody takes would be taken for the next one's.
                await self._control.send_fds(zygote.MESSAGE.pack(zygote.FORK, 0), [sock.fileno()])
                while not self._forked and not self.gone:
                    await self._said.wait()
            if not self._forked:
                raise EverturnError("the process for sync tasks ended")
            return self._forked.pop()

    async def kill(self, pid: int) -> int:
        """End a child if it has not ended; its exit status, for the last time."""
        if pid not in self._exits and not self.gone:
            try:
                await self._control.send(zygote.MESSAGE.pack(zygote.KILL, pid))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.gone = True
        status = await self.exited(pid)
        self._exits.pop(pid, None)
        return status

    async def exited(self, pid: int) -> int:
        """Wait for the end of a child; its exit status, which is kept until `kill`."""
        while pid not in self._exits and not self.gone:
            await self._said.wait()
        return self._exits.get(pid, -signal.SIGKILL)


class Pool:
    """Runs sync tasks in processes; a SyncRunner."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._zygote: _Zygote | None = None
        self._starting = anyio.Lock()
        self._children = anyio.Semaphore(CHILDREN_MAX)
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    @property
    def needed(self) -> bool:
        """Whether the app has a sync task at all."""
        return any(
            isinstance(one, Task) and not inspect.iscoroutinefunction(one.fn)
            for one in self._app.registry.definitions.values()
        )

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        if self.needed:
            self._tasks.start_soon(self._warm_up)
        return self

    async def _warm_up(self) -> None:
        """Start the zygote before the first sync run asks for it."""
        try:
            await self._running_zygote()
        except (EverturnError, TimeoutError) as error:
            # Tried again, and then reported, by the first run that needs it.
            log.error("pool.broken: %s", error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    async def run_sync(self, task_id: str, runtime: RunRuntime) -> Any:
        """Run a sync task's function in a child. Raises what it raised; cancelling kills it."""
        async with self._children, self._child() as (forked, pid, stream):
            # What the run asks the server over HTTP, it asks there and with the worker's key.
            target = config.current()
            order = {
                "info": msgspec.to_builtins(runtime.info, builtin_types=(bytes,)),
                "client": [target.url, target.secret_key, target.branch],
            }
            await stream.send(packets.pack(order))
            reply = await self._serve(stream, runtime)
            if reply is None:
                raise AttemptFailed(_crashed(await forked.exited(pid)))
            if reply[0] == "raise":
                raise raised(reply[1], reply[2])
            return msgspec.json.decode(reply[1])

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[tuple[_Zygote, int, UNIXSocketStream]]:
        forked = await self._running_zygote()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = await forked.fork(theirs)
            except BaseException:
                ours.close()
                raise
        try:
            async with await UNIXSocketStream.from_socket(ours) as stream:
                yield forked, pid, stream
        finally:
            with anyio.move_on_after(5, shield=True):
                await forked.kill(pid)

    async def _serve(self, stream: UNIXSocketStream, runtime: RunRuntime) -> list[Any] | None:
        """Make the child's calls until it has a result; None when it ended without one."""
        unpacker = packets.Unpacker()
        try:
            while True:
                for message in unpacker.feed(await stream.receive()):
                    if message[0] != "call":
                        reply: list[Any] = message
                        return reply
                    await stream.send(packets.pack(await _answer(runtime, message)))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return None

    async def _running_zygote(self) -> _Zygote:
        async with self._starting:
            if self._zygote is None or self._zygote.gone:
                self._zygote = await self._start()
            return self._zygote

    async def _start(self) -> _Zygote:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, once per worker
                [
                    sys.executable,
                    "-m",
                    "everturn.worker.zygote",
                    str(theirs.fileno()),
                    self._app.name,
                ],
                pass_fds=[theirs.fileno()],
            )
        started = _Zygote(process, await UNIXSocketStream.from_socket(ours))
        assert self._tasks is not None
        self._tasks.start_soon(self._keep, started)
        await started.wait_ready()
        return started

    async def _keep(self, started: _Zygote) -> None:
        """Listen to a zygote; it ends when its control socket is closed."""
        try:
            await started.listen()
        finally:
            with anyio.move_on_after(5, shield=True):
                await started._control.aclose()
                await anyio.to_thread.run_sync(started.process.wait, abandon_on_cancel=True)


async def _answer(runtime: RunRuntime, message: list[Any]) -> list[Any]:
    """Make one call of a child on its run."""
    method, args = message[1], message[2]
    try:
        if method not in _METHODS:
            raise NotInRunError(f"a sync task cannot call {method}")
        return [
            "ok",
            msgspec.to_builtins(await _call(runtime, method, args), builtin_types=(bytes,)),
        ]
    except EverturnError as error:
        return ["error", pickled(error), error.message]


async def _call(runtime: RunRuntime, method: str, args: list[Any]) -> Any:
    if method == "suspend_until":
        wait: dict[str, Any] = {
            "type": "duration",
            "date": datetime.fromtimestamp(args[0] / 1000, UTC),
        }
    elif method == "suspend_on_run":
        wait = {"type": "task", "run_id": args[0]}
    elif method == "suspend_on_token":
        wait = {"type": "token", "token": args[0]}
    else:
        return await getattr(runtime, method)(*args)
    async with waits.suspending(wait):
        return await getattr(runtime, method)(*args)


def _crashed(status: int) -> RunOutcome:
    code = _EXIT_CODES.get(status, "TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE")
    return RunOutcome(
        kind="crashed", error=internal_error(code, f"its process ended with status {status}")
    )
