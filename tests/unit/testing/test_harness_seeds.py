"""What a test seeds, and the records of the chat that it must have stood for (chat-agent §7)."""

from __future__ import annotations

from typing import Any

import pytest

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


def echo() -> ChatAgent[Any]:
    with collecting(Registry()):

        @chat.agent("echo")
        async def echo(turn: Any) -> str:
            return f"{len(turn.ui_messages)} {turn.text}"

    return echo


def message(role: str, text: str) -> dict[str, Any]:
    return {"id": text, "role": role, "parts": [{"type": "text", "text": text}]}


STORED = {
    "version": 1,
    "messages": [message("user", "before"), message("assistant", "answered")],
    "lastInEventId": "4",
    "lastOutEventId": "30",
}


@pytest.mark.parametrize("starts", [True, False], ids=["at once", "with the first message"])
async def test_a_message_after_a_seeded_snapshot_is_answered(starts: bool) -> None:
    """It comes after everything the snapshot covers, whatever numbers that has."""
    async with mock_chat_agent(
        echo(), mode="continuation", start=starts, snapshot=STORED
    ) as harness:
        first = await harness.send_message("hello")
        second = await harness.send_message("bye")
        stored = await harness.get_snapshot()

    assert (first.text, second.text) == ("3 hello", "5 bye")
    assert first.cursor.seq_num == 5
    assert stored is not None
    assert int(stored["lastOutEventId"]) > 30


async def test_a_message_after_a_seeded_turn_complete_is_answered() -> None:
    async with mock_chat_agent(echo(), mode="continuation", start=False) as harness:
        await harness.seed_out(
            {"type": "start", "messageId": "a"},
            {"type": "finish"},
            {"type": "trigger:turn-complete", "cursor": 7},
        )
        turn = await harness.send_message("hello")

    assert turn.cursor.seq_num == 8


async def test_a_snapshot_kept_back_for_the_next_boot_is_followed_by_messages_too() -> None:
    async with mock_chat_agent(echo()) as harness:
        await harness.send_message("first")
        await harness.seed_snapshot(STORED)
        await harness.settled()
        await harness.crash()
        turn = await harness.send_message("hello")

    assert turn.text == "3 hello"
    assert turn.cursor.seq_num == 5


async def test_what_a_snapshot_covers_of_a_seeded_tail_is_not_answered_again() -> None:
    """Records that are there keep their numbers: only what is missing is made up."""
    async with mock_chat_agent(echo(), mode="continuation", start=False) as harness:
        await harness.seed_snapshot({**STORED, "lastInEventId": "1"})
        await harness.seed_session_in_tail(["one", "two"])
        await harness.start()
        await harness.settled()
        covered, *turns = await harness.turns()

    assert covered.cursor.seq_num == 1
    assert [turn.text for turn in turns] == ["3 two"]


async def test_a_snapshot_that_covers_more_than_a_test_can_make_up_is_refused() -> None:
    snapshot = {**STORED, "lastInEventId": "4000000"}
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="covers record 4000000 of `in`")):
        async with mock_chat_agent(echo(), mode="continuation", snapshot=snapshot):
            pass
