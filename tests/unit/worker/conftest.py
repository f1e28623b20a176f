"""The server end of the link, scripted: real WebSockets on loopback, frames by hand."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from everturn.protocol import link as frames
from everturn.protocol.runs import RunInfo
from everturn.rules import limits
from everturn.tasks import registry as registries
from everturn.tasks.registry import Registry
from everturn.worker.loading import App
from everturn.worker.worker import Worker

F = TypeVar("F")
DEADLINE_S = 10.0
KEY = "tr_dev_test"

Answer = Callable[[dict[str, Any]], Any]


class FakeServer:
    """Answers what every server answers; everything else a test says itself."""

    def __init__(self) -> None:
        self.url = ""
        self.lease_ms = limits.LEASE_MS
        self.heartbeat_ms = limits.HEARTBEAT_MS
        self.lost: list[str] = []
        self.acknowledge = True
        self.answer_beats = True
        self.accept = True
        #: Calls answered by themselves; one that is not here waits for `answer`.
        self.answers: dict[str, Answer] = {
            "suspend": lambda params: {},
            "finish": lambda params: {},
            "metadata": lambda params: {"metadata": b"{}"},
            "journal.put": lambda params: {},
        }
        self.frames: deque[Any] = deque()
        self.messages = 0
        self.connections = 0
        self._came = anyio.Event()
        self._seqs = itertools.count()
        self._stored: dict[tuple[str, int, int], int] = {}
        self._socket: ServerConnection | None = None
        self._packer = frames.Packer(limits.LINK_SLICE_BYTES_MAX)

    async def handle(self, socket: ServerConnection) -> None:
        """One connection of a worker."""
        unpacker: frames.Unpacker[Any] = frames.Unpacker(
            frames.WorkerFrame, limits.LINK_FRAME_BYTES_MAX
        )
        self._socket = socket
        self.connections += 1
        try:
            async for message in socket:
                assert isinstance(message, bytes)
                self.messages += 1
                for frame in unpacker.decode(message):
                    await self._received(frame)
        except ConnectionClosed:
            pass

    async def _received(self, frame: Any) -> None:
        if isinstance(frame, frames.Hello):
            lost, self.lost = self.lost, []
            await self.send(frames.Welcome("env", "dev", self.lease_ms, self.heartbeat_ms, lost))
        elif isinstance(frame, frames.Beat) and self.answer_beats:
            await self.send(frame)
        elif isinstance(frame, frames.Append) and self.acknowledge:
            await self.ack(frame)
        elif isinstance(frame, frames.Call) and frame.method in self.answers:
            await self.answer(frame, self.answers[frame.method](frame.params))
        self.frames.append(frame)
        self._came.set()
        self._came = anyio.Event()

    async def send(self, *out: Any) -> None:
        """Send frames in one message."""
        assert self._socket is not None
        items = [item for frame in out for item in self._packer.encode(frame)]
        await self._socket.send(frames.Packer.message(items))

    async def ack(self, frame: frames.Append) -> None:
        """Acknowledge an append; a part that came before keeps its number."""
        seqs = []
        for number in range(len(frame.records)):
            part = (frame.run_id, frame.fence, frame.first_part + number)
            if part not in self._stored:
                self._stored[part] = next(self._seqs)
            seqs.append(self._stored[part])
        await self.send(frames.Acked(frame.run_id, frame.fence, frame.first_part, seqs))

    async def answer(self, call: frames.Call, value: Any) -> None:
        if isinstance(value, Exception):
            error = {"code": getattr(value, "code", "error"), "message": str(value), "details": {}}
            await self.send(frames.Result(call.id, None, error))
        else:
            await self.send(frames.Result(call.id, value))

    async def next(self, kind: type[F], where: Callable[[F], bool] = lambda frame: True) -> F:
        """The next frame of a kind, taken out of what came."""
        with anyio.fail_after(DEADLINE_S):
            while True:
                came = self._came
                for frame in self.frames:
                    if isinstance(frame, kind) and where(frame):
                        self.frames.remove(frame)
                        return frame
                await came.wait()

    @staticmethod
    async def until(condition: Callable[[], object]) -> None:
        """Wait for something of the worker's own that has no event."""
        with anyio.fail_after(DEADLINE_S):
            while not condition():
                await anyio.sleep(0.005)

    async def call(self, method: str) -> frames.Call:
        return await self.next(frames.Call, lambda call: call.method == method)

    async def outcome(self) -> dict[str, Any]:
        """What the next finished run reported."""
        found: dict[str, Any] = (await self.call("finish")).params["outcome"]
        return found

    async def cut(self) -> None:
        """Drop the connection, as a broken network does."""
        assert self._socket is not None
        self._socket.transport.abort()

    async def claim(self, **members: Any) -> RunInfo:
        """Hand a run to the worker."""
        info = run_info(**members)
        await self.send(frames.Claim(info))
        return info


def run_info(**members: Any) -> RunInfo:
    values: dict[str, Any] = {
        "run_id": "run_c1",
        "task_id": "t",
        "environment_id": "env",
        "environment_slug": "dev",
        "fence": 1,
        "attempt": 1,
        "payload": b"null",
        "version": "v1",
        "queue": "task/t",
        "max_attempts": 3,
        "created_at_ms": 1,
        "started_at_ms": 2,
    }
    return RunInfo(**(values | members))


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()

    def check(connection: Any, request: Any) -> Any:
        if not fake.accept or request.headers.get("Authorization") != f"Bearer {KEY}":
            return connection.respond(401, "no\n")
        return None

    async with serve(
        fake.handle,
        "127.0.0.1",
        0,
        subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]
        process_request=check,
        compression=None,
        max_size=limits.LINK_MESSAGE_BYTES_MAX,
    ) as listening:
        fake.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield fake


@pytest.fixture
def registry() -> Any:
    """What tasks defined in a test register in."""
    with registries.collecting(Registry()) as collected:
        yield collected


@asynccontextmanager
async def working(
    server: FakeServer, registry: Registry, app: App | None = None, **options: Any
) -> AsyncIterator[Worker]:
    """A worker of these tasks (or of an app), connected; stopped at the end."""
    app = app or App("test", msgspec, registry)
    worker = Worker(app, server.url, KEY, version="v1", **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        with anyio.fail_after(DEADLINE_S):
            await worker.link.ready.wait()
        try:
            yield worker
        finally:
            worker.stop()
            worker.stop()


@pytest.fixture
def work(server: FakeServer, registry: Registry) -> Any:
    """`async with work() as worker:`"""
    return lambda **options: working(server, registry, **options)
