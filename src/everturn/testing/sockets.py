"""Both ends of one worker's link, without a socket beneath.

Bytes of one direction arrive in order, as TCP keeps them. A direction may be *held*: what was
sent arrives later, all of it, as after retransmissions. It may be *dead*: nothing that is sent
arrives any more, not even the end of the connection, and the sender never hears of it; that is a
cable pulled on one side, or a middle box that forgot the connection. What a process sees when
the one at the other end dies is what a kernel would show it, as far as the direction carries it:
an end, and what was on its way gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from everturn.protocol.link import PATH, SUBPROTOCOL
from everturn.rules import limits
from everturn.testing.asgi import AsgiApp
from everturn.testing.faults import Fault, Place, Process

if TYPE_CHECKING:
    from everturn.testing.network import Network

#: A stall that outlives the lease: the server gives the worker's runs away meanwhile.
STALL_S: Final = 1.5 * limits.LEASE_MS / 1000


class Owner(Process, Protocol):
    """The worker process at one end of a link."""

    def stall(self, seconds: float) -> None:
        """Let it do nothing for a while, as SIGSTOP does."""
        ...


class LinkSocket:
    """Both ends of one worker's connection."""

    subprotocol: str | None = SUBPROTOCOL

    def __init__(self, network: Network, owner: Owner) -> None:
        self.owner = owner
        self.accepted = anyio.Event()
        #: The worker's end knows that it is over.
        self.broken = False
        #: Nothing arrives at either end before this time: a stalled process or a dead network.
        self.held_until = 0.0
        self.to_server = Pipe(self)
        self.to_worker = Pipe(self)
        self._network = network
        self._reason: Close | None = None

    # --- the worker's end ------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self.broken:
            raise self._closed()
        self._pass(self.to_server, message, "to server")

    async def recv(self) -> bytes:
        message = await self.to_worker.get()
        if message is None:
            raise self._closed()
        return message

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await anyio.lowlevel.checkpoint()
        self.leave()

    def leave(self) -> None:
        """The worker's end closes: it knows at once, the server as far as news reach it."""
        self.broken = True
        self.to_worker.end(here=True)
        self.to_server.end()

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
            message = await self.to_server.get()
            if message is None:
                return {"type": "websocket.disconnect", "code": 1006}
            return {"type": "websocket.receive", "bytes": message}

        async def send(event: MutableMapping[str, Any]) -> None:
            await anyio.lowlevel.checkpoint()
            if event["type"] == "websocket.accept":
                self.accepted.set()
            elif event["type"] == "websocket.send":
                self._pass(self.to_worker, event["bytes"], "to worker")
            elif event["type"] == "websocket.close":
                self._reason = Close(event.get("code", 1000), event.get("reason", ""))
                self._dismiss()

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
            self._dismiss()

    def _dismiss(self) -> None:
        """The server's end closes."""
        self.to_server.end(here=True)
        self._tell_worker()

    # --- both ------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The connection is over for both ends, as far as news of it reach them."""
        self.to_server.end()
        self._tell_worker()

    def _tell_worker(self) -> None:
        self.accepted.set()
        if not self.to_worker.dead:
            self.broken = True
            self.to_worker.end()

    def _pass(self, pipe: Pipe, message: bytes, name: str) -> None:
        fault = self._network.faults.due(Place.LINK, name)
        if fault in (Fault.LINK_DEAD_TO_SERVER, Fault.LINK_DEAD_TO_WORKER):
            dying = fault is Fault.LINK_DEAD_TO_SERVER
            (self.to_server if dying else self.to_worker).dead = True
        if fault is Fault.WORKER_STALLED:
            self.owner.stall(STALL_S)
        if fault not in (Fault.LINK_CUT_BEFORE, Fault.WORKER_KILLED_BEFORE):
            pipe.put(message, self._network.weather.delay_s())
        if fault in (Fault.WORKER_KILLED_BEFORE, Fault.WORKER_KILLED_AFTER):
            # What had left for the server arrives; what comes back finds nobody.
            self.to_server.close_behind()
            self.owner.kill()
        elif fault is Fault.LINK_CUT_BEFORE:
            self.cut()
        elif fault is Fault.LINK_CUT_AFTER:
            self.to_server.close_behind()
            self.to_worker.close_behind()

    def _closed(self) -> ConnectionClosedError:
        return ConnectionClosedError(self._reason, None)


class Pipe:
    """Messages of one direction, in order, each arriving no sooner than its time."""

    def __init__(self, socket: LinkSocket) -> None:
        #: Nothing arrives any more, the end included; see the module.
        self.dead = False
        #: Nothing arrives before this time.
        self.held_until = 0.0
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._changed = anyio.Event()
        self._ended = False
        self._ends = False

    def put(self, message: bytes, delay_s: float) -> None:
        if self.dead or self._ends or self._ended:
            return
        at = self._loop.time() + delay_s
        if self._waiting:
            at = max(at, self._waiting[-1][0])
        self._waiting.append((at, message))
        self._change()

    def end(self, *, here: bool = False) -> None:
        """At once; what waits is lost, unless the sender closed behind it.

        `here`: the end that reads has closed, and needs no news of it.
        """
        if self.dead and not here:
            return
        if here or not self._ends:
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
            if self._ended or (self._ends and not self._waiting and not self.dead):
                self._ended = True
                self._socket.cut()
                return None
            wait_s = float("inf")
            if self._waiting:
                due = max(self._waiting[0][0], self._socket.held_until, self.held_until)
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
