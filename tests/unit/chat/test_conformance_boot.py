"""What a run finds when it begins, clause by clause: recovery, replay, snapshots, trimmed records."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from talkers import Chat, Dying, texts

from everturn import chat
from everturn.errors import Unavailable
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("answer", [None, {}, chat.RecoveryOverrides(), {"recovered_turns": None}])
async def test_a_recovery_hook_that_says_nothing_keeps_the_partial(answer: Any) -> None:
    """R-119, R-120: a field that is missing keeps its default too."""
    dying = Dying()
    dying.agent.on_recovery_boot(lambda event: answer)
    async with mock_chat_agent(dying.agent) as h:
        await dying.killed(h)
        await h.seed_in("m2")
        await h.restart()
        await h.settled()
        assert h.hook_calls.count("on_recovery_boot") == 1
    assert dying.lanes[-1] == ["m1", "half m1", "m2"]


async def test_the_work_before_boot_is_done_before_boot_and_what_was_shown_comes_first() -> None:
    """R-121: the hook's own chunks precede every later record."""
    dying = Dying()
    order: list[str] = []

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        order.append("work")

    @dying.agent.on_recovery_boot
    def recovery(event: Any) -> Any:
        event.writer.data("recovering", 1)
        return {"before_boot": work}

    dying.agent.on_boot(lambda event: order.append("boot"))
    async with mock_chat_agent(dying.agent) as h:
        await dying.killed(h)
        order.clear()
        before = len(await h.all_raw_chunks())
        await h.seed_in("m2")
        await h.restart()
        await h.settled()
        chunks = (await h.all_raw_chunks())[before:]
    assert order == ["work", "boot"]
    assert chunks[0]["type"] == "data-recovering"


async def test_what_fails_before_boot_fails_the_run() -> None:
    """R-121."""
    dying = Dying()

    def work() -> None:
        raise ValueError("not today")

    dying.agent.on_recovery_boot(lambda event: {"before_boot": work})
    dying.agent.on_boot(lambda event: None)
    async with mock_chat_agent(dying.agent) as h:
        await dying.killed(h)
        h.hook_calls.clear()
        await h.seed_in("m2")
        await h.restart()
        await h.settled()
        assert h.outcomes[-1][1] == "failed"
    assert h.hook_calls == ["on_recovery_boot"]


async def test_the_recovery_hook_is_told_of_the_calls_that_were_left_open() -> None:
    """R-118, R-122: by name, input and place; the cleaned partial does not hold them."""
    dying = Dying()
    dying.agent.on_recovery_boot(lambda event: None)
    call = {"toolCallId": "c", "toolName": "look", "input": {"q": 1}}
    async with mock_chat_agent(dying.agent, mode="continuation", start=False) as h:
        await h.seed_session_in_tail(["m0", "m9"])
        await h.seed_out(
            {"type": "start", "messageId": "a1"},
            {"type": "start-step"},
            {"type": "text-start", "id": "t"},
            {"type": "text-delta", "id": "t", "delta": "let me look"},
            {"type": "text-end", "id": "t"},
            {"type": "tool-input-available", **call},
        )
        await h.start()
        await h.settled()
        event = h.event("on_recovery_boot")
    assert event.pending_tool_calls == [
        {"tool_call_id": "c", "tool_name": "look", "input": {"q": 1}, "part_index": 2}
    ]
    assert [part["type"] for part in event.partial_assistant["parts"]] == ["step-start", "text"]
    assert texts(event.in_flight_users) == ["m0", "m9"]


async def test_a_replayed_message_takes_its_place_in_a_snapshot_that_holds_it() -> None:
    """R-129: in place, though newer messages follow it."""
    talk = Chat()
    old = {"id": "a1", "role": "assistant", "parts": [{"type": "text", "text": "before"}]}
    async with mock_chat_agent(talk.agent, mode="continuation", start=False) as h:
        messages = [h.user("m1"), old, h.user("m2")]
        await h.seed_snapshot({"version": 1, "messages": messages})
        await h.seed_out(
            {"type": "start", "messageId": "a1"},
            {"type": "start-step"},
            {"type": "text-start", "id": "t"},
            {"type": "text-delta", "id": "t", "delta": " and after"},
            {"type": "text-end", "id": "t"},
            {"type": "finish"},
            {"type": "trigger:turn-complete"},
        )
        await h.start()
        await h.send_message("m3")
    assert talk.lanes == [["m1", "before and after", "m2", "m3"]]


async def test_records_that_were_trimmed_and_can_still_be_read_double_nothing() -> None:
    """R-130: with a snapshot, and when it is lost."""
    talk = Chat()
    async with mock_chat_agent(talk.agent) as h:
        for text in ("m1", "m2", "m3"):
            await h.send_message(text)
        await h.settled()
        assert await h.trims()
        h.world.faults["save_snapshot"] = [Unavailable("lost")]
        await h.send_message("m4")
        await h.settled()
        await h.crash()
        await h.restart()
        await h.send_message("m5")
    said = [text for n in range(1, 5) for text in (f"m{n}", f"re m{n}")]
    assert talk.lanes[-1] == [*said, "m5"]


async def test_a_process_killed_between_a_turns_end_and_its_completion_hook_answers_once() -> None:
    """R-134: the turn is history, and its message is not answered again."""
    talk = Chat()
    entered = anyio.Event()

    @talk.agent.on_turn_complete
    async def stuck(event: Any) -> None:
        if event.ui_messages[-1].text == "re m2" and not event.continuation:
            entered.set()
            await anyio.sleep_forever()

    async with mock_chat_agent(talk.agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.post_message("m2")
        await entered.wait()
        await h.crash()
        await h.restart()
        await h.settled()
        turn = await h.send_message("m3")
        turns = await h.turns()
    assert [turn.text for turn in turns] == ["re m1", "re m2", "re m3"]
    assert turn.cursor.seq_num == 2
    assert talk.lanes[-1] == ["m1", "re m1", "m2", "re m2", "m3"]


async def test_a_run_cancelled_between_turns_leaves_nothing_to_recover() -> None:
    """R-117."""
    talk = Chat()
    talk.agent.on_recovery_boot(lambda event: None)
    async with mock_chat_agent(talk.agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.crash()
        await h.restart()
        await h.settled()
        await h.send_message("m2")
        assert len(await h.turns()) == 2
    assert "on_recovery_boot" not in h.hook_calls
