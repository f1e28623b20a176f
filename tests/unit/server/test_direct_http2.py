"""HTTP/2 by prior knowledge: requests reach the application, and ill will reaches a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import uvicorn
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from everturn.server.direct import http2 as room
from everturn.server.direct.first_bytes import FirstBytes
from everturn.server.direct.http2 import Connection, Http2

pytestmark = pytest.mark.anyio


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep_forever()


class Wire(asyncio.Transport):
    """A transport whose other end is an HTTP/2 client in the same process."""

    def __init__(self) -> None:
        super().__init__()
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.events: list[Event] = []
        self.is_reading = True
        self.unread = b""
        self.closed = ""
        self.protocol: Any = None
        self.client.initiate_connection()

    # --- as the server sees it -------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unread += bytes(data)
        if self.is_reading:
            self.read()

    def read(self) -> None:
        data, self.unread = self.unread, b""
        self.events += self.client.receive_data(data)

    def get_write_buffer_size(self) -> int:
        return len(self.unread)

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def abort(self) -> None:
        self.closed = "aborted"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    # --- as the client uses it -------------------------------------------------------------------

    def send(self) -> None:
        self.protocol.data_received(self.client.data_to_send())

    def request(
        self, path: str = "/", method: str = "GET", body: bytes | None = None, *, end: bool = True
    ) -> int:
        number = self.client.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "a:1")]
        self.client.send_headers(number, head, end_stream=end and body is None)
        if body is not None:
            self.client.send_data(number, body, end_stream=end)
        self.send()
        return number

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self, number: int) -> str | None:
        for event in self.of(ResponseReceived):
            if event.stream_id == number:
                return dict(event.headers)[":status"]
        return None

    def body(self, number: int) -> bytes:
        return b"".join(e.data for e in self.of(DataReceived) if e.stream_id == number)

    def ended(self, number: int) -> bool:
        return any(e.stream_id == number for e in self.of(StreamEnded))


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class Place:
    """A server and its connections."""

    def __init__(self, http2: Http2, app: room.App, clock: Clock) -> None:
        self.http2 = http2
        self.app = app
        self.clock = clock
        self.siblings: set[Any] = set()

    def connect(self) -> Wire:
        wire = Wire()
        wire.protocol = Connection(self.http2, self.app, self.siblings)
        wire.protocol.connection_made(wire)
        if not wire.closed:
            wire.send()
        return wire


@asynccontextmanager
async def serving(app: room.App) -> AsyncIterator[Place]:
    clock = Clock()
    async with anyio.create_task_group() as tasks:
        yield Place(Http2(clock, tasks), app, clock)
        tasks.cancel_scope.cancel()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers every piece of a request with the same piece."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


class TestRequests:
    async def test_a_request_becomes_a_scope_with_its_raw_path(self) -> None:
        scopes: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)
            await echo(scope, receive, send)

        async with serving(app) as place:
            wire = place.connect()
            number = wire.request("/a%2Fb?c=d", "POST", b"hello")
            await settle()

            (scope,) = scopes
            assert scope["method"] == "POST"
            assert (scope["raw_path"], scope["query_string"]) == (b"/a%2Fb", b"c=d")
            assert (b"host", b"a:1") in scope["headers"]
            assert scope["http_version"] == "2"
            assert (wire.status(number), wire.body(number)) == ("200", b"hello")
            assert wire.ended(number)

    async def test_headers_and_pieces_go_both_ways_before_the_request_has_ended(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            number = wire.request("/", "POST", end=False)
            await settle()
            assert wire.status(number) == "200"

            wire.client.send_data(number, b"one")
            wire.send()
            await settle()
            assert wire.body(number) == b"one"
            assert not wire.ended(number)

            wire.client.send_data(number, b"two", end_stream=True)
            wire.send()
            await settle()
            assert wire.body(number) == b"onetwo"
            assert wire.ended(number)

    async def test_requests_of_one_connection_do_not_wait_for_each_other(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            waiting = wire.request("/", "POST", end=False)
            quick = wire.request("/", "POST", b"x")
            await settle()

            assert wire.ended(quick)
            assert not wire.ended(waiting)

    async def test_the_answer_to_head_has_no_body(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"body"})

        async with serving(app) as place:
            wire = place.connect()
            number = wire.request("/", "HEAD")
            await settle()

            assert (wire.body(number), wire.ended(number)) == (b"", True)

    async def test_a_client_that_has_its_answer_is_asked_to_keep_the_rest(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})

        async with serving(app) as place:
            wire = place.connect()
            number = wire.request("/", "POST", b"part", end=False)
            await settle()

            assert (wire.status(number), wire.body(number)) == ("403", b"no")
            (reset,) = wire.of(StreamReset)
            assert reset.error_code == ErrorCodes.NO_ERROR

    async def test_an_answer_that_fails_half_way_is_cut_and_its_neighbour_is_not(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/bad":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                raise ValueError("broken")
            await echo(scope, receive, send)

        async with serving(app) as place:
            wire = place.connect()
            good = wire.request("/", "POST", end=False)
            bad = wire.request("/bad")
            await settle()
            wire.client.send_data(good, b"still here", end_stream=True)
            wire.send()
            await settle()

            assert [r.stream_id for r in wire.of(StreamReset)] == [bad]
            assert wire.body(good) == b"still here"

    async def test_a_reset_or_a_lost_connection_reads_as_a_disconnect(self) -> None:
        seen: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            seen.append((await receive())["type"])
            await send({"type": "http.response.body", "body": b"into the void"})

        async with serving(app) as place:
            wire = place.connect()
            number = wire.request("/", "POST", end=False)
            wire.request("/", "POST", end=False)
            await settle()
            wire.client.reset_stream(number)
            wire.send()
            await settle()
            assert seen == ["http.disconnect"]

            wire.closed = "lost"
            wire.protocol.connection_lost(None)
            await settle()
            assert seen == ["http.disconnect"] * 2
            assert not place.siblings


class TestFirstBytes:
    @staticmethod
    def unknown(place: Place, wire: Wire) -> FirstBytes:
        config = uvicorn.Config(echo, http="httptools", lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        place.siblings = state.connections
        unknown = FirstBytes(place.http2, config, state, {})
        unknown.connection_made(wire)
        return unknown

    async def test_a_preface_is_known_by_three_letters_however_they_arrive(self) -> None:
        async with serving(echo) as place:
            wire = Wire()
            unknown = self.unknown(place, wire)
            hello = wire.client.data_to_send()
            for at in range(2):
                unknown.data_received(hello[at : at + 1])
                assert wire.protocol is None
            unknown.data_received(hello[2:])
            assert isinstance(wire.protocol, Connection)
            assert place.siblings == {wire.protocol}

            number = wire.request("/", "POST", b"x")
            await settle()
            assert wire.body(number) == b"x"

    @pytest.mark.parametrize("begin", [b"G", b"PU", b"PO", b"PRO", b"\x16\x03"])
    async def test_everything_else_is_left_to_http1(self, begin: bytes) -> None:
        async with serving(echo) as place:
            wire = Wire()
            self.unknown(place, wire).data_received(begin)

            assert isinstance(wire.protocol, HttpToolsProtocol)
            assert place.siblings == {wire.protocol}

    async def test_one_that_said_nothing_is_closed_by_a_stop(self) -> None:
        async with serving(echo) as place:
            wire = Wire()
            unknown = self.unknown(place, wire)
            assert place.siblings == {unknown}
            unknown.shutdown()
            assert wire.closed == "closed"
            unknown.connection_lost(None)
            assert not place.siblings


class TestFlow:
    async def test_what_the_application_does_not_take_is_not_let_in(self) -> None:
        taken = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await taken.wait()
            await echo(scope, receive, send)

        async with serving(app) as place:
            wire = place.connect()
            number = wire.request("/", "POST", end=False)
            sent = 0
            while room_left := wire.client.local_flow_control_window(number):
                piece = bytes(min(room_left, 16384))
                wire.client.send_data(number, piece)
                wire.send()
                sent += len(piece)
            await settle()
            assert sent == room.STREAM_WINDOW

            taken.set()
            await settle()
            wire.client.acknowledge_received_data(len(wire.body(number)), number)
            wire.send()
            await settle()
            assert wire.client.local_flow_control_window(number) > 0

    async def test_what_nobody_takes_does_not_use_up_the_connection(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async with serving(app) as place:
            wire = place.connect()
            for _ in range(2 * room.CONNECTION_WINDOW // 16_384):
                wire.request("/", "POST", bytes(16_384), end=False)
                await settle()

            assert wire.client.outbound_flow_control_window > room.CONNECTION_WINDOW // 4

    async def test_an_answer_waits_for_the_room_its_reader_gives(self) -> None:
        body = bytes(200_000)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        async with serving(app) as place:
            wire = place.connect()
            number = wire.request()
            await settle()
            assert len(wire.body(number)) == 65_535

            given = 0
            while not wire.ended(number):
                have = len(wire.body(number))
                assert have > given, "more room brings more bytes"
                wire.client.acknowledge_received_data(have - given, number)
                given = have
                wire.send()
                await settle()
            assert wire.body(number) == body

    async def test_an_answer_waits_for_a_transport_that_is_full(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            wire.protocol.pause_writing()
            number = wire.request("/", "POST", b"x")
            await settle()
            assert wire.body(number) == b""

            wire.protocol.resume_writing()
            await settle()
            assert wire.body(number) == b"x"


class TestBounds:
    async def test_a_client_that_makes_us_talk_and_does_not_listen_is_cut(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "OUT_BYTES_MAX", 10_000)
        async with serving(echo) as place:
            wire = place.connect()
            wire.is_reading = False
            while not wire.closed:
                wire.client.ping(b"12345678")
                wire.send()

            assert wire.closed == "aborted"
            assert len(wire.unread) <= 10_064

    async def test_opening_and_resetting_requests_without_end_is_ended(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            for _ in range(room.RESETS_MAX + 10):
                number = wire.client.get_next_available_stream_id()
                head = [(":method", "GET"), (":path", "/"), (":scheme", "http")]
                wire.client.send_headers(number, [*head, (":authority", "a")])
                wire.client.reset_stream(number)
            wire.send()

            (end,) = wire.of(ConnectionTerminated)
            assert end.error_code == ErrorCodes.ENHANCE_YOUR_CALM
            assert wire.closed

    async def test_more_streams_than_announced_end_the_connection(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            for _ in range(room.STREAMS_MAX):
                wire.request("/", "POST", end=False)
            wire.client.remote_settings.max_concurrent_streams = room.STREAMS_MAX + 1
            wire.client.remote_settings.acknowledge()
            wire.request("/", "POST", end=False)

            assert wire.of(ConnectionTerminated)
            assert wire.closed

    async def test_bytes_that_are_no_http2_end_the_connection(self) -> None:
        async with serving(echo) as place:
            wire = Wire()
            wire.protocol = Connection(place.http2, echo, place.siblings)
            wire.protocol.connection_made(wire)
            wire.protocol.data_received(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n" + bytes(30))

            assert wire.closed

    async def test_one_connection_too_many_is_told_to_calm_down(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "CONNECTIONS_MAX", 1)
        async with serving(echo) as place:
            first, second = place.connect(), place.connect()
            second.read()

            assert (first.closed, second.closed) == ("", "closed")
            assert second.of(ConnectionTerminated)[0].error_code == ErrorCodes.ENHANCE_YOUR_CALM

    async def test_a_connection_without_requests_is_closed_after_a_while(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            wire.request("/", "POST", b"x")
            await settle()
            place.clock.now = room.IDLE_S - 1
            wire.protocol.tick()
            assert not wire.closed

            place.clock.now = room.IDLE_S
            wire.protocol.tick()
            assert wire.closed == "closed"

    async def test_a_silent_client_with_a_request_is_asked_and_cut_only_without_an_answer(
        self,
    ) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            wire.request("/", "POST", end=False)
            await settle()
            place.clock.now = room.PING_S
            wire.protocol.tick()
            assert wire.of(PingReceived)

            wire.send()  # the answer to the ping
            place.clock.now += room.DEAD_S - 1
            wire.protocol.tick()
            assert not wire.closed

            place.clock.now += 1
            wire.protocol.tick()
            assert wire.closed == "aborted"


class TestStopping:
    async def test_an_idle_connection_says_goodbye(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            wire.protocol.shutdown()

            assert wire.of(ConnectionTerminated)[0].error_code == ErrorCodes.NO_ERROR
            assert wire.closed == "closed"

    async def test_an_answer_half_sent_is_cut_so_that_its_client_comes_again(self) -> None:
        async with serving(echo) as place:
            wire = place.connect()
            wire.request("/", "POST", end=False)
            await settle()
            wire.protocol.shutdown()

            assert wire.closed == "aborted"

    async def test_an_answer_not_begun_is_finished_and_nothing_new_is_taken(self) -> None:
        go = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await echo(scope, receive, send)

        async with serving(app) as place:
            wire = place.connect()
            first = wire.request("/", "POST", b"x")
            await settle()
            wire.protocol.shutdown()
            late = wire.request("/")
            assert [(r.stream_id, r.error_code) for r in wire.of(StreamReset)] == [
                (late, ErrorCodes.REFUSED_STREAM)
            ]

            go.set()
            await settle()
            assert wire.body(first) == b"x"
            assert wire.closed == "closed"
