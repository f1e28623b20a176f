"""The pytest plugin: the fixture `chat_harness`.

It is loaded by its entry point in every project that has everturn installed, so it imports nothing
of the package until the fixture is used.

    async def test_a_message_is_answered(chat_harness):
        h = await chat_harness("assistant")
        assert (await h.send_message("hello")).text == "Hello!"

The fixture is asynchronous and runs on anyio's plugin, which comes with everturn: mark the module
with `pytestmark = pytest.mark.anyio` and let a fixture `anyio_backend` return "asyncio". Under any
other plugin use `async with testing.mock_chat_agent(…)`, which needs no fixture.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from everturn.testing.harness import ChatHarness


@pytest.fixture
async def chat_harness(anyio_backend: Any) -> AsyncIterator[Callable[..., Awaitable[ChatHarness]]]:
    """Starts chat agents, any number in one test; those still open are closed after it.

    Takes what `testing.mock_chat_agent` takes. Raises LookupError for an unknown agent.
    """
    from everturn.testing.harness import mock_chat_agent

    async with AsyncExitStack() as stack:

        async def start(agent: Any, **options: Any) -> ChatHarness:
            return await stack.enter_async_context(mock_chat_agent(agent, **options))

        yield start
