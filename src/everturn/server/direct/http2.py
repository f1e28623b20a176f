"""HTTP/2 by prior knowledge: a connection that hands its requests to an ASGI application.

The framing, the header compression and the rules of the protocol are the library `h2`'s. Here is
what it leaves to its user: bytes in and out, one task per request, and the bounds.

What bounds a connection that means ill:

    streams at once       STREAMS_MAX, announced to the client; the library refuses more
    body bytes held       STREAM_WINDOW per stream and CONNECTION_WINDOW for all of them, given
                          back only as the application takes them
    bytes to be sent      an application waits while the transport is full; a client that makes
                          us answer (pings, settings) and does not read is cut at OUT_BYTES_MAX
    header bytes          the library's own bound of 64 KiB
    requests given up     RESETS_MAX per tick: opening and resetting streams costs the sender
                          nothing, and each costs us a task ("rapid reset")
    silence               without a stream, closed after IDLE_S; with one, asked by a ping after
                          PING_S and cut after DEAD_S, so that a peer that vanished is noticed
    connections           CONNECTIONS_MAX in a server; a further one is closed at once

How it ends when the server stops: like HTTP/1.1 here (`serving.py`). A connection with an answer
half sent is cut, which tells its client to come again; one whose answers have not begun may
finish them, and gets no new ones; an idle one says goodbye.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from everturn.server.direct.http2_stream import Stream, scope_of

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from everturn.clock import Clock

log = logging.getLogger("everturn.server")

App = Callable[[Any, Any, Any], Awaitable[None]]

CONNECTIONS_MAX: Final = 1_000
STREAMS_MAX: Final = 100
STREAM_WINDOW: Final = 256 * 1024
CONNECTION_WINDOW: Final = 1024 * 1024
OUT_BYTES_MAX: Final = 1024 * 1024
RESETS_MAX: Final = 200
TICK_S: Final = 5.0
IDLE_S: Final = 75.0
PING_S: Final = 20.0
DEAD_S: Final = 40.0
assert PING_S + TICK_S < DEAD_S, "an answer to a ping has time to arrive"
#: The window every connection starts with (RFC 9113 §6.9.2).
_WINDOW_AT_START: Final = 65_535
_PING: Final = b"everturn"


class Http2:
    """The HTTP/2 connections of one server."""

    def __init__(self, clock: Clock, tasks: TaskGroup) -> None:
        """`tasks` runs the requests; what it is told to stop is cut."""
        self.clock = clock
        self.tasks = tasks
        self.connections: set[Connection] = set()

    async def watch(self) -> None:
        """Look at every connection from time to time, for ever."""
        while True:
            await self.clock.sleep(TICK_S)
            for connection in tuple(self.connections):
                connection.tick()


class Connection(asyncio.Protocol):
    """One connection, from its preface to its end."""

    def __init__(self, http2: Http2, app: App, siblings: set[Any]) -> None:
        """`siblings` holds every connection of the server that a stop must wait for."""
        self._http2 = http2
        self._app = app
        self._siblings = siblings
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self._streams: dict[int, Stream] = {}
        #: Set whenever a writer that waits might go on: room, a transport that drained, an end.
        self._room = asyncio.Event()
        self._is_full = False
        self._is_leaving = False
        self._is_pinged = False
        self._resets = 0
        self._heard_at = self._used_at = http2.clock.monotonic()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; or say goodbye at once when there are too many."""
        # Not checked: the transports of uvloop are of no class of asyncio.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        self._siblings.add(self)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - _WINDOW_AT_START)
        if len(self._http2.connections) >= CONNECTIONS_MAX:
            log.warning("http2.refused", extra={"connections": CONNECTIONS_MAX})
            self._goodbye(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        self._http2.connections.add(self)
        self._flush()

    @property
    def transport(self) -> asyncio.Transport:
        """What a server that stops cuts."""
        return self._transport

    def data_received(self, data: bytes) -> None:
        """Take what arrived to the streams it belongs to."""
        self._heard_at = self._http2.clock.monotonic()
        self._is_pinged = False
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except ProtocolError as error:
            # The library has already written the GOAWAY that says which rule was broken.
            log.debug("http2.protocol_error", extra={"reason": str(error)})
            self._flush()
            self._transport.close()
            return
        self._flush()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that nobody listens."""
        self._siblings.discard(self)
        self._http2.connections.discard(self)
        for stream in self._streams.values():
            stream.leave()
        self._room.set()

    # --- the server ------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The server stops. See the module's text."""
        self._is_leaving = True
        if any(stream.is_started for stream in self._streams.values()):
            self._transport.abort()
        elif not self._streams:
            self._goodbye()

    def tick(self) -> None:
        """Look at how long the client has been silent."""
        now = self._http2.clock.monotonic()
        silent_s = now - self._heard_at
        self._resets = 0
        if silent_s >= DEAD_S and (self._streams or self._transport.is_closing()):
            self._transport.abort()
        elif not self._streams:
            if now - self._used_at >= IDLE_S:
                self._goodbye()
        elif silent_s >= PING_S and not self._is_pinged:
            self._is_pinged = True
            self._h2.ping(_PING)
            self._flush()

    def _goodbye(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        if not self._transport.is_closing():
            self._h2.close_connection(code)
            self._flush()
            self._transport.close()

    # --- what arrives ----------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=number, headers=headers):
                self._open(number, [(bytes(name), bytes(value)) for name, value in headers])
            case DataReceived(stream_id=number, data=data, flow_controlled_length=owed):
                if (stream := self._streams.get(number)) is not None:
                    stream.arrived(data, owed)
                else:
                    self._h2.acknowledge_received_data(owed, number)
            case StreamEnded(stream_id=number):
                if (stream := self._streams.get(number)) is not None:
                    stream.end()
            case StreamReset(stream_id=number):
                self._given_up(number)
            case WindowUpdated() | RemoteSettingsChanged():
                self._room.set()
            case _:
                pass  # the library has answered what needs an answer

    def _open(self, number: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._transport.is_closing():
            return  # what follows the end in the same bytes
        if self._is_leaving:
            self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        scope = scope_of(headers, self._transport)
        stream = Stream(self, number, is_head=scope["method"] == "HEAD")
        self._streams[number] = stream
        self._http2.tasks.start_soon(self._answer, stream, scope, name=f"http2 {number}")

    def _given_up(self, number: int) -> None:
        """The client has reset a stream."""
        if (stream := self._streams.get(number)) is not None:
            stream.leave()
            self._room.set()
        self._resets += 1
        if self._resets > RESETS_MAX and not self._transport.is_closing():
            log.warning("http2.too_many_resets")
            self._goodbye(ErrorCodes.ENHANCE_YOUR_CALM)

    async def _answer(self, stream: Stream, scope: Any) -> None:
        """Run the application for one request. On return, the stream is over."""
        try:
            await self._app(scope, stream.receive, stream.send)
        except Exception:
            # The edge of a request: one that fails must not end those beside it.
            log.exception("http2.request_failed")
        finally:
            self._close(stream)

    def _close(self, stream: Stream) -> None:
        del self._streams[stream.number]
        self._used_at = self._http2.clock.monotonic()
        if self._transport.is_closing():
            return
        if not stream.is_gone and not (stream.is_complete and stream.is_received):
            # Half an answer is cut, which says "come again"; after a whole one, the client is
            # asked to keep the rest of its request.
            code = ErrorCodes.NO_ERROR if stream.is_complete else ErrorCodes.INTERNAL_ERROR
            self._h2.reset_stream(stream.number, code)
        self._h2.acknowledge_received_data(stream.settle(), stream.number)
        self._flush()
        if self._is_leaving and not self._streams:
            self._goodbye()

    # --- what is sent; called by streams ---------------------------------------------------------

    def give_back(self, stream: Stream, owed: int) -> None:
        """Let the client send as much again."""
        if owed and not self._transport.is_closing():
            self._h2.acknowledge_received_data(owed, stream.number)
            self._flush()

    def send_headers(
        self, stream: Stream, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Begin an answer."""
        if self._transport.is_closing():
            return
        self._h2.send_headers(stream.number, [(b":status", b"%d" % status), *headers])
        self._flush()

    async def send_body(self, stream: Stream, data: bytes, *, is_last: bool) -> None:
        """Send a piece of an answer; returns when all of it is with the transport.

        Returns early, with nothing more to be done, when the client has left.
        """
        at, end = 0, len(data)
        while at < end or is_last:
            room = await self._wait_for_room(stream, end - at)
            if stream.is_gone or self._transport.is_closing():
                return
            piece = data[at : at + room]
            at += len(piece)
            self._h2.send_data(stream.number, piece, end_stream=is_last and at == end)
            self._flush()
            if at == end:
                return

    async def _wait_for_room(self, stream: Stream, wanted: int) -> int:
        """How many bytes may be sent now: at least one, if any are wanted and anybody listens."""
        while not (stream.is_gone or self._transport.is_closing()):
            window = self._h2.local_flow_control_window(stream.number)
            room = min(wanted, window, self._h2.max_outbound_frame_size)
            if not self._is_full and (room > 0 or not wanted):
                return room
            self._room.clear()
            await self._room.wait()
        return 0

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > OUT_BYTES_MAX:
                log.warning("http2.reads_nothing")
                self._transport.abort()
