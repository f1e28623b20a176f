"""An ASGI application as an HTTP transport, in one process, with streams that stream.

The transport that comes with HTTP clients waits for the whole body before it answers, so an event
stream never starts. This one answers when the response has started, and hands over each piece of
the body as the application sends it. The application's `send` waits for the reader, as it would
for a full socket, so back-pressure is real too.

    async with AsgiTransport(app) as transport:
        everturn.configure(url="http://test", secret_key=key, transport=transport)

Requests in progress belong to the `async with` block: leaving it ends them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

import anyio
import anyio.abc
import httpx2

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger("everturn.testing")

#: An extension of a request: after so many bytes of its body the client is gone.
CUT_BODY_AT: Final = "everturn.cut_body_at"


class AsgiTransport(httpx2.AsyncBaseTransport):
    """Carries requests to an application; use as an asynchronous context manager.

    Args:
        client: the address the application sees its caller under.
    """

    def __init__(self, app: AsgiApp, *, client: tuple[str, int] = ("127.0.0.1", 50000)) -> None:
        self._app = app
        self._client = client
        self._tasks: anyio.abc.TaskGroup | None = None
        self._entered = 0
        #: A dict, because its order is that of the requests and not of their addresses.
        self._exchanges: dict[_Exchange, None] = {}

    async def __aenter__(self) -> AsgiTransport:
        # An HTTP client enters its transport too, so entering is counted.
        self._entered += 1
        if self._tasks is None:
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._entered -= 1
        if self._entered or self._tasks is None:
            return
        tasks, self._tasks = self._tasks, None
        tasks.cancel_scope.cancel()
        # Without `exc`: what the block raised is raised as it is and not as a group.
        await tasks.__aexit__(None, None, None)

    def cut(self) -> int:
        """Break every connection as a lost network would. Returns how many there were."""
        open_now = list(self._exchanges)
        for exchange in open_now:
            exchange.cut()
        return len(open_now)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._tasks is None:
            raise httpx2.ConnectError("the transport is not open: use `async with`")
        exchange = _Exchange(
            request.method == "HEAD", await request.aread(), request.extensions.get(CUT_BODY_AT)
        )
        self._exchanges[exchange] = None
        self._tasks.start_soon(self._serve, self._scope(request), exchange)
        try:
            await exchange.started.wait()
        except BaseException:
            exchange.disconnect()
            raise
        if exchange.status is None:
            raise exchange.failure or httpx2.RemoteProtocolError("the application did not answer")
        return httpx2.Response(
            exchange.status, headers=exchange.headers, stream=_Body(exchange), request=request
        )

    async def _serve(self, scope: MutableMapping[str, Any], exchange: _Exchange) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            # The edge of the application: a real server logs, and drops the connection.
            if not exchange.gone.is_set():
                log.exception("asgi.application_failed")
                exchange.failure = httpx2.RemoteProtocolError(f"the application failed: {error!r}")
        finally:
            self._exchanges.pop(exchange, None)
            exchange.end()

    def _scope(self, request: httpx2.Request) -> MutableMapping[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port or 80),
            "client": self._client,
            "root_path": "",
            "state": {},
        }


class _Exchange:
    """One request and its response; one piece of the body at a time passes from side to side."""

    def __init__(self, is_head: bool, body: bytes, cut_at: int | None = None) -> None:
        self._is_head = is_head
        self._body: bytes | None = body
        self._cut_at = cut_at
        self._piece: bytes | None = None
        self._filled = anyio.Event()  # there is a piece, or there will be none any more
        self._taken = anyio.Event()  # the reader has the piece, or has left
        self._complete = False
        self._over = False
        self.started = anyio.Event()
        self.gone = anyio.Event()  # the exchange has ended, for the application
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.failure: httpx2.TransportError | None = None

    # --- the application's side ----------------------------------------------------------------

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            if self._cut_at is not None:
                self.cut()
                return {"type": "http.request", "body": body[: self._cut_at], "more_body": True}
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._require_reader()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message.get("headers", ()))
            return
        if message["type"] != "http.response.body":
            return
        self.started.set()
        piece = message.get("body", b"")
        if piece and not self._is_head:
            self._taken = anyio.Event()
            self._piece = piece
            self._filled.set()
            await self._taken.wait()
            if self._piece is not None:
                raise OSError("the client has disconnected")
        if not message.get("more_body", False):
            self._complete = True
            self.end()

    def _require_reader(self) -> None:
        if self.gone.is_set():
            raise OSError("the client has disconnected")

    # --- both ----------------------------------------------------------------------------------

    def end(self) -> None:
        """No more pieces. Unless the body was complete, the reader sees a broken connection."""
        if not self._complete and self.failure is None:
            self.failure = httpx2.RemoteProtocolError("the connection was closed early")
        self._over = True
        self.gone.set()
        self.started.set()
        self._filled.set()
        self._taken.set()

    # --- the client's side ---------------------------------------------------------------------

    def disconnect(self) -> None:
        self.gone.set()
        self._taken.set()

    def cut(self) -> None:
        self.failure = httpx2.ReadError("the connection was cut")
        self._piece = None
        self.end()

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            await self._filled.wait()
            if self._piece is None:
                break
            piece, self._piece = self._piece, None
            if not self._over:
                self._filled = anyio.Event()
            self._taken.set()
            yield piece
        if self.failure is not None:
            raise self.failure


class _Body(httpx2.AsyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._exchange.pieces():
            yield piece

    async def aclose(self) -> None:
        self._exchange.disconnect()
