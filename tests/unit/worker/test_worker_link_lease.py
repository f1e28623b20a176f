"""A lease that ends while a worker greets its server."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.protocol import link as frames
from everturn.rules import limits
from everturn.tasks.definition import task

pytestmark = pytest.mark.anyio


async def test_runs_lost_between_hello_and_welcome_are_not_kept_by_the_server(
    server: Any, work: Any
) -> None:
    """P-3: the Hello named them, and nobody has them any more: another Hello has to say so.

    Found by the soak: a server that was slow to start took the first one at its word, and held
    124 runs for a worker that had stopped them all.
    """
    # L-5
    server.lease_ms, server.heartbeat_ms = 1_500, 60_000
    ended = anyio.Event()
    received = server._received

    async def slowly(frame: Any) -> None:
        if isinstance(frame, frames.Hello) and frame.held:
            await ended.wait()
            server.lease_ms = limits.LEASE_MS
        await received(frame)

    server._received = slowly

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with work():
        await server.next(frames.Hello)
        info = await server.claim()
        await server.next(frames.Started)
        await server.cut()
        named = await server.next(frames.Hello)
        with anyio.fail_after(5):
            corrected = await server.next(frames.Hello)

    assert [held.run_id for held in named.held] == [info.run_id]
    assert corrected.held == []
