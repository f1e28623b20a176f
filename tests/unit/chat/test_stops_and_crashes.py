"""Stops that meet a crash, a queue or the end of a turn (rulings §1.7, §1.12; P-6)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from talkers import texts

from everturn import chat
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Halting:
    """Answers `half …`, waits where a test says so, and answers on."""

    def __init__(self, *waits: str) -> None:
        self.waits = list(waits)
        self.began: list[str] = []

        @chat.agent("halting")
        async def halting(turn: Any) -> Any:
            self.began.append(turn.text)
            yield f"half {turn.text}"
            if turn.text in self.waits:
                self.waits.remove(turn.text)
                await anyio.sleep_forever()
            await anyio.lowlevel.checkpoint()
            yield " whole"

        self.agent = halting


async def test_a_stop_for_a_queued_message_does_not_commit_the_answer_a_crash_cut_off() -> None:
    """The stop names the second message: the first one's half answer is given again, once."""
    halting = Halting("m1")
    async with mock_chat_agent(halting.agent) as h:
        await h.post_message("m1")
        await h.reached(lambda: halting.began == ["m1"])
        await anyio.wait_all_tasks_blocked()
        second = await h.post_message("m2")
        await h.send_stop(target=second)
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        snapshot = await h.get_snapshot()
        first, second_turn = await h.turns()
    assert snapshot is not None
    assert texts(snapshot["messages"])[:3] == ["m1", "half m1 whole", "m2"]
    assert [c["type"] for c in first.chunks].count("data-restarted") == 1
    assert first.chunks[-1]["type"] == "finish"
    assert "whole" not in second_turn.text


async def test_a_stop_for_a_queued_message_survives_a_crash_after_the_turn_before_it() -> None:
    """It is used when its message's turn begins, and is not decided by an earlier commit."""
    halting = Halting()
    gate = anyio.Event()
    hung = anyio.Event()

    @halting.agent.on_turn_complete
    async def slow() -> None:
        if not hung.is_set():
            hung.set()
            await gate.wait()

    async with mock_chat_agent(halting.agent) as h:
        halting.waits.append("m1")
        await h.post_message("m1")
        await h.reached(lambda: halting.began == ["m1"])
        second = await h.post_message("m2")
        await h.send_stop(target=second)
        await h.send_stop()
        await h.reached(hung.is_set)
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        answers = [turn.text for turn in await h.turns()]
    assert len(answers) == 2
    assert "whole" not in answers[1], "the stop was forgotten, and the message answered in full"


async def test_two_stops_for_two_queued_messages_both_survive_a_crash() -> None:
    halting = Halting("m1")
    async with mock_chat_agent(halting.agent) as h:
        await h.post_message("m1")
        await h.reached(lambda: halting.began == ["m1"])
        second = await h.post_message("m2")
        third = await h.post_message("m3")
        await h.send_stop(target=second)
        await h.send_stop(target=third)
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        answers = [turn.text for turn in await h.turns()]
    assert len(answers) == 3
    assert answers[0].endswith("half m1 whole")
    assert all("whole" not in answer for answer in answers[1:])


async def test_a_stop_for_a_message_sent_after_the_turn_complete_stops_that_message() -> None:
    """A slow completion hook holds up the next turn; for the client that turn is in progress."""
    halting = Halting()
    gate = anyio.Event()
    hung = anyio.Event()

    @halting.agent.on_turn_complete
    async def slow() -> None:
        if not hung.is_set():
            hung.set()
            await gate.wait()

    async with mock_chat_agent(halting.agent) as h:
        await h.post_message("m1")
        await h.reached(hung.is_set)
        await h.post_message("m2")
        await h.send_stop()
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await h.settled()
        answers = [turn.text for turn in await h.turns()]
    assert answers[0] == "half m1 whole"
    assert "whole" not in answers[1]


async def test_a_late_stop_for_the_turn_before_does_not_stop_a_message_queued_during_it() -> None:
    """Spec §2.11, after T25: the second message waited when the turn-complete was written."""
    halting = Halting()
    gate = anyio.Event()
    hung = anyio.Event()

    @halting.agent.on_turn_complete
    async def slow() -> None:
        if not hung.is_set():
            hung.set()
            await gate.wait()

    held = anyio.Event()
    release = anyio.Event()

    @halting.agent.on_before_turn_complete
    async def hold() -> None:
        if not held.is_set():
            held.set()
            await release.wait()

    async with mock_chat_agent(halting.agent) as h:
        await h.post_message("m1")
        await h.reached(held.is_set)
        await h.post_message("m2")
        await anyio.wait_all_tasks_blocked()
        release.set()
        await h.reached(hung.is_set)
        await h.send_stop()
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await h.settled()
        answers = [turn.text for turn in await h.turns()]
    assert answers == ["half m1 whole", "half m2 whole"]
