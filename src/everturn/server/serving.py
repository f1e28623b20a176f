"""One system on one socket: uvicorn, run from here.

How open event streams end when the server stops matters. An orderly end of the body in the middle
of a turn looks, to clients of the original, like the end of the answer: they do not come back. A
connection that is cut makes them resume from their cursor (wire-protocol §17.5). So a stop first
cuts every connection whose answer has begun and is not complete, which only event streams are
for longer than a moment, and then lets the other requests finish. What has not finished within the
grace is cut too, and so is everything when a second signal comes: to a request that is what a client
going away is, and it ends in order, where a task that is cancelled would not.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import anyio.lowlevel
import uvicorn

from everturn.rules import limits
from everturn.server.direct.first_bytes import FirstBytes
from everturn.server.direct.http2 import Http2

if TYPE_CHECKING:
    import asyncio
    import socket
    from types import FrameType

    from everturn.server.assembly import System

BACKLOG: Final = 8192
#: Objects made before a young collection, young ones before a middle one, middle ones before a
#: full one. The interpreter's own are (700, 10, 10), for programs that hold little.
THRESHOLDS: Final = (2_000, 10, 200)
#: How often a stopping server looks whether it is told to hurry, and how long requests whose
#: connection was cut may take to end by themselves.
_LOOK_S: Final = 0.05
_CUT_S: Final = 1.0


class _Server(uvicorn.Server):
    """uvicorn, told which signals to mind and what to cut at its end."""

    def __init__(
        self, config: uvicorn.Config, *, handle_signals: bool, leaving: Callable[[], object]
    ) -> None:
        """`leaving` is called when the server begins to stop, while connections still stand."""
        super().__init__(config)
        self._leaving = leaving
        self.opened = anyio.Event()
        self._handle_signals = handle_signals
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving()
        # Once round the loop lets the links write what they were just given.
        await anyio.lowlevel.checkpoint()
        for connection in list(self.server_state.connections):
            cycle: Any = getattr(connection, "cycle", None)
            if cycle is not None and cycle.response_started and not cycle.response_complete:
                _cut(connection)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_the_rest)
            await super().shutdown(sockets)
            tasks.cancel_scope.cancel()

    async def _cut_the_rest(self) -> None:
        """When the grace is over, or with the second signal."""
        left_s = float(self.config.timeout_graceful_shutdown or 0) - _CUT_S
        while left_s > 0 and self._signals < 2:
            # A handler of signals must not touch the loop, so it is asked.
            await anyio.sleep(_LOOK_S)
            left_s -= _LOOK_S
        for connection in list(self.server_state.connections):
            _cut(connection)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would leave at the second one with requests still running.
        self._signals += 1
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if not self._handle_signals:
            yield
            return
        with super().capture_signals():
            # `handle_exit` keeps none of them, which uvicorn would raise again at the end: that
            # ends the process before the engines are closed. The caller of `serve` leaves by itself.
            yield

    @property
    def port(self) -> int:
        """The port it listens on."""
        found: int = self.servers[0].sockets[0].getsockname()[1]
        return found


def _cut(connection: object) -> None:
    transport: Any = getattr(connection, "transport", None)
    if transport is not None:
        transport.abort()


def calm_collector() -> None:
    """For a process that is a server: leave alone what its start has made, and look rarely.

    With the interpreter's own thresholds, a busy link makes objects so fast that the loop stops
    for a full pass over everything imported, many times a minute.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


async def serve(
    system: System,
    host: str | None = None,
    port: int | None = None,
    *,
    opened: Callable[[str], None] | None = None,
    handle_signals: bool = False,
) -> None:
    """Serve until cancelled, or until a signal when `handle_signals`.

    `opened` is called with the base URL once connections are accepted. When it is cancelled, the
    server stops in order: event streams are cut, other requests get `settings.shutdown_s` to
    finish. Port 0 takes a free one.

    Raises OSError when the address cannot be listened on.
    """
    settings = system.settings
    host = settings.host if host is None else host
    config = uvicorn.Config(
        system.app,
        host=host,
        port=settings.port if port is None else port,
        loop="none",
        http="httptools",  # and HTTP/2 beside it: see `_run`
        ws="websockets-sansio",
        ws_max_size=limits.LINK_MESSAGE_BYTES_MAX,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(settings.shutdown_s + _CUT_S),
    )
    server = _Server(
        config,
        handle_signals=handle_signals,
        leaving=lambda: system.services.links.drain("the server is stopping"),
    )
    refused: list[OSError] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, server, system, tasks.cancel_scope, refused)
        try:
            await server.opened.wait()
            if settings.public_url is None:
                name = f"[{host}]" if ":" in host else host
                system.services.base_url = f"http://{name}:{server.port}"
            if opened is not None:
                opened(system.services.base_url)
            await anyio.sleep_forever()
        finally:
            server.should_exit = True
    if refused:
        raise refused[0]


async def _run(
    server: _Server, system: System, scope: anyio.CancelScope, refused: list[OSError]
) -> None:
    # Shielded, so that a cancelled server still stops in order; bounded by its own grace time.
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as requests:
            http2 = Http2(system.services.clock, requests)
            requests.start_soon(http2.watch, name="http2")
            # uvicorn calls it as it would call a class; its types know classes only.
            server.config.http = cast("type[asyncio.Protocol]", partial(FirstBytes, http2))
            await _serve(server, refused)
            requests.cancel_scope.cancel()
    scope.cancel()


async def _serve(server: _Server, refused: list[OSError]) -> None:
    try:
        await server.serve()
    except SystemExit:
        # uvicorn's way of saying that the address is taken; it has logged why.
        refused.append(OSError(f"cannot listen on {server.config.host}:{server.config.port}"))
