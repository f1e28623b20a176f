"""Server and worker processes that kill themselves, with SIGKILL, at a counted moment.

`testing/faults.py` counts calls in one process and virtual time; here the processes are real, the
engines are on disk, and what dies is dead. A process is told which kind of moment it dies at and
how many of them it lives through; from the moment it is armed it counts. A scenario is driven from
outside, once per moment, until it outruns the process's death.

The count lies in a small file that both sides map into memory, so that it outlives the process and
costs next to nothing. Nothing of this is in the production path: these are entry points of their
own, which put the same server and the same worker together with wrapped ports and sockets.

    process = context.Process(target=serve, args=(Doom(Kill.SERVER_AFTER_CALL, 17, tally), place))

The modules that a process needs are imported here, at the top, so that a fork server which has
imported this module starts one in milliseconds instead of a second.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import mmap
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import pydantic_ai.models.function
import uvloop
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from everturn.clock import SystemClock
from everturn.ids import RandomIds
from everturn.protocol.link import PATH, SUBPROTOCOL
from everturn.rules import limits
from everturn.server import serving
from everturn.server.assembly import System, build
from everturn.server.settings import Settings
from everturn.storage.objects import open_objects
from everturn.storage.sql import SqlState
from everturn.storage.sqlite import SqliteStreams
from everturn.worker.link import link_address
from everturn.worker.loading import load_app
from everturn.worker.sockets import Socket
from everturn.worker.worker import Worker

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from everturn.server.app import App

#: Imported for what they cost at the first start of an app or a loop, and not by name.
PRELOADED: Final = (pydantic_ai.models.function, uvloop)


class Kill(Enum):
    """The kinds of moments at which a process can end. The value is what a person reads."""

    SERVER_BEFORE_CALL = "server, before a store call"
    SERVER_AFTER_CALL = "server, after a store call"
    SERVER_BEFORE_MESSAGE = "server, before a link message"
    SERVER_AFTER_MESSAGE = "server, after a link message"
    WORKER_BEFORE_MESSAGE = "worker, before a link message"
    WORKER_AFTER_MESSAGE = "worker, after a link message"
    BOTH_BEFORE_CALL = "both, before a store call"
    BOTH_AFTER_CALL = "both, after a store call"

    @property
    def of_worker(self) -> bool:
        """Whether it is the worker that counts; the server does otherwise."""
        return self.name.startswith("WORKER")

    @property
    def of_both(self) -> bool:
        """Whether the server takes the worker with it."""
        return self.name.startswith("BOTH")


#: Moments at which both die are the server's.
_ALONE: Final = {
    Kill.BOTH_BEFORE_CALL: Kill.SERVER_BEFORE_CALL,
    Kill.BOTH_AFTER_CALL: Kill.SERVER_AFTER_CALL,
}


@dataclass(frozen=True, slots=True)
class Doom:
    """When a process ends: at the `nth` moment of a kind, counted from 1; never for 0."""

    kill: Kill
    nth: int
    tally: Path


class Tally:
    """What a process has counted, shared with whoever watches it."""

    _LAYOUT: Final = struct.Struct("<III52s")

    def __init__(self, path: Path) -> None:
        """Open it, or make it if there is none: not armed, nothing counted."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < self._LAYOUT.size:
                os.ftruncate(descriptor, self._LAYOUT.size)
            self._memory = mmap.mmap(descriptor, self._LAYOUT.size)
        finally:
            os.close(descriptor)

    @property
    def armed(self) -> bool:
        return bool(self._memory[0])

    @property
    def count(self) -> int:
        """Moments since it was armed."""
        return int(self._LAYOUT.unpack(self._memory)[1])

    @property
    def last(self) -> str:
        """What the newest moment was, such as `state.wake_run`."""
        return str(self._LAYOUT.unpack(self._memory)[3].rstrip(b"\0").decode())

    @property
    def companion(self) -> int | None:
        """The pid of the process that dies with the one that counts; None when it dies alone."""
        return int(self._LAYOUT.unpack(self._memory)[2]) or None

    def arm(self, companion: int | None = None) -> None:
        """Begin to count. Called by whoever drives the scenario."""
        self._memory[:] = self._LAYOUT.pack(1, 0, companion or 0, b"")

    def disarm(self) -> None:
        """Nothing counts from here on, and nothing dies any more."""
        self._memory[0] = 0

    def close(self) -> None:
        self._memory.close()

    def note(self, count: int, name: str) -> None:
        self._memory[:] = self._LAYOUT.pack(1, count, self.companion or 0, name.encode()[:52])


