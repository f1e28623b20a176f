"""One port for two protocols: what a connection says first decides which it speaks.

A client that knows it talks HTTP/2 opens with `PRI * HTTP/2.0`; no request of HTTP/1.1 begins with
those three letters. So the first bytes are looked at, and the connection is handed over, bytes
and all, to the protocol they belong to. After that this module has no part in it.

The server sees a connection here like any other: it is among those that a stop closes.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from everturn.server.direct.http2 import Connection, Http2

_MARK: Final = b"PRI"


class FirstBytes(asyncio.Protocol):
    """A connection that has not said yet what it speaks. Made by uvicorn, hence its arguments."""

    def __init__(
        self,
        http2: Http2,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._http2 = http2
        self._config = config
        self._state = server_state
        self._http1 = partial(HttpToolsProtocol, config, server_state, app_state, _loop)
        self._connections: set[Any] = server_state.connections
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: the transports of uvloop are of no class of asyncio.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Hand over as soon as the first three bytes, or fewer, have decided."""
        self._first += data
        if len(self._first) < len(_MARK) and _MARK.startswith(self._first):
            return
        protocol: Connection | HttpToolsProtocol = (
            Connection(self._http2, self._config.loaded_app, self._connections)
            if self._first.startswith(_MARK)
            else self._http1()
        )
        self._connections.discard(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._first)

    def shutdown(self) -> None:
        """The server stops, and nothing was asked yet."""
        self._transport.close()
