"""A real server in memory, carried in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from client_stage import KEY, Stage

from everturn.server.assembly import build
from everturn.server.settings import Settings
from everturn.testing.asgi import AsgiTransport


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(build(Settings(data_dir=None, secret_key=KEY)))
        transport = await stack.enter_async_context(AsgiTransport(system.app))
        stage = Stage(system, transport)
        await stage.register("agent")
        yield stage
