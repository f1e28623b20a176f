"""A real server in memory, carried in process, and an agent played by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from queue import Queue
from typing import Any

import anyio
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from everturn.client.api import Api
from everturn.client.config import Target
from everturn.server.assembly import System, build
from everturn.server.serving import serve
from everturn.server.settings import Settings
from everturn.storage.ports.rows import TaskVersion, Worker
from everturn.testing.asgi import AsgiTransport

KEY = "tr_dev_abcdefghijklmnopqrstuvwx"
URL = "http://everturn.test"


def text(*deltas: str, id: str = "m1") -> list[dict[str, Any]]:
    """The chunks of a plain answer."""
    return [
        {"type": "start", "messageId": id},
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        *({"type": "text-delta", "id": "t", "delta": delta} for delta in deltas),
        {"type": "text-end", "id": "t"},
        {"type": "finish-step"},
        {"type": "finish"},
    ]


class Stage:
    """The server, the transport that reaches it, and both sides of its channels."""

    def __init__(self, system: System, transport: AsgiTransport) -> None:
        self.system = system
        self.transport = transport
        self.api = Api(Target(URL, KEY, None, transport))

    async def register(self, task: str) -> None:
        """Make a task known, as a worker would."""
        now_ms = self.api.clock.now_ms()
        worker = Worker(
            id="worker_1",
            environment_id=self.system.environment.id,
            version="1",
            server_id="s",
            lease_until_ms=now_ms + 3_600_000,
            registered_at_ms=now_ms,
        )
        tasks = [TaskVersion(task_id=task, kind="agent")]
        await self.system.services.state.register_worker(worker, tasks, {}, now_ms=now_ms)

    async def input(self, session: str) -> list[tuple[int, Any]]:
        """What clients sent: numbers and decoded chunks."""
        records = await self.api.read_records(session, "in")
        return [(record["seqNum"], msgspec.json.decode(record["data"])) for record in records]

    async def write(self, session: str, chunks: Sequence[Mapping[str, Any]]) -> None:
        """Write chunks to `.out`, as the agent."""
        await self.api.write_records(session, [{"data": chunk} for chunk in chunks])

    async def finish(self, session: str, cursor: int | None) -> int:
        """Write a turn-complete; returns its number."""
        headers = [] if cursor is None else [["session-in-event-id", str(cursor)]]
        [seq] = await self.api.write_records(
            session, [{"control": "turn-complete", "headers": headers}]
        )
        return seq

    async def answer_rest(
        self, session: str, chunks: Sequence[Mapping[str, Any]], cursor: int
    ) -> None:
        """What is left of a turn, and its end."""
        await self.write(session, chunks)
        await self.finish(session, cursor)

    async def answer(self, session: str, cursor: int | None, *deltas: str) -> int:
        """A whole turn; returns the number of its turn-complete."""
        await self.write(session, text(*deltas))
        return await self.finish(session, cursor)


@contextmanager
def server_in_a_thread() -> Iterator[tuple[str, BlockingPortal, Stage]]:
    """A server on a loopback socket, in another thread with its own event loop.

    Gives its URL, the portal into that loop, and the agent's side of it.
    """
    url: Queue[str] = Queue()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_system()) as stage,
        portal.wrap_async_context_manager(_on_a_socket(stage, url.put)),
    ):
        yield url.get(timeout=10), portal, stage


@asynccontextmanager
async def _system() -> AsyncIterator[Stage]:
    async with (
        build(Settings(data_dir=None, secret_key=KEY, shutdown_s=1.0)) as system,
        AsgiTransport(system.app) as transport,
    ):
        stage = Stage(system, transport)
        await stage.register("agent")
        yield stage


@asynccontextmanager
async def _on_a_socket(stage: Stage, opened: Callable[[str], None]) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(serve, stage.system, "127.0.0.1", 0, opened=opened))
        yield
        tasks.cancel_scope.cancel()
