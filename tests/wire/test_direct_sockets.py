"""Direct writes over real sockets: one port, two protocols, and what a stop does to a writer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import msgspec
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from test_http_sockets import create, read_to_end, read_until, request, running

from everturn.protocol import s2_frames as s2
from everturn.protocol.records import ChannelName, data_body
from everturn.protocol.s2_frames import AppendInput, InputRecord
from everturn.server.assembly import System

pytestmark = pytest.mark.anyio


class Client:
    """An HTTP/2 client that knows what it talks to."""

    def __init__(self, socket: anyio.abc.SocketStream) -> None:
        self._socket = socket
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.events: list[Event] = []

    async def start(self) -> None:
        """Say hello, the first letters one by one: networks cut where they like."""
        self._h2.initiate_connection()
        hello = self._h2.data_to_send()
        for at in range(4):
            await self._socket.send(hello[at : at + 1])
            await anyio.lowlevel.checkpoint()
        await self._socket.send(hello[4:])

    async def post(self, path: str, token: str) -> int:
        """Begin a framed session."""
        number = self._h2.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
        head += [("authorization", f"Bearer {token}"), ("content-type", "s2s/proto")]
        self._h2.send_headers(number, head)
        await self._flush()
        return number

    async def write(self, number: int, data: bytes = b"", *, end: bool = False) -> None:
        self._h2.send_data(number, data, end_stream=end)
        await self._flush()

    async def until(self, kind: type[Event], count: int = 1) -> None:
        with anyio.fail_after(10):
            while sum(isinstance(event, kind) for event in self.events) < count:
                self.events += self._h2.receive_data(await self._socket.receive())
                await self._flush()

    @property
    def body(self) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, DataReceived))

    async def _flush(self) -> None:
        if data := self._h2.data_to_send():
            await self._socket.send(data)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    async with await anyio.connect_tcp("127.0.0.1", port) as socket:
        client = Client(socket)
        await client.start()
        yield client


def writing(system: System) -> tuple[str, str]:
    """Path and token to write `.out` of `chat-1`."""
    ticket, token = system.services.direct.issue(system.environment.id, "chat-1", "out")
    return f"/s2/v1/streams/{ticket.stream}/records", token


def frame(part: str) -> bytes:
    given = AppendInput((InputRecord(data_body(b'{"type":"start"}', part)),))
    return s2.encode_frame(s2.encode_input(given))


async def stored(system: System) -> int:
    channel = ChannelName(system.environment.id, "chat-1", "out")
    return (await system.services.streams.bounds(channel)).tail


async def test_the_port_of_the_api_speaks_http2_to_those_who_begin_so() -> None:
    # W-151
    async with running() as (system, port, _stop):
        await create(port)
        path, token = writing(system)
        async with connected(port) as client:
            number = await client.post(path, token)
            await client.until(ResponseReceived)
            for part in ("a", "b"):
                await client.write(number, frame(part))
            await client.until(DataReceived, 2)
            await client.write(number, end=True)
            await client.until(StreamEnded)

        acks = [s2.decode_ack(f.body) for f in s2.decode_frames(client.body)]
        assert [ack.start.seq_num for ack in acks] == [0, 1]
        assert await stored(system) == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "GET"])
async def test_http1_is_understood_however_its_first_bytes_arrive(method: str) -> None:
    async with running() as (_, port, _stop):
        async with await anyio.connect_tcp("127.0.0.1", port) as socket:
            sent = request(method, "/nowhere", b"", "content-length: 0", "connection: close")
            for at in range(6):
                await socket.send(sent[at : at + 1])
                await anyio.lowlevel.checkpoint()
            await socket.send(sent[6:])
            answer = await read_to_end(socket)
        assert answer.startswith(b"HTTP/1.1 404 ")


async def test_a_session_works_over_http1_too_as_a_proxy_would_pass_it_on() -> None:
    async with running() as (system, port, _stop):
        await create(port)
        path, token = writing(system)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        head += "content-type: s2s/proto\r\ntransfer-encoding: chunked\r\n\r\n"
        async with await anyio.connect_tcp("127.0.0.1", port) as socket:
            await socket.send(head.encode())
            assert b" 200 OK" in await read_until(socket, b"\r\n\r\n")
            for part in ("a", "b"):
                sent = frame(part)
                await socket.send(b"%x\r\n%s\r\n" % (len(sent), sent))
                assert await read_until(socket, b"\x1a")  # the third place of an ack
            await socket.send(b"0\r\n\r\n")
            await read_until(socket, b"0\r\n\r\n")
        assert await stored(system) == 2


async def test_a_stop_cuts_writers_and_keeps_what_was_acked() -> None:
    async with running() as (system, port, stop):
        await create(port)
        path, token = writing(system)
        async with connected(port) as client, connected(port) as idle:
            number = await client.post(path, token)
            await client.write(number, frame("a"))
            await client.until(DataReceived)

            await stop()
            for one in (client, idle):
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await one.until(StreamReset)
        assert await stored(system) == 1


async def test_a_stop_does_not_wait_for_a_connection_that_said_nothing() -> None:
    async with (
        running() as (_, port, stop),
        await anyio.connect_tcp("127.0.0.1", port) as socket,
    ):
        await stop()
        assert await read_to_end(socket) == b""


async def test_the_whole_api_answers_over_http2() -> None:
    async with running() as (_, port, _stop), connected(port) as client:
        number = await client.post("/healthz", "x")
        await client.write(number, end=True)
        await client.until(StreamEnded)

        assert msgspec.json.decode(client.body) == {"error": "Method not allowed"}
