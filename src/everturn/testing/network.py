"""The network of a system in one process: HTTP and worker links without sockets.

HTTP requests go through the ASGI transport, links through the application's own WebSocket
endpoint, so everything but the kernel's sockets is the real thing. Bytes of one link arrive in
order, as TCP keeps them; requests have no order among each other. What may happen to them is the
business of a `Weather`: how long they take, and which are lost. What a connection sees when the
process at its other end dies is what a kernel would show: an end, and what was on its way gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import anyio
import httpx2
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from everturn.protocol.link import PATH, SUBPROTOCOL
from everturn.testing.asgi import AsgiApp, AsgiTransport
from everturn.testing.faults import Fault, FaultyCalls, Place, Process

URL: Final = "http://everturn.test"


class Weather:
    """What the network does. This one carries everything, in next to no time."""

    def delay_s(self) -> float:
        """How long one message is on its way."""
        return 0.0001

    def request_fate(self) -> Fault | None:
        """REQUEST_LOST, RESPONSE_LOST, or None for a request that is answered."""
        return None


class Reached(Protocol):
    """A server that is up."""

    app: AsgiApp
    http: AsgiTransport

    def start_soon(self, work: Callable[..., Any], *args: Any) -> None:
        """Run a connection in the server's own task group."""
        ...


class Network:
    """Everything between processes. `server` is the one that is up, if one is."""

    def __init__(self, key: str, weather: Weather, faults: FaultyCalls) -> None:
        self.key = key
        self.weather = weather
        self.faults = faults
        self.server: Reached | None = None
        self.sockets: dict[LinkSocket, None] = {}

    def http(self, owner: Process | None = None) -> httpx2.AsyncBaseTransport:
        """How a client, or the process `owner`, makes requests."""
        return _Http(self, owner)

    @asynccontextmanager
    async def dial(self, owner: Process) -> AsyncIterator[LinkSocket]:
        """Open a worker's link. Raises OSError when no server is there, or it refuses."""
        await anyio.sleep(self.weather.delay_s())
        server = self.server
        if server is None or owner.dead:
            raise ConnectionRefusedError("no server is listening")
        socket = LinkSocket(self, owner)
        self.sockets[socket] = None
        try:
            server.start_soon(socket.serve, server.app)
            await socket.accepted.wait()
            if socket.broken:
                raise ConnectionResetError("the server refused the link")
            yield socket
        finally:
            socket.cut()
            self.sockets.pop(socket, None)

    def cut_links(self, owner: Process | None = None) -> int:
        """Break the links of a process, or all; how many there were."""
        cut = [s for s in self.sockets if owner is None or s.owner is owner]
        for socket in cut:
            socket.cut()
        return len(cut)


class _Http(httpx2.AsyncBaseTransport):
    def __init__(self, network: Network, owner: Process | None) -> None:
        self._network = network
        self._owner = owner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        network = self._network
        name = f"{request.method} {request.url.path}"
        fate = network.faults.due(Place.HTTP, name) or network.weather.request_fate()
        await anyio.sleep(network.weather.delay_s())
        if fate is Fault.REQUEST_LOST:
            raise httpx2.ReadError("the request was lost")
        server = network.server
        if server is None or (self._owner is not None and self._owner.dead):
            raise httpx2.ConnectError("no server is listening")
        response = await server.http.handle_async_request(request)
        await anyio.sleep(network.weather.delay_s())
        if fate is Fault.RESPONSE_LOST:
            await response.aclose()
            raise httpx2.ReadError("the answer was lost")
        return response


