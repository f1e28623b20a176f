"""The client on real sockets: lost connections, loops that end, nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal
from client_stage import KEY, Stage, server_in_a_thread, text

from everturn import AgentChat
from everturn.client import pool
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.client.follow import Follower


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, BlockingPortal, Stage]]:
    with server_in_a_thread() as found:
        yield found


def test_each_loop_has_its_own_pool_and_closes_it(
    server: tuple[str, BlockingPortal, Stage],
) -> None:
    """Warnings are errors here: a socket left open would fail this test."""
    api = Api(Target(server[0], KEY, None, None))
    seen: list[Any] = []

    async def main() -> None:
        seen.append(await pool.client())
        await api.list_sessions({})
        stream = await AgentChat("agent", "loops", api=api).send_message("hello")
        with anyio.move_on_after(0.05):
            await stream.text()
        follower = Follower(api, "loops", "in")
        await anext(follower)  # and left open, in the middle of a stream

    anyio.run(main)
    anyio.run(main)
    gc.collect()
    assert seen[0] is not seen[1]
    assert all(client.is_closed for client in seen)
    assert not [key for key in pool._pools if key[0].is_closed()]


def test_a_stream_goes_on_after_the_connection_was_cut(
    server: tuple[str, BlockingPortal, Stage],
) -> None:
    """R-234, with a connection that really breaks."""
    url, portal, stage = server
    api = Api(Target(url, KEY, None, None))

    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            connections: list[Any] = []

            async def relay(client: Any) -> None:
                host, _, upstream_port = url.removeprefix("http://").partition(":")
                async with client, await anyio.connect_tcp(host, int(upstream_port)) as upstream:
                    connections.append(client)
                    async with anyio.create_task_group() as both:
                        both.start_soon(copy, client, upstream)
                        both.start_soon(copy, upstream, client)

            async def copy(source: Any, target: Any) -> None:
                try:
                    async for piece in source:
                        await target.send(piece)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass
                await target.aclose()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, relay)
                agent = AgentChat("agent", "cut", api=api, base_url=f"http://127.0.0.1:{port}")
                stream = await agent.send_message("hello")
                chunks = text("a", "b", "c")
                got = []
                portal.start_task_soon(stage.write, "cut", chunks[:4])
                async for chunk in stream:
                    if chunk["type"] != "text-delta":
                        continue
                    got.append(chunk["delta"])
                    for connection in connections[:]:
                        connections.remove(connection)
                        await connection.aclose()
                    if got == ["a"]:
                        portal.start_task_soon(stage.write, "cut", chunks[4:5])
                    elif got == ["a", "b"]:
                        portal.start_task_soon(stage.answer_rest, "cut", chunks[5:], 0)
                assert got == ["a", "b", "c"]
                assert stream.complete
                tasks.cancel_scope.cancel()

    anyio.run(main)
