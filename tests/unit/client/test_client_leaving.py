"""Leaving a chat: `async with AgentChat(..., close_on_exit=True)` (chat-agent §4.12)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from client_stage import Stage

from everturn import AgentChat, Signal

pytestmark = pytest.mark.anyio


async def kinds(stage: Stage, chat_id: str) -> list[str]:
    """What was sent to a chat: triggers of messages, and kinds of other records."""
    chunks: list[dict[str, Any]] = [chunk for _, chunk in await stage.input(chat_id)]
    return [
        chunk["payload"]["trigger"] if chunk["kind"] == "message" else chunk["kind"]
        for chunk in chunks
    ]


async def test_leaving_a_chat_opened_for_one_answer_closes_it(stage: Stage) -> None:
    async with AgentChat("agent", "c/1", api=stage.api, close_on_exit=True) as chat:
        stream = await chat.send_message("hello")
        await stage.answer("c/1", 0, "hi")
        assert await stream.text() == "hi"

    assert await kinds(stage, "c/1") == ["submit-message", "close"]


async def test_leaving_any_other_chat_leaves_it_alone(stage: Stage) -> None:
    async with AgentChat("agent", "c/1", api=stage.api) as chat:
        await chat.send_message("hello")

    assert await kinds(stage, "c/1") == ["submit-message"]


async def test_leaving_a_chat_that_was_never_used_sends_nothing(stage: Stage) -> None:
    async with AgentChat("agent", "c/1", api=stage.api, close_on_exit=True) as chat:
        assert chat.session.last_event_id is None


async def test_a_cancelled_caller_with_a_signal_still_stops_and_closes_what_it_opened(
    stage: Stage,
) -> None:
    """What a stopped tool of another agent does: its task is cancelled, its signal aborted."""
    signal = Signal()
    with anyio.CancelScope() as scope:
        async with AgentChat("agent", "c/1", api=stage.api, close_on_exit=True) as chat:
            stream = await chat.send_message("hello", signal=signal)
            signal.abort("stopped")
            scope.cancel()
            await stream.text()

    assert await kinds(stage, "c/1") == ["submit-message", "stop", "close"]
