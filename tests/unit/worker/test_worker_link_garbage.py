"""A server that talks nonsense: the connection ends, the worker does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest

from everturn.protocol import link as frames
from everturn.protocol.records import NewRecord
from everturn.rules import limits
from everturn.tasks import runtime as runtimes
from everturn.tasks.definition import task
from everturn.worker.loading import App
from everturn.worker.worker import Worker

pytestmark = pytest.mark.anyio

_packer = frames.Packer(limits.LINK_SLICE_BYTES_MAX)
_ACK = _packer.message(_packer.encode(frames.Acked("run_c1", 1, 0, [0])))
#: What a message may be instead of one.
GARBAGE: dict[str, bytes | str] = {
    "nothing": b"",
    "no msgpack": b"\xc1\xff\x00garbage",
    "a frame cut short": _ACK[:-3],
    "a frame and something behind it": _ACK + b"\x00",
    "text": "hello",
    "another type of frame": msgspec.msgpack.encode([{"type": "no such frame"}]),
    "a member of another type": msgspec.msgpack.encode([{"type": "acked", "run_id": 7}]),
    "a slice of nothing": _packer.message([msgspec.msgpack.encode(frames.Slice(1, True, b""))]),
    "nesting without end": b"\x91" * 100_000,
    "a frame of a worker": _packer.message(_packer.encode(frames.Credit(3))),
    "slices that never end": _packer.message(
        [msgspec.msgpack.encode(frames.Slice(1, False, b"xx"))] * 270_000
    ),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_ends_the_connection_and_the_run_goes_on_over_the_next(
    server: Any, work: Any, garbage: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    server.acknowledge = False

    @task(id="t")
    async def t(payload: Any) -> list[int]:
        return list(await runtimes.current().append([NewRecord(body=b"a")]))

    with caplog.at_level(logging.WARNING):
        async with work():
            await server.claim(session_id="session_c1", session_key="k")
            await server.next(frames.Append)
            server.acknowledge = True
            await server._socket.send(garbage)
            again = await server.next(frames.Append)
            outcome = await server.outcome()

    assert (again.first_part, again.records[0].body) == (0, b"a")
    assert outcome["output"] == b"[0]"
    assert server.connections == 2
    assert "it sent what makes no sense" in caplog.text


async def test_a_server_that_welcomes_nobody_properly_is_tried_again_ever_more_slowly(
    registry: Any,
) -> None:
    """No welcome, no lease in it, or nonsense right after it: back-off, not a busy loop."""
    from websockets.asyncio.server import serve

    welcomes = [
        frames.Credit(1),
        frames.Welcome("env", "dev", 0, 0, []),
        frames.Welcome("env", "dev", 30_000, 10_000, []),
    ]
    came = 0
    enough = anyio.Event()

    async def handle(socket: Any) -> None:
        nonlocal came
        await socket.recv()
        items = _packer.encode(welcomes[came % 3])  # type: ignore[arg-type]  # on purpose
        came += 1
        if came == 6:
            enough.set()
        await socket.send(_packer.message(items))
        await socket.send(b"nonsense")
        await socket.wait_closed()

    async with serve(
        handle,
        "127.0.0.1",
        0,
        subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]
    ) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        worker = Worker(App("test", msgspec, registry), url, "k", version="v1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            began = asyncio.get_running_loop().time()
            with anyio.fail_after(20):
                await enough.wait()
            worker.stop()
            worker.stop()
    # 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s, each by a random share of a half to the whole.
    assert asyncio.get_running_loop().time() - began > 1.5


ANSWERS: dict[str, bytes] = {
    "hangs up": b"",
    "answers garbage": b"\x00\x01\x02\r\n\r\n",
    "answers half a handshake": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso",
    "answers another key": b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: bm90aGluZw==\r\n\r\n",
    "is overloaded": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_a_handshake_that_breaks_off_is_tried_again(registry: Any, answer: bytes) -> None:
    """A server that is killed while a worker greets it must not take the worker with it."""
    greeted = anyio.create_memory_object_stream[None](10)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        finally:
            writer.close()
        greeted[0].send_nowait(None)

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        worker = Worker(App("test", msgspec, registry), url, "k", version="v1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            with anyio.fail_after(20):
                for _ in range(3):
                    await greeted[1].receive()
            worker.stop()
            worker.stop()
    greeted[0].close()
    greeted[1].close()


@pytest.mark.parametrize(
    "call",
    [
        lambda runtime: runtime.add_tags(["x" * limits.LINK_FRAME_BYTES_MAX]),
        lambda runtime: runtime.journal_put(0, "k", b"x" * limits.LINK_FRAME_BYTES_MAX),
    ],
    ids=["a tag", "a result"],
)
async def test_what_is_too_large_for_the_link_fails_alone(
    server: Any, work: Any, call: Callable[[Any], Any]
) -> None:
    """Sent, it would end the connection, and with it every run of the worker."""

    @task(id="t")
    async def t(payload: Any) -> str:
        try:
            await call(runtimes.current())
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "taken"

    async with work():
        await server.claim()
        outcome = await server.outcome()

    said = msgspec.json.decode(outcome["output"])
    assert said.startswith("TooLarge: a ")
    assert str(limits.LINK_FRAME_BYTES_MAX) in said
    assert server.connections == 1
