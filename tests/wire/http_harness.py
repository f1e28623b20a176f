"""What the HTTP tests stand on: a server in memory with a clock moved by hand, and a client that
carries requests straight into its ASGI application."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from everturn.ids import RandomIds
from everturn.protocol.records import ChannelName, Record
from everturn.protocol.sse import Decoder, Event, decode_batch
from everturn.protocol.tokens import Claims, sign
from everturn.server.assembly import System, build
from everturn.server.settings import Settings
from everturn.storage.memory.streams import MemoryStreams
from everturn.storage.ports.rows import RunFilter, SessionFilter, TaskVersion, Worker

KEY = "tr_dev_abcdefghijklmnopqrstuvwx"
START_MS = 1_776_900_000_000


class ManualClock:
    """Stands still until `advance`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, anyio.Event]] = []

    def now_ms(self) -> int:
        return START_MS + round(self._now * 1000)

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        event = anyio.Event()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), event))
        await event.wait()

    async def jump(self, seconds: float) -> None:
        """Move on at once; sleepers that were due in between wake late."""
        self._now += seconds
        await self.advance(0)

    async def advance(self, seconds: float) -> None:
        """Move on, waking sleepers in their order, and let everything settle after each."""
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now = max(self._now, self._sleepers[0][0])
            heapq.heappop(self._sleepers)[2].set()
            await settle()
        self._now = end
        await settle()


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class Reply:
    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = {name.decode(): value.decode() for name, value in headers}
        self.body = body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.headers}, {self.body[:300]!r})"


def scope_of(method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    raw, _, query = path.partition("?")
    return {
        "type": "http",
        "method": method,
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "root_path": "",
    }


class Stream:
    """An open event stream."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        self.changed = anyio.Event()
        self.left = anyio.Event()
        self._decoder = Decoder()
        self.events: list[Event] = []

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self.body += message["body"]
            self.events.extend(self._decoder.feed(message["body"]))
            self.ended = not message.get("more_body", False)
        event, self.changed = self.changed, anyio.Event()
        event.set()

    @property
    def records(self) -> list[Record]:
        return [r for e in self.events if e.event == "batch" for r in decode_batch(e.data)[0]]

    @property
    def is_done(self) -> bool:
        return self.ended and self.body.endswith(b"data: [DONE]\n\n")

    async def wait(self, condition: Any) -> None:
        with anyio.fail_after(5):
            while not condition():
                await self.changed.wait()


class Http:
    """One server and a client for it."""

    def __init__(self, system: System, clock: ManualClock) -> None:
        self.system = system
        self.clock = clock

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
        pieces: list[bytes] | None = None,
    ) -> Reply:
        """One request. `raw` is a body as it is; `pieces` are sent without a declared length."""
        data = raw if raw is not None else b"" if body is None else msgspec.json.encode(body)
        sent = {"content-type": "application/json"}
        if pieces is None:
            sent["content-length"] = str(len(data))
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        sent |= headers or {}
        parts = [data] if pieces is None else pieces
        messages = iter(
            {"type": "http.request", "body": part, "more_body": n < len(parts) - 1}
            for n, part in enumerate(parts)
        )
        status, found, whole = 0, [], b""

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, found, whole
            if message["type"] == "http.response.start":
                status, found = message["status"], message["headers"]
            else:
                whole += message["body"]

        await self.system.app(scope_of(method, path, sent), receive, send)
        return Reply(status, found, whole)

    @asynccontextmanager
    async def follow(
        self, path: str, *, key: str = KEY, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Stream]:
        """An open event stream; leaving the block disconnects."""
        stream = Stream()
        sent = {"authorization": f"Bearer {key}"} | (headers or {})

        async def receive() -> dict[str, Any]:
            await stream.left.wait()
            return {"type": "http.disconnect"}

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.system.app, scope_of("GET", path, sent), receive, stream.send)
            await stream.wait(lambda: stream.status)
            yield stream
            stream.left.set()

    async def create(self, external_id: str | None = "chat-1", **more: Any) -> Any:
        body = session_body(external_id) | more
        reply = await self("POST", "/api/v1/sessions", body)
        assert reply.status in (200, 201), reply
        return reply.json

    def token(self, *scopes: str, key: str = KEY, sub: str | None = None, **more: Any) -> str:
        claims = Claims(sub=sub or self.system.environment.id, scopes=scopes, **more)
        return sign(claims, key, now_ms=self.clock.now_ms())

    def channel(self, io: str = "out", session: str = "chat-1") -> ChannelName:
        return ChannelName(self.system.environment.id, session, io)  # type: ignore[arg-type]

    async def stored(self) -> Any:
        """Everything that a refused request must leave as it is."""
        services, environment_id = self.system.services, self.system.environment.id
        sessions = await services.state.sessions(
            environment_id, SessionFilter(), limit=100, now_ms=self.clock.now_ms()
        )
        runs = await services.state.runs(environment_id, RunFilter(), limit=100)
        names = [self.channel(io, s.key) for s in sessions.items for io in ("in", "out")]
        bounds = [await services.streams.bounds(name) for name in names]
        return sessions.items, runs.items, bounds


def session_body(external_id: str | None = "chat-1") -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "chat.agent",
        "taskIdentifier": "agent",
        "triggerConfig": {"basePayload": {"messages": [], "trigger": "preload"}},
    }
    return body if external_id is None else body | {"externalId": external_id}


@asynccontextmanager
async def server(*, engine: Any = MemoryStreams, **settings: Any) -> AsyncIterator[Http]:
    """A server in memory that knows the agent `agent` and the task `job`.

    `engine` makes its streams from the clock.
    """
    clock = ManualClock()
    chosen = Settings(**({"secret_key": KEY} | settings))
    streams = engine(clock)
    async with build(chosen, clock=clock, ids=RandomIds(7), streams=streams) as system:
        worker = Worker(
            id="worker_1",
            environment_id=system.environment.id,
            version="v1",
            server_id=system.services.server_id,
            lease_until_ms=clock.now_ms() + 30_000,
            registered_at_ms=clock.now_ms(),
        )
        tasks = [TaskVersion(task_id="agent", kind="agent"), TaskVersion(task_id="job")]
        await system.services.state.register_worker(worker, tasks, {}, now_ms=clock.now_ms())
        yield Http(system, clock)