class Moments:
    """The moments of one process."""

    def __init__(self, doom: Doom) -> None:
        self._doom = doom
        self._counts = _ALONE.get(doom.kill, doom.kill)
        self._tally = Tally(doom.tally)
        self._count = 0

    def reached(self, kill: Kill, name: str) -> None:
        """Count, if this is the kind that counts. Does not return from the last one."""
        if kill is not self._counts or not self._tally.armed:
            return
        self._count += 1
        self._tally.note(self._count, name)
        if self._count == self._doom.nth:
            companion = self._tally.companion
            if companion is not None:  # first, so that it never sees the other one gone
                os.kill(companion, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


# --- the server ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where a server listens and what it works on."""

    data_dir: Path
    port: int
    log: Path
    environment: dict[str, str]


def run_server(doom: Doom, place: ServerPlace) -> None:
    """`everturn server`, until it is doomed. The body of a process."""
    _become(place.log, place.environment)
    anyio.run(_serve, doom, place, backend_options={"use_uvloop": True})


async def _serve(doom: Doom, place: ServerPlace) -> None:
    moments = Moments(doom)
    settings = Settings.from_env(
        host="127.0.0.1", port=place.port, data_dir=str(place.data_dir), log_level="info"
    )
    clock, ids = SystemClock(), RandomIds()
    state = await SqlState.open(settings.database, clock=clock, ids=ids, sync=settings.sync)
    path = Path(settings.streams.partition(":///")[2])
    streams = await SqliteStreams.open(path, clock, sync=settings.sync)
    objects = open_objects(place.data_dir.absolute() / "objects")
    # Loosely typed: a wrapper of a port has its methods by forwarding.
    ports: Any = (
        _CountedPort(state, "state", moments),
        _CountedPort(streams, "streams", moments),
        _CountedPort(objects, "objects", moments),
    )
    async with build(
        settings, clock=clock, ids=ids, state=ports[0], streams=ports[1], objects=ports[2]
    ) as system:
        serving.calm_collector()
        await serving.serve(_counting_links(system, moments), handle_signals=True)


class _Counted:
    """Every coroutine method of an object is two moments: before it, and after it."""

    def __init__(self, target: Any, name: str, moments: Moments) -> None:
        self._target = target
        self._name = name
        self._moments = moments

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._target, name)
        if not inspect.iscoroutinefunction(member):
            return member
        call = self._counted(member, f"{self._name}.{name}")
        setattr(self, name, call)  # found without this method from now on
        return call

    def _counted(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            self._moments.reached(Kill.SERVER_BEFORE_CALL, name)
            answer = await method(*args, **options)
            self._moments.reached(Kill.SERVER_AFTER_CALL, name)
            return answer

        return call


class _CountedPort(_Counted):
    def subscribe(self, *args: Any) -> Any:
        """A place in a channel; waiting in it is a call, too."""
        return _Counted(self._target.subscribe(*args), "subscription", self._moments)


def _counting_links(system: System, moments: Moments) -> System:
    """The same system, whose application counts the messages of worker links."""
    app = system.app

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or scope["path"] != PATH:
            await app(scope, receive, send)
            return

        async def received() -> Message:
            event = await receive()
            if event["type"] == "websocket.receive":
                moments.reached(Kill.SERVER_BEFORE_MESSAGE, "received")
                # After what it makes the server do at once: one round of the loop later.
                asyncio.get_running_loop().call_soon(
                    moments.reached, Kill.SERVER_AFTER_MESSAGE, "received"
                )
            return event

        async def sending(event: Message) -> None:
            counts = event["type"] == "websocket.send"
            if counts:
                moments.reached(Kill.SERVER_BEFORE_MESSAGE, "sent")
            await send(event)
            if counts:
                moments.reached(Kill.SERVER_AFTER_MESSAGE, "sent")

        await app(scope, received, sending)

    return replace(system, app=cast("App", counting))


# --- the worker ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker serves, and whom."""

    app: Path
    url: str
    key: str
    log: Path
    environment: dict[str, str]


def run_worker(doom: Doom, place: WorkerPlace) -> None:
    """`everturn worker`, until it is doomed. The body of a process."""
    _become(place.log, place.environment)
    anyio.run(_work, doom, place, backend_options={"use_uvloop": True})


async def _work(doom: Doom, place: WorkerPlace) -> None:
    moments = Moments(doom)
    worker = Worker(
        load_app(str(place.app)),
        place.url,
        place.key,
        dial=partial(_dial, place, moments),
    )
    await worker.run(handle_signals=True)


@asynccontextmanager
async def _dial(place: WorkerPlace, moments: Moments) -> AsyncIterator[Socket]:
    """A connection as `worker/link.py` opens it, whose messages are counted."""
    async with connect(
        link_address(place.url),
        additional_headers={"Authorization": f"Bearer {place.key}"},
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        compression=None,
        max_size=limits.LINK_MESSAGE_BYTES_MAX,
        ping_interval=None,
        close_timeout=1.0,
        proxy=None,
    ) as socket:
        yield _CountedSocket(socket, moments)


class _CountedSocket:
    """A socket of a worker; each message is two moments."""

    def __init__(self, socket: Any, moments: Moments) -> None:
        self._socket = socket
        self._moments = moments

    @property
    def subprotocol(self) -> str | None:
        found: str | None = self._socket.subprotocol
        return found

    async def send(self, message: bytes) -> None:
        self._moments.reached(Kill.WORKER_BEFORE_MESSAGE, "sent")
        await self._socket.send(message)
        self._moments.reached(Kill.WORKER_AFTER_MESSAGE, "sent")

    async def recv(self) -> str | bytes:
        message: str | bytes = await self._socket.recv()
        self._received()
        return message

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._socket.close(code, reason)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        async for message in self._socket:
            self._received()
            yield message

    def _received(self) -> None:
        self._moments.reached(Kill.WORKER_BEFORE_MESSAGE, "received")
        asyncio.get_running_loop().call_soon(
            self._moments.reached, Kill.WORKER_AFTER_MESSAGE, "received"
        )


# --- both ----------------------------------------------------------------------------------------


def _become(log: Path, environment: dict[str, str]) -> None:
    """Be a process of one's own: settings, and output into a file."""
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(process)d %(levelname)s %(message)s"
    )
    logging.getLogger("everturn").setLevel(logging.INFO)
