"""Any bytes on the port end their own connection and no other: HTTP/1, HTTP/2, WebSockets, none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import h2.config
import h2.connection
import httpx2
import pytest
from anyio.from_thread import start_blocking_portal
from fuzz_targets import EXAMPLES, inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everturn.protocol import link
from everturn.server.assembly import build
from everturn.server.serving import serve
from everturn.server.settings import Settings
from everturn.testing.processes import free_port

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=EXAMPLES <= 150,
)
KEY: Final = "tr_dev_abcdefghijklmnopqrstuvwx"
#: How long a connection may stay open after it has said all it will say.
CLOSES_S: Final = 8.0


@asynccontextmanager
async def _serving(port: int) -> Any:
    opened = anyio.Event()
    async with (
        build(Settings(secret_key=KEY)) as system,
        anyio.create_task_group() as tasks,
    ):

        async def run() -> None:
            await serve(system, port=port, opened=lambda _: opened.set())

        tasks.start_soon(run)
        await opened.wait()
        yield
        tasks.cancel_scope.cancel()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(_serving(number)),
    ):
        yield number


def said(port: int, data: bytes) -> bytes:
    """What a connection is answered that says this and no more. Fails when it stays open."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=CLOSES_S) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise  # it neither reads nor closes
        except OSError:
            pass  # cut off by the server, which is an answer too
        with suppress(ConnectionError):
            while piece := connection.recv(65536):
                got += piece
    return got


def still_serves(port: int) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    reply = httpx2.get(f"http://127.0.0.1:{port}/api/v1/sessions", headers=headers)
    assert reply.status_code == 200


REQUEST: Final = (
    b"POST /realtime/v1/sessions/s/in/append HTTP/1.1\r\nhost: x\r\n"
    b"authorization: Bearer " + KEY.encode() + b"\r\ncontent-length: 5\r\n\r\nhello"
)
CHUNKED: Final = (
    b"POST /api/v3/batches/b/items HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
    + KEY.encode()
    + b"\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)
UPGRADE: Final = (
    b"GET /link/v1 HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"sec-websocket-protocol: " + link.SUBPROTOCOL.encode() + b"\r\n"
    b"authorization: Bearer " + KEY.encode() + b"\r\n\r\n"
)


def _http2() -> bytes:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(
        1,
        [
            (":method", "POST"),
            (":path", "/s2/v1/streams/in-x/records"),
            (":scheme", "http"),
            (":authority", "x"),
            ("authorization", "Bearer x"),
            ("content-type", "s2s/proto"),
        ],
    )
    client.send_data(1, b"\x00\x00\x05\x00hello", end_stream=True)
    client.ping(b"12345678")
    return client.data_to_send()


WHOLE: Final = (REQUEST, CHUNKED, UPGRADE, UPGRADE + b"\x82\x85abcd\x00\x00\x00\x00\x00", _http2())
_edits = st.lists(
    st.tuples(st.integers(0, 600), st.integers(0, 20), st.binary(max_size=20)), max_size=5
)


def edited(whole: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, new in edits:
        place = at % (len(whole) + 1)
        whole = whole[:place] + new + whole[place + cut :]
    return whole


@bounded
@given(data=inputs | st.builds(edited, st.sampled_from(WHOLE), _edits))
def test_any_bytes_end_their_own_connection_and_no_other(port: int, data: bytes) -> None:
    said(port, data)


def test_after_all_of_that_others_are_served(port: int) -> None:
    for whole in WHOLE:
        for end in range(0, len(whole), 37):
            said(port, whole[:end])
    still_serves(port)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 2_000_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200_000 + b"\r\n",
        b"\0" * 2_000_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 2_000_000,
    ],
    ids=["header", "target", "headers", "zeros", "frames"],
)
def test_bytes_without_end_are_refused_or_cut_off_and_others_are_served(
    port: int, data: bytes
) -> None:
    answer = said(port, data)
    assert not answer.startswith(b"HTTP/1.1 200")
    still_serves(port)
