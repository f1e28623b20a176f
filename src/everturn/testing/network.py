"""The network of a system in one process: HTTP and worker links without sockets.

HTTP requests go through the ASGI transport, links through the application's own WebSocket
endpoint, so everything but the kernel's sockets is the real thing. Bytes of one link arrive in
order, as TCP keeps them (`sockets.py`); requests have no order among each other. What may happen
to them is the business of a `Weather`: how long they take, which are lost, cut short in the
middle, or never answered, and in which pieces a body arrives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import anyio
import httpx2

from everturn.testing.asgi import CUT_BODY_AT, AsgiApp, AsgiTransport
from everturn.testing.faults import Fault, FaultyCalls, Place, Process
from everturn.testing.sockets import LinkSocket, Owner

URL: Final = "http://everturn.test"


class Weather:
    """What the network does. This one carries everything, in next to no time."""

    def delay_s(self) -> float:
        """How long one message is on its way."""
        return 0.0001

    def request_fate(self) -> Fault | None:
        """What happens to a request (a fault of `Place.HTTP`); None for one that is answered."""
        return None

    def dial_fate(self) -> Fault | None:
        """UNANSWERED for a link whose peer accepts it and never says a word; else None."""
        return None

    def pieces_before(self) -> int:
        """Pieces of a body that arrive whole before its fate strikes."""
        return 0

    def split_at(self, size: int) -> int:
        """Where a piece of `size` bytes is broken in two on its way; `size` leaves it whole."""
        return size


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
    async def dial(self, owner: Owner) -> AsyncIterator[LinkSocket]:
        """Open a worker's link. Raises OSError when no server is there, or it refuses."""
        await anyio.sleep(self.weather.delay_s())
        server = self.server
        if server is None or owner.dead:
            raise ConnectionRefusedError("no server is listening")
        socket = LinkSocket(self, owner)
        self.sockets[socket] = None
        try:
            if self.weather.dial_fate() is Fault.UNANSWERED:
                socket.to_server.dead = socket.to_worker.dead = True
            else:
                server.start_soon(socket.serve, server.app)
                await socket.accepted.wait()
            if socket.broken:
                raise ConnectionResetError("the server refused the link")
            yield socket
        finally:
            socket.leave()
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
        if fate is Fault.REQUEST_TORN:
            half = len(await request.aread()) // 2
            if not half:
                raise httpx2.ReadError("the request was cut short")
            request.extensions = {**request.extensions, CUT_BODY_AT: half}
        response = await server.http.handle_async_request(request)
        await anyio.sleep(network.weather.delay_s())
        if fate is Fault.RESPONSE_LOST:
            await response.aclose()
            raise httpx2.ReadError("the answer was lost")
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Body(response, network.weather, fate, _read_s(request)),
            request=request,
        )


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, as it arrives."""

    def __init__(
        self, response: httpx2.Response, weather: Weather, fate: Fault | None, read_s: float
    ) -> None:
        self._response = response
        self._weather = weather
        self._fate = fate
        self._read_s = read_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = self._weather.pieces_before() if self._fate is not None else -1
        stream = self._response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        async for piece in stream:
            if whole == 0:
                async for part in self._strike(piece):
                    yield part
            whole -= 1
            at = self._weather.split_at(len(piece))
            yield piece[:at]
            if at < len(piece):
                yield piece[at:]

    async def _strike(self, piece: bytes) -> AsyncIterator[bytes]:
        if self._fate is Fault.RESPONSE_TORN:
            yield piece[: len(piece) // 2]
            await self.aclose()
            raise httpx2.ReadError("the answer was cut short")
        if self._fate is Fault.UNANSWERED:
            # The server's end stays open, its socket full, until the client gives up.
            await anyio.sleep(self._read_s)
            raise httpx2.ReadTimeout("nothing arrived")

    async def aclose(self) -> None:
        await self._response.aclose()


def _read_s(request: httpx2.Request) -> float:
    """How long the client waits for bytes."""
    read_s = request.extensions.get("timeout", {}).get("read")
    return float("inf") if read_s is None else float(read_s)
