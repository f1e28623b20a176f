"""Messages that arrive during a turn, with real processes and kill -9 (rulings §1.14, §5.8)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversation import Conversations

from everturn.chat.policy import INTERRUPTED, REJECTED
from everturn.client.agent_chat import AgentChat
from everturn.client.config import configure
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]
APP = Path(__file__).parent.parent / "apps" / "steered.py"
MARKER = "data-pending-message-injected"


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with System(tmp_path / "data", APP) as running:
        configure(url=running.url, secret_key=running.key)
        try:
            yield running
        finally:
            configure()


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("victim", ["nobody", "worker", "server"])
async def test_a_message_that_joined_a_turn_is_answered_once_whoever_dies(
    conversations: Conversations, victim: str
) -> None:
    """P-3: its turn-complete covers both; a new attempt takes it in again at its first step."""
    async with AgentChat("steered", id=fresh("steer")) as chat:
        stream = await chat.send_message("one")
        steered = False
        async for chunk in stream:
            if chunk["type"] == "tool-input-available" and not steered:
                steered = await chat.steer("two")
            if chunk["type"] == MARKER and victim != "nobody":
                await getattr(conversations, f"restart_{victim}")()
                victim = "nobody"
        (turn,) = await conversations.settled(chat.id, 1)
    assert turn.answers == [0, 1]
    assert turn.text == "heard one two"
    assert sum(chunk["type"] == MARKER for chunk in turn.chunks) == 1 + turn.restarts


async def test_a_newer_message_interrupts_the_turn_in_progress(
    conversations: Conversations,
) -> None:
    async with AgentChat("interrupted", id=fresh("interrupt")) as chat:
        stream = await chat.send_message("old")
        async for chunk in stream:
            if chunk.get("delta", "").startswith("old3"):
                assert await chat.steer("now")
        first, second = await conversations.settled(chat.id, 2)
    assert first.text.startswith("old0 ")
    assert any(c["type"] == "abort" and c["reason"] == INTERRUPTED for c in first.chunks)
    assert second.text == "now0 "


async def test_a_busy_chat_refuses_a_message_visibly_and_answers_the_next(
    conversations: Conversations,
) -> None:
    async with AgentChat("rejecting", id=fresh("reject")) as chat:
        stream = await chat.send_message("one")
        async for chunk in stream:
            if chunk.get("delta") == "w3 ":
                assert await chat.steer("two")
        refusal = await chat.reconnect()
        assert refusal is not None
        assert await refusal.text() == ""
        assert refusal.error == REJECTED
        await conversations.ask(chat, "three")
        first, refused, third = await conversations.settled(chat.id, 3)
    assert refused.error == REJECTED
    assert (first.error, third.error) == (None, None)
    assert first.text == third.text
