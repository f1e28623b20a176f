"""The machine's clock is set forward and back by hours under a running system."""

from __future__ import annotations

import anyio
import pytest
from load_kit import Hostile, Server

from everturn import AgentChat

pytestmark = [pytest.mark.anyio, pytest.mark.processes]


async def answer(chat: AgentChat, text: str) -> str:
    with anyio.fail_after(60):
        stream = await chat.send_message(text)
        said = await stream.text()
        assert stream.complete
        stream.raise_for_error()
        return said


async def test_conversations_go_on_through_a_clock_that_jumps(
    server: Server, hostile: Hostile
) -> None:
    """P-3: by an hour forward, two back; in mid-answer, while suspended, and as a worker dies."""
    async with AgentChat("eager", id="sleepy") as sleepy, AgentChat("slow", id="slow") as slow:
        assert await answer(sleepy, "one") == "answer 1"
        for jump_s in (3600, -3600, 40, -7200):
            stream = await slow.send_message("count")
            words = 0
            async for chunk in stream:
                words += chunk["type"] == "text-delta"
                if words == 5:
                    hostile.clock_ahead(jump_s)
            assert stream.complete, server.system.logs()
            assert await answer(slow, "short") == "short"
        assert await answer(sleepy, "two") == "answer 3"
        # Nobody beats for this worker any more; its row says that its lease has hours to go.
        hostile.clock_ahead(-14_400)
        server.system.kill_worker()
        await anyio.to_thread.run_sync(server.system.start_worker)
        assert await answer(sleepy, "three") == "answer 5"
        assert await answer(slow, "short") == "short"
