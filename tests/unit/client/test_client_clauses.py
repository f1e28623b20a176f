"""Clauses of the clients whose tests let the promise be broken (chat-agent §5, §6)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from client_stage import Stage

from everturn import AgentChat, ChatSessionState, ChatStream, sessions
from everturn.errors import SessionClosedError, Unprocessable

pytestmark = pytest.mark.anyio


async def test_an_expired_session_takes_no_messages(stage: Stage) -> None:
    """R-241: as a closed one does not."""
    await sessions.start(
        type="chat.agent",
        task="agent",
        external_id="c/1",
        expires_at=timedelta(milliseconds=-1),
        api=stage.api,
    )
    chat = AgentChat("agent", "c/1", session=ChatSessionState(), api=stage.api)
    with pytest.raises(SessionClosedError):
        await chat.send_message("late")
    with pytest.raises(SessionClosedError):
        await sessions.open("c/1", api=stage.api).in_.send("late")


async def test_a_session_keeps_its_external_id(stage: Stage) -> None:
    """R-256: a change is refused with 422, the same id said again is none."""
    await sessions.start(type="t", task="agent", external_id="s/1", api=stage.api)
    with pytest.raises(Unprocessable) as refused:
        await stage.api.update_session("s/1", {"externalId": "s/2", "tags": ["a"]})
    assert refused.value.details["status"] == 422
    assert (await stage.api.update_session("s/1", {"externalId": "s/1"}))["externalId"] == "s/1"


async def test_a_regenerate_sends_no_message_whatever_it_is_given(stage: Stage) -> None:
    """R-238."""
    chat = AgentChat("agent", "c/1", api=stage.api)
    shown = {"id": "u", "role": "user", "parts": []}
    await chat.send_raw([shown], trigger="regenerate-message")
    [(_, chunk)] = await stage.input("c/1")
    assert chunk["payload"] == {"chatId": "c/1", "trigger": "regenerate-message"}


async def test_a_change_of_version_is_no_chunk_of_the_answer(stage: Stage) -> None:
    """R-240."""
    stream = await AgentChat("agent", "c/1", api=stage.api).send_message("one")
    await stage.api.write_records("c/1", [{"control": "upgrade-required"}])
    await stage.answer("c/1", 0, "after")
    kinds = [chunk["type"] for chunk in await _all(stream)]
    assert kinds[0] == "start"
    assert set(kinds) <= {
        *("start", "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish"),
    }


async def _all(stream: ChatStream) -> list[dict[str, Any]]:
    return [chunk async for chunk in stream]
