"""One request over HTTP/2: what an ASGI application receives of it and sends for it.

What arrives is kept until the application asks for it, and only then is its room given back to
the client (flow control), so a stream holds at most one window. What is sent waits for the room
the client gives. When the client resets the stream or the connection is gone, `receive` says
`http.disconnect` and sending does nothing, which is what applications expect of any server.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from everturn.server.direct.http2 import Connection

Message = MutableMapping[str, Any]


class Stream:
    """The application's side of one request. `Connection` tells it what arrives."""

    def __init__(self, connection: Connection, number: int, *, is_head: bool) -> None:
        self._connection = connection
        self.number = number
        self._is_head = is_head
        self._body = bytearray()
        #: Flow-controlled bytes that arrived and were not given back, padding included.
        self._owed = 0
        self._changed = asyncio.Event()
        #: The client has sent all of its request, and the application was told.
        self.is_received = False
        self._is_told = False
        self.is_started = False
        self.is_complete = False
        #: The client has left: nobody reads any more.
        self.is_gone = False

    # --- told by the connection ------------------------------------------------------------------

    def arrived(self, data: bytes, owed: int) -> None:
        """Part of the body; `owed` counts what the client must be given back for it."""
        self._body += data
        self._owed += owed
        self._changed.set()

    def end(self) -> None:
        """The client has sent everything."""
        self.is_received = True
        self._changed.set()

    def leave(self) -> None:
        """The client has reset the stream, or its connection is gone."""
        self.is_gone = True
        self._changed.set()

    def settle(self) -> int:
        """Bytes to give back for what was never asked for; the stream is over."""
        owed, self._owed = self._owed, 0
        self._body.clear()
        return owed

    # --- called by the application ---------------------------------------------------------------

    async def receive(self) -> Message:
        """The next piece of the request, then `http.disconnect` once nobody listens any more."""
        while not self.is_gone:
            if self._body or (self.is_received and not self._is_told):
                body = bytes(self._body)
                self._body.clear()
                owed, self._owed = self._owed, 0
                self._connection.give_back(self, owed)
                self._is_told = self.is_received
                return {"type": "http.request", "body": body, "more_body": not self.is_received}
            if self.is_complete:
                break
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send headers at once, or a piece of the body as the client gives room for it."""
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            self.is_started = True
            self._connection.send_headers(self, message["status"], message.get("headers", ()))
            return
        more = message.get("more_body", False)
        body = b"" if self._is_head else message.get("body", b"")
        await self._connection.send_body(self, body, is_last=not more)
        if not more:
            self.is_complete = True
            self._changed.set()


def scope_of(headers: list[tuple[bytes, bytes]], transport: asyncio.Transport) -> Message:
    """The ASGI scope of a request; its pseudo-headers were checked by the protocol's library."""
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    plain = [(name, value) for name, value in headers if not name.startswith(b":")]
    if b":authority" in pseudo and all(name != b"host" for name, _ in plain):
        plain.insert(0, (b"host", pseudo[b":authority"]))
    raw_path, _, query = pseudo.get(b":path", b"/").partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": pseudo[b":method"].decode("ascii", "replace").upper(),
        "scheme": "http",
        "path": unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": plain,
        "client": _address(transport.get_extra_info("peername")),
        "server": _address(transport.get_extra_info("sockname")),
    }


def _address(name: Any) -> tuple[str, int] | None:
    return (name[0], name[1]) if isinstance(name, tuple) and len(name) >= 2 else None
