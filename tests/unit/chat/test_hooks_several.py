"""Several registrations of one hook (chat-agent §3.3)."""

from __future__ import annotations

from typing import Any

import pytest

from everturn import chat
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["on_turn_complete", "on_chat_suspend", "on_chat_resume"])
async def test_a_hook_that_fails_does_not_keep_the_others_of_its_name_from_running(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    @chat.agent("several")
    async def several(turn: Any) -> str:
        return "answer"

    def failing() -> None:
        raise ValueError("not counted")

    several.hooks.add(name, failing)
    several.hooks.add(name, failing)
    several.hooks.add(name, lambda event: told.append(event.run_id))
    async with mock_chat_agent(several, preload=False) as h:
        await h.send_message("m1")
        await h.advance(60)
        await h.send_message("m2")
        await h.settled()
        run_id = h.run_id
    assert set(told) == {run_id}
    logged = [record for record in caplog.records if record.message == f"hook.failed: {name}"]
    assert len(logged) == 2 * len(told)


async def test_a_hook_that_fails_its_turn_ends_the_row() -> None:
    told: list[str] = []

    @chat.agent("several")
    async def several(turn: Any) -> str:
        return "answer"

    @several.on_turn_start
    def refuse() -> None:
        raise ValueError("not today")

    @several.on_turn_start
    def second() -> None:
        told.append("second")

    async with mock_chat_agent(several) as h:
        turn = await h.send_message("m1")
    assert turn.errors == ["not today"]
    assert told == []