class LinkSocket:
    """Both ends of one worker's connection."""

    subprotocol: str | None = SUBPROTOCOL

    def __init__(self, network: Network, owner: Process) -> None:
        self.owner = owner
        self.accepted = anyio.Event()
        self.broken = False
        #: Nothing arrives at either end before this time: a stalled process or a dead network.
        self.held_until = 0.0
        self._network = network
        self._reason: Close | None = None
        self._to_server = _Pipe(self)
        self._to_worker = _Pipe(self)

    # --- the worker's end ------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self.broken:
            raise self._closed()
        self._pass(self._to_server, message, "to server")

    async def recv(self) -> bytes:
        message = await self._to_worker.get()
        if message is None:
            raise self._closed()
        return message

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await anyio.lowlevel.checkpoint()
        self.cut()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield await self.recv()

    # --- the server's end ------------------------------------------------------------------------

    async def serve(self, app: AsgiApp) -> None:
        """Run the application's endpoint on this connection."""
        events: deque[MutableMapping[str, Any]] = deque([{"type": "websocket.connect"}])

        async def receive() -> MutableMapping[str, Any]:
            if events:
                return events.popleft()
            message = await self._to_server.get()
            if message is None:
                return {"type": "websocket.disconnect", "code": 1006}
            return {"type": "websocket.receive", "bytes": message}

        async def send(event: MutableMapping[str, Any]) -> None:
            await anyio.lowlevel.checkpoint()
            if event["type"] == "websocket.accept":
                self.accepted.set()
            elif event["type"] == "websocket.send" and not self.broken:
                self._pass(self._to_worker, event["bytes"], "to worker")
            elif event["type"] == "websocket.close":
                self._reason = Close(event.get("code", 1000), event.get("reason", ""))
                self.cut()

        scope = {
            "type": "websocket",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {self._network.key}".encode())],
            "subprotocols": [SUBPROTOCOL],
            "extensions": {},
        }
        try:
            await app(scope, receive, send)
        finally:
            self.cut()

    # --- both ------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The connection is over for both ends; what was on its way is lost."""
        self.broken = True
        self.accepted.set()
        self._to_server.end()
        self._to_worker.end()

    def _pass(self, pipe: _Pipe, message: bytes, name: str) -> None:
        fault = self._network.faults.due(Place.LINK, name)
        if fault not in (Fault.LINK_CUT_BEFORE, Fault.WORKER_KILLED_BEFORE):
            pipe.put(message, self._network.weather.delay_s())
        if fault in (Fault.WORKER_KILLED_BEFORE, Fault.WORKER_KILLED_AFTER):
            # What had left for the server arrives; what comes back finds nobody.
            self._to_server.close_behind()
            self.owner.kill()
        elif fault is Fault.LINK_CUT_BEFORE:
            self.cut()
        elif fault is Fault.LINK_CUT_AFTER:
            self._to_server.close_behind()
            self._to_worker.close_behind()

    def _closed(self) -> ConnectionClosedError:
        return ConnectionClosedError(self._reason, None)


class _Pipe:
    """Messages of one direction, in order, each arriving no sooner than its time."""

    def __init__(self, socket: LinkSocket) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._changed = anyio.Event()
        self._ended = False
        self._ends = False

    def put(self, message: bytes, delay_s: float) -> None:
        if self._ends or self._ended:
            return
        at = self._loop.time() + delay_s
        if self._waiting:
            at = max(at, self._waiting[-1][0])
        self._waiting.append((at, message))
        self._change()

    def end(self) -> None:
        """At once; what waits is lost, unless the sender closed behind it."""
        if not self._ends:
            self._ended = True
            self._waiting.clear()
        self._change()

    def close_behind(self) -> None:
        """The end comes when everything that waits has arrived."""
        self._ends = True
        self._change()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while True:
            if self._ended or (self._ends and not self._waiting):
                self._ended = True
                self._socket.cut()
                return None
            wait_s = float("inf")
            if self._waiting:
                due = max(self._waiting[0][0], self._socket.held_until)
                wait_s = due - self._loop.time()
            if wait_s <= 0:
                await anyio.lowlevel.checkpoint()
                if self._waiting:
                    return self._waiting.popleft()[1]
                continue
            changed = self._changed
            with anyio.move_on_after(wait_s):
                await changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
