"""What only a real socket shows: framing, cut connections, shutting down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import pytest
from http_harness import KEY, session_body

from everturn.protocol.records import ChannelName, NewRecord, data_body
from everturn.server.assembly import System, build
from everturn.server.serving import serve
from everturn.server.settings import Settings
from everturn.storage.ports.rows import TaskVersion, Worker

pytestmark = pytest.mark.anyio

Stop = Callable[[], Awaitable[None]]


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[tuple[System, int, Stop]]:
    """A server on a free loopback port; `stop` stops it and waits until it has."""
    chosen = Settings(secret_key=KEY, port=0, **settings)  # type: ignore[arg-type]
    urls: list[str] = []
    opened, stopped = anyio.Event(), anyio.Event()

    def on_open(url: str) -> None:
        urls.append(url)
        opened.set()

    async with build(chosen) as system, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await serve(system, opened=on_open)
            stopped.set()

        async def stop() -> None:
            scope.cancel()
            with anyio.fail_after(10):
                await stopped.wait()

        tasks.start_soon(run)
        with anyio.fail_after(10):
            await opened.wait()
        now_ms = system.services.clock.now_ms()
        await system.services.state.register_worker(
            Worker(
                id="worker_1",
                environment_id=system.environment.id,
                version="v1",
                server_id="server_1",
                lease_until_ms=now_ms + 60_000,
                registered_at_ms=now_ms,
            ),
            [TaskVersion(task_id="agent", kind="agent")],
            {},
            now_ms=now_ms,
        )
        yield system, int(urls[0].rsplit(":", 1)[1]), stop
        await stop()


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {KEY}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def read_until(stream: anyio.abc.ByteStream, end: bytes) -> bytes:
    found = b""
    with anyio.fail_after(10):
        while end not in found:
            found += await stream.receive()
    return found


async def read_to_end(stream: anyio.abc.ByteStream) -> bytes:
    found = b""
    with anyio.fail_after(10):
        try:
            while True:
                found += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return found


async def create(port: int) -> None:
    body = msgspec.json.encode(session_body())
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request("POST", "/api/v1/sessions", body, f"content-length: {len(body)}"))
        assert b" 201 " in await read_until(stream, b"}")


async def test_a_chunked_upload_to_a_capped_route_is_refused() -> None:
    # W-6
    async with running() as (_, port, _stop):
        await create(port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            path = "/realtime/v1/sessions/chat-1/in/append"
            await stream.send(
                request("POST", path, b"1\r\na\r\n0\r\n\r\n", "transfer-encoding: chunked")
            )
            answer = await read_until(stream, b"}")
        assert b" 413 " in answer
        assert answer.endswith(b'{"error":"Request body too large"}')


async def test_readers_are_cut_off_when_the_server_stops_so_that_they_come_back() -> None:
    # W-66
    async with running() as (system, port, stop):
        await create(port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request("GET", "/realtime/v1/sessions/chat-1/out"))
            head = await read_until(stream, b"event: ping")
            channel = ChannelName(system.environment.id, "chat-1", "out")
            record = NewRecord(data_body(b'{"type":"start"}', "p1"), (), "p1")
            await system.services.streams.append(channel, [record])
            body = await read_until(stream, b"event: batch")
            await stop()
            rest = await read_to_end(stream)
        assert b"transfer-encoding: chunked" in head
        # Neither [DONE] nor the empty chunk that ends a body in good order.
        assert b"[DONE]" not in head + body + rest
        assert not (body + rest).endswith(b"0\r\n\r\n")


async def test_a_reader_whose_time_is_over_ends_in_good_order() -> None:
    async with running() as (_, port, _stop):
        await create(port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            path = "/realtime/v1/sessions/chat-1/out"
            await stream.send(request("GET", path, b"", "timeout-seconds: 1"))
            assert b"[DONE]" in await read_until(stream, b"0\r\n\r\n")


async def test_a_client_that_leaves_frees_its_reader() -> None:
    async with running() as (system, port, _stop):
        await create(port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request("GET", "/realtime/v1/sessions/chat-1/out"))
            await read_until(stream, b"event: ping")
            assert system.app.readers.count == 1
        with anyio.fail_after(5):
            while system.app.readers.count:
                await anyio.lowlevel.checkpoint()


async def test_an_append_is_kept_over_a_restart_on_the_same_folder(tmp_path: Path) -> None:
    data_dir = str(tmp_path / "data")
    body = b'{"kind":"stop"}'
    headers = (f"content-length: {len(body)}", "x-part-id: p1")
    path = "/realtime/v1/sessions/chat-1/in/append"
    for _ in range(2):
        async with running(data_dir=data_dir) as (_, port, _stop):
            if not (tmp_path / "made").exists():
                await create(port)
                (tmp_path / "made").touch()
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(request("POST", path, body, *headers))
                assert (await read_until(stream, b"}")).endswith(b'{"ok":true,"seq":0}')


async def test_an_address_that_is_taken_is_said_as_such() -> None:
    async with running() as (_, port, _stop), build(Settings(secret_key=KEY)) as second:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await serve(second, port=port)
