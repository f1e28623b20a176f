"""`/link/v1`: the WebSocket that workers connect to. Frames are handled in `services/link.py`.

A plain ASGI callable, because a framework's WebSocket object costs more than the frames do. What
is wrong with a request before it becomes a connection is answered as HTTP where the server can
do that, so that a worker can tell a bad key (401) from a wrong protocol version (400).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from everturn.errors import EverturnError, NotAuthenticated, ProtocolError, Unavailable
from everturn.protocol.link import SUBPROTOCOL
from everturn.server.auth import authenticate

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from everturn.server.services import Services
    from everturn.storage.ports.rows import Environment

log = logging.getLogger("everturn.link")

#: WebSocket close codes: going away, protocol error, policy, try again later.
_BROKEN: Final = 1002
_REFUSED: Final = 1008
_LATER: Final = 1013
_REASON_BYTES_MAX: Final = 120


async def link_endpoint(services: Services, scope: Scope, receive: Receive, send: Send) -> None:
    """One worker's connection, from its handshake to its end."""
    event = await receive()
    if event["type"] != "websocket.connect":
        return
    try:
        environment = await _environment(services, scope)
        _check_version(scope)
    except NotAuthenticated as error:
        await _refuse(scope, send, 401, error)
    except ProtocolError as error:
        await _refuse(scope, send, 400, error)
    except Unavailable as error:
        await _refuse(scope, send, 503, error)
    else:
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        await _serve(services, environment, AsgiTransport(receive, send))


class AsgiTransport:
    """Messages of an accepted ASGI WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.open = True

    async def receive(self) -> bytes | None:
        """The next message; None when the connection is over. Raises ProtocolError for text."""
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            self.open = False
            return None
        data = event.get("bytes")
        if not isinstance(data, bytes):
            raise ProtocolError("link messages are binary")
        return data

    async def send(self, message: bytes) -> None:
        if self.open:
            await self._send({"type": "websocket.send", "bytes": message})

    async def close(self, code: int, reason: str) -> None:
        if self.open:
            self.open = False
            cut = reason.encode()[:_REASON_BYTES_MAX].decode("utf-8", "ignore")
            await self._send({"type": "websocket.close", "code": code, "reason": cut})


async def _serve(services: Services, environment: Environment, transport: AsgiTransport) -> None:
    try:
        await services.links.serve(environment, transport)
    except ProtocolError as error:
        log.warning("link.protocol_error", extra={"reason": error.message})
        await transport.close(_BROKEN, error.message)
    except EverturnError as error:
        log.warning("link.failed", extra={"error": error.code})
        await transport.close(_LATER, error.message)
    except OSError:
        transport.open = False  # The connection broke while we were writing to it.
    else:
        await transport.close(_LATER, "the server ended the link")


async def _environment(services: Services, scope: Scope) -> Environment:
    header = next((v for name, v in scope["headers"] if name == b"authorization"), b"")
    caller = await authenticate(services, header.decode("latin-1"), public=False)
    environment = await services.state.environment(caller.environment_id)
    if environment is None:
        raise NotAuthenticated("Invalid API key")
    return environment


def _check_version(scope: Scope) -> None:
    offered = scope.get("subprotocols") or []
    if SUBPROTOCOL not in offered:
        raise ProtocolError(
            f"this server speaks {SUBPROTOCOL}, the worker {', '.join(offered) or 'nothing named'}"
        )


async def _refuse(scope: Scope, send: Send, status: int, error: EverturnError) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _REFUSED, "reason": error.message[:100]})
        return
    await send(
        {
            "type": "websocket.http.response.start",
            "status": status,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
    )
    await send({"type": "websocket.http.response.body", "body": error.message.encode()})
