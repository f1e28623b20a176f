"""The official client writes through a connection that loses an answer, and tries again."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.abc
import httpx2
import pytest
from driver import Driver

from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

#: Once a client has sent this much over HTTP/2, it hears no more.
SENT_BYTES = 3_000
#: Enough that an ack is among what it does not hear.
UNHEARD_BYTES = 40


class LossyLink:
    """Passes connections on to a server; the first one over HTTP/2 is cut with an ack on its way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cuts = 0
        self.http2_connections = 0

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", self._port) as server:
            first = await self._receive(client)
            is_lossy = first.startswith(b"PRI") and not self.cuts
            self.http2_connections += first.startswith(b"PRI")
            sent = SimpleNamespace(bytes=len(first))
            if first:
                await server.send(first)
            async with anyio.create_task_group() as both:
                both.start_soon(self._forward, client, server, sent, both.cancel_scope)
                both.start_soon(self._answer, server, client, sent, is_lossy, both.cancel_scope)

    async def _forward(self, client: Any, server: Any, sent: Any, end: anyio.CancelScope) -> None:
        while data := await self._receive(client):
            sent.bytes += len(data)
            await server.send(data)
        end.cancel()

    async def _answer(
        self, server: Any, client: Any, sent: Any, is_lossy: bool, end: anyio.CancelScope
    ) -> None:
        unheard = 0
        while data := await self._receive(server):
            if not is_lossy or sent.bytes < SENT_BYTES:
                await client.send(data)
                continue
            unheard += len(data)
            if unheard >= UNHEARD_BYTES:
                self.cuts += 1
                break
        end.cancel()

    @staticmethod
    async def _receive(stream: anyio.abc.SocketStream) -> bytes:
        try:
            return await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""


@asynccontextmanager
async def lossy(port: int) -> AsyncIterator[tuple[LossyLink, str]]:
    link = LossyLink(port)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, link.serve)
        own = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield link, f"http://127.0.0.1:{own}"
        tasks.cancel_scope.cancel()


async def test_a_batch_whose_ack_was_lost_is_sent_again_and_stored_once(
    node_folder: Path, system: System
) -> None:
    """P-5, with the client's own retries: nobody but it decides what is sent again."""
    id = uuid.uuid4().hex
    async with lossy(system.port) as (link, url):
        place: Any = SimpleNamespace(url=url, key=system.key, logs=system.logs)
        driver = Driver(node_folder, place)
        process = driver.start("directCrash", id=id, count=200)
        seen = await finish(driver, process)

    async with httpx2.AsyncClient(base_url=system.url) as client:
        reply = await client.get(
            f"/realtime/v1/sessions/{id}/out/records",
            headers={"authorization": f"Bearer {system.key}"},
        )
    assert (link.cuts, link.http2_connections) == (1, 2)
    assert seen == {"end": {"lastEventId": "200"}}
    assert [record["data"]["data"] for record in reply.json()["records"]] == list(range(200))


async def finish(driver: Driver, process: subprocess.Popen[str]) -> Any:
    try:
        return await anyio.to_thread.run_sync(partial(driver.finish, process))
    finally:
        process.kill()
