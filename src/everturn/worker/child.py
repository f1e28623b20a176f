"""A child of the zygote: runs the function of one sync task, then exits.

Its runtime is the worker's, over a socket: each in-run call is sent, and the process blocks until
the answer comes. Hooks and middleware of the task run in the worker, around this.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from everturn.client import config
from everturn.clock import Clock, SystemClock
from everturn.errors import EverturnError, NotInRunError
from everturn.ids import Ids, RandomIds
from everturn.protocol.records import InputCursor
from everturn.protocol.runs import RunInfo, RunResult, TokenResult
from everturn.tasks import bridge, codec, isolation
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.definition import Task
from everturn.tasks.failures import CompleteTask, stored_error
from everturn.tasks.metadata import FLUSH_S
from everturn.tasks.runtime import Woken
from everturn.tasks.signals import Signal
from everturn.worker import packets
from everturn.worker.loading import App

#: Journal lanes of the child's calls; lower ones are the worker's, for the task's hooks.
FIRST_LANE: Final = 1000


class ChildRuntime:
    """The part of RunRuntime that a sync task can use."""

    def __init__(self, info: RunInfo, sock: socket.socket) -> None:
        self._info = info
        self._sock = sock
        self._clock = SystemClock()
        self._ids = RandomIds()
        self._cancelled = Signal()
        self._draining = Signal()

    @property
    def info(self) -> RunInfo:
        return self._info

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def ids(self) -> Ids:
        return self._ids

    @property
    def cancelled(self) -> Signal:
        return self._cancelled

    @property
    def draining(self) -> Signal:
        return self._draining

    def report(self, *, cursor: InputCursor | None = None, turns: int | None = None) -> None:
        """Sync tasks have nothing to report."""

    async def suspend_until(self, until_ms: int) -> Woken:
        await scopes.of(self).flush()
        return msgspec.convert(self._call("suspend_until", until_ms), Woken)

    async def suspend_on_run(self, run_id: str, *, until_ms: int | None = None) -> Woken:
        await scopes.of(self).flush()
        return msgspec.convert(self._call("suspend_on_run", run_id), Woken)

    async def suspend_on_token(self, token_id: str) -> Woken:
        await scopes.of(self).flush()
        return msgspec.convert(self._call("suspend_on_token", token_id), Woken)

    async def trigger(
        self, task_id: str, payload: bytes, payload_type: str, options: Mapping[str, Any]
    ) -> tuple[str, bool]:
        run_id, is_cached = self._call("trigger", task_id, payload, payload_type, dict(options))
        return run_id, is_cached

    async def run_result(self, run_id: str) -> RunResult | None:
        value = self._call("run_result", run_id)
        return None if value is None else msgspec.convert(value, RunResult)

    async def token_result(self, token_id: str) -> TokenResult:
        return msgspec.convert(self._call("token_result", token_id), TokenResult)

    async def cancel_run(self, run_id: str) -> None:
        self._call("cancel_run", run_id)

    async def change_metadata(
        self, operations: Sequence[Mapping[str, Any]], key: str | None = None
    ) -> None:
        self._call("change_metadata", [dict(one) for one in operations], key)

    async def add_tags(self, tags: Sequence[str]) -> None:
        self._call("add_tags", list(tags))

    async def journal_put(self, position: int, key: str, result: bytes) -> None:
        self._call("journal_put", position, key, result)

    async def mint_token(self, scopes: Sequence[str], ttl_s: int) -> str:
        return str(self._call("mint_token", list(scopes), ttl_s))

    def _call(self, method: str, *args: Any) -> Any:
        packets.send(self._sock, ["call", method, list(args)])
        answer = packets.receive(self._sock)
        if answer[0] == "ok":
            return answer[1]
        raise _unpickled(answer[1]) or EverturnError(answer[2])

    def __getattr__(self, name: str) -> Any:
        raise NotInRunError(f"a sync task cannot use {name}: make it `async def`")


def run_child(app: App, sock: socket.socket) -> int:
    """Run one sync task to its end; the process's exit status."""
    order = packets.receive(sock)
    info = msgspec.convert(order["info"], RunInfo)
    url, secret_key, branch = order["client"]
    config.configure(url=url, secret_key=secret_key, branch=branch)
    definition = app.registry.get(info.task_id)
    assert isinstance(definition, Task), f"no task {info.task_id} in the app"
    runtime = ChildRuntime(info, sock)
    with asyncio.Runner() as runner, runtimes.running(_whole(runtime)):
        bridge.install(runner)
        scope = scopes.RunScope(_whole(runtime), first_lane=FIRST_LANE)
        scopes.put(_whole(runtime), scope)
        _send_metadata_now_and_then(scope)
        reply = _reply(definition, scope, _whole(runtime))
        runner.run(scope.flush())
    packets.send(sock, reply)
    return 0


def _reply(task: Task[Any], scope: scopes.RunScope, runtime: runtimes.RunRuntime) -> list[Any]:
    payload = codec.decode_packet(runtime.info.payload, runtime.info.payload_type)
    arguments = {
        "payload": task.validate(payload),
        "ctx": scope.context,
        "task": task,
        "signal": runtime.cancelled,
        "init": None,
    }
    try:
        result = task.fn(**isolation.arguments_of(task, arguments))
        return ["result", codec.encode(result)]
    except CompleteTask as done:
        return ["result", codec.encode(done.output)]
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # the author's code may raise anything
        return ["raise", pickled(error), stored_error(error)]


def _send_metadata_now_and_then(scope: scopes.RunScope) -> None:
    """Without a loop that turns, metadata goes out as it is written, once a second at most."""
    sent_at = time.monotonic()

    def dirty() -> None:
        nonlocal sent_at
        if bridge.blocking() and time.monotonic() - sent_at >= FLUSH_S:
            sent_at = time.monotonic()
            bridge.run(scope.flush())

    scope.metadata.on_dirty = dirty


def _whole(runtime: ChildRuntime) -> runtimes.RunRuntime:
    """As the whole seam; what a sync task cannot use raises (`__getattr__`)."""
    whole: Any = runtime
    return whole  # type: ignore[no-any-return]  # the one place where the subset is admitted


def pickled(error: BaseException) -> bytes:
    """An exception for the other process; empty when it cannot travel."""
    with contextlib.suppress(Exception):  # an author's exception may refuse in any way
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    return b""


def _unpickled(data: bytes) -> Exception | None:
    """What `pickled` made; both ends are this program, so the bytes are trusted."""
    with contextlib.suppress(Exception):
        found = pickle.loads(data) if data else None
        return found if isinstance(found, Exception) else None
    return None


def raised(data: bytes, stored: dict[str, Any]) -> Exception:
    """The child's exception in the worker, with the stack it had in the child."""
    from everturn.errors import AgentError
    from everturn.tasks.failures import STORED_ATTRIBUTE

    error = _unpickled(data) or AgentError(f"{stored.get('name')}: {stored.get('message')}")
    with contextlib.suppress(AttributeError):
        setattr(error, STORED_ATTRIBUTE, stored)
    return error
