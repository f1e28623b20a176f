"""The life of a run, clause by clause: waits, actions, endings, what a turn counts."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from talkers import Chat

from everturn import chat
from everturn.chat.chunks import check_chunk
from everturn.chat.ui_messages import merge_by_id
from everturn.errors import ChatChunkTooLargeError
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


# --- waiting --------------------------------------------------------------------------------------


async def test_a_message_that_wakes_a_run_is_committed_under_its_own_number() -> None:
    """R-013, R-079: stops before it are not counted for it, the one after it waits its turn."""
    talk = Chat(idle_timeout=0)
    async with mock_chat_agent(talk.agent) as h:
        await h.send_message("m0")
        await h.settled()
        assert h.suspended
        await h.send_stop()
        await h.send_stop()
        await h.settled()
        third = await h.post_message("m3")
        fourth = await h.post_message("m4")
        await h.settled()
        turns = await h.turns()
    assert (third, fourth) == (3, 4)
    assert [(turn.text, turn.cursor.seq_num) for turn in turns] == [
        ("re m0", 0),
        ("re m3", 3),
        ("re m4", 4),
    ]


async def test_the_boot_hook_runs_at_every_start_of_a_process_and_at_no_resuming() -> None:
    """R-024: first run, resuming, further attempt, continuation."""
    talk = Chat()
    talk.agent.on_boot(lambda event: None)
    async with mock_chat_agent(talk.agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.advance(31)
        assert h.suspended
        await h.send_message("m2")
        assert h.hook_calls.count("on_boot") == 1
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        assert h.hook_calls.count("on_boot") == 2
        await h.drain()
        await h.restart()
        await h.settled()
    assert h.hook_calls.count("on_boot") == 3


# --- actions --------------------------------------------------------------------------------------


async def test_actions_count_for_neither_the_index_nor_the_bound_of_turns() -> None:
    """R-092, R-100: nor is the first turn after them another one than the first."""
    talk = Chat(max_turns=2)
    talk.agent.on_action(lambda event: None)
    talk.agent.on_chat_start(lambda event: None)
    talk.agent.on_turn_start(lambda event: None)
    async with mock_chat_agent(talk.agent) as h:
        for _ in range(3):
            await h.send_action({"do": 1})
        await h.send_message("m1")
        assert h.event("on_turn_start").turn == 0
        await h.send_action({"do": 1})
        await h.settled()
        assert h.alive
        await h.send_message("m2")
        await h.settled()
        assert h.outcomes == [(h.run_id, "completed")]
    assert h.hook_calls.count("on_chat_start") == 1
    assert [event.turn for name, event in h.events if name == "on_turn_start"] == [0, 1]


async def test_an_action_nobody_handles_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R-095: once in the life of the process."""

    @chat.agent("unheard-of")
    async def unheard(turn: Any) -> str:
        return "ok"

    with caplog.at_level(logging.WARNING, "everturn.chat"):
        for _ in range(2):
            async with mock_chat_agent(unheard) as h:
                await h.send_action(1)
                turn = await h.send_action(2)
                assert turn.raw_chunks == [{"type": "trigger:turn-complete"}]
    assert [record.message for record in caplog.records] == [
        "action.unhandled: agent unheard-of has no on_action"
    ]


async def test_an_action_that_returns_nothing_writes_its_end_and_no_snapshot() -> None:
    """R-099, R-132: one that changes history stores it before its turn-complete."""
    talk = Chat()

    @talk.agent.on_action
    def act(event: Any) -> None:
        if event.action == "cut":
            chat.history.slice(0, 1)

    async with mock_chat_agent(talk.agent) as h:
        await h.send_message("m1")
        await h.settled()
        written = h.world.snapshot_writes
        turn = await h.send_action("look")
        await h.settled()
        assert turn.raw_chunks == [{"type": "trigger:turn-complete"}]
        assert h.world.snapshot_writes == written
        h.timeline.clear()
        await h.send_action("cut")
        await h.settled()
    assert h.timeline[:3] == ["on_action", "SN", "TC"]


async def test_every_turn_is_stored_before_its_run_may_be_suspended() -> None:
    """R-132: a good one and a failed one, with what was said in it."""
    talk = Chat(idle_timeout=0)
    async with mock_chat_agent(talk.agent) as h:
        for text, kept in (("m1", ["m1", "re m1"]), ("fail", ["m1", "re m1", "fail"])):
            await h.send_message(text)
            await h.settled()
            assert h.suspended
            snapshot = await h.get_snapshot()
            assert snapshot is not None
            found = [m["parts"][-1]["text"] for m in snapshot["messages"]]
            assert found == kept
            ends = [r for r in await h.records() if r.control == "turn-complete"]
            assert snapshot["lastOutEventId"] == str(ends[-1].seq_num)
            assert snapshot["lastInEventId"] == str((await h.turns())[-1].cursor.seq_num)


# --- endings --------------------------------------------------------------------------------------


async def test_a_close_in_mid_turn_cuts_nothing() -> None:
    """R-102: not even for a moment does the turn look stopped."""
    entered, go_on = anyio.Event(), anyio.Event()
    stopped: list[bool] = []

    @chat.agent("slow")
    async def slow(turn: Any) -> Any:
        yield "begun"
        entered.set()
        await go_on.wait()
        stopped.append(turn.signal.aborted)
        yield " and done"

    slow.on_turn_complete(lambda event: None)
    async with mock_chat_agent(slow) as h:
        await h.post_message("m1")
        await entered.wait()
        await h.send_close()
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await h.settled()
        (turn,) = await h.turns()
        event = h.event("on_turn_complete")
        assert not h.alive
    assert turn.text == "begun and done"
    assert (stopped, event.stopped) == ([False], False)


@pytest.mark.parametrize("where", ["run", "defer", "on_before_turn_complete", "on_turn_complete"])
async def test_a_run_may_be_ended_from_anywhere_in_its_turn(where: str) -> None:
    """R-107, R-113: without waiting, and well."""

    async def later() -> None:
        chat.end_run()

    @chat.agent("ending")
    async def ending(turn: Any) -> str:
        if where == "run":
            chat.end_run()
        elif where == "defer":
            chat.defer(later)
        return "last words"

    if where.startswith("on_"):
        ending.hooks.add(where, lambda event: chat.end_run())
    async with mock_chat_agent(ending) as h:
        turn = await h.send_message("m1")
        await h.settled()
        assert not h.alive
        assert h.waitpoints == []
        assert [how for _, how in h.outcomes] == ["completed"]
    assert turn.text == "last words"


async def test_failed_turns_count_for_the_bound_of_turns() -> None:
    """R-108: the run ends right after the second, and a successor answers the third."""
    talk = Chat(max_turns=2)
    async with mock_chat_agent(talk.agent) as h:
        await h.send_message("fail")
        first = h.run_id
        await h.send_message("m2")
        await h.settled()
        assert not h.alive
        turn = await h.send_message("m3")
        assert h.run_id != first
    assert turn.text == "re m3"
    assert talk.lanes[-1] == ["fail", "m2", "re m2", "m3"]


@pytest.mark.parametrize("how", ["timeout", "close", "end_run", "upgrade", "max_turns", "skip"])
async def test_every_end_of_its_own_is_a_success(how: str) -> None:
    """R-113."""
    talk = Chat(max_turns=1 if how == "max_turns" else 100)

    @talk.agent.on_turn_start
    def early(event: Any) -> None:
        if how == "end_run":
            chat.end_run()
        elif how == "upgrade" and not event.continuation:
            chat.request_upgrade()

    mode = "handover-prepare" if how == "skip" else "preload"
    async with mock_chat_agent(talk.agent, mode=mode) as h:  # type: ignore[arg-type]  # one of two
        if how == "skip":
            await h.send_handover_skip()
        else:
            await h.send_message("m1")
        await h.settled()
        if how == "close":
            await h.send_close()
        elif how == "timeout":
            await h.advance(31)
            await h.advance(3601)
        await h.settled()
        ended = h.outcomes[0][1]
    assert ended == "completed"


# --- what a turn counts and writes ----------------------------------------------------------------


async def test_usage_is_the_turns_own_the_sum_so_far_and_the_turn_befores() -> None:
    """R-055: in the agent's function the sum is of the turns before it."""
    model = Agent(TestModel(custom_output_text="one two three"))
    in_run: list[tuple[Any, Any]] = []

    @chat.agent("counting")
    async def counting(turn: Any) -> Any:
        in_run.append((turn.previous_turn_usage, turn.total_usage))
        return turn.stream(model)

    counting.on_turn_complete(lambda event: None)
    async with mock_chat_agent(counting) as h:
        for text in ("m1", "m2", "m3"):
            await h.send_message(text)
            await h.settled()
    ends = [event for name, event in h.events if name == "on_turn_complete"]
    own = [end.usage.input_tokens for end in ends]
    assert all(own)
    assert [end.total_usage.input_tokens for end in ends] == [own[0], sum(own[:2]), sum(own)]
    assert in_run[0] == (None, None)
    before = [(prev.input_tokens, total.input_tokens) for prev, total in in_run[1:]]
    assert before == [(own[0], own[0]), (own[1], sum(own[:2]))]


async def test_an_answer_of_data_parts_only_is_nothing_to_the_model() -> None:
    """R-146."""

    @chat.agent("charts")
    async def charts(turn: Any) -> None:
        chat.response.data("chart", [1])

    async with mock_chat_agent(charts) as h:
        await h.send_message("m1")
        await h.send_message("m2")
        turn = h.event("run")
    roles = [message["role"] for message in turn.ui_messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert {message.kind for message in turn.messages} == {"request"}


def test_the_largest_chunk_is_exactly_as_large_as_a_record_allows() -> None:
    """R-148: 1 047 552 bytes with its envelope and part id; the error has type, size and limit."""
    part_id = "1-0"
    around = len(b'{"data":{"type":"data-x","data":""},"id":"1-0"}')
    largest = {"type": "data-x", "data": "x" * (1_047_552 - around)}
    check_chunk(largest, part_id=part_id)
    with pytest.raises(ChatChunkTooLargeError) as refused:
        check_chunk({**largest, "data": largest["data"] + "x"}, part_id=part_id)
    error = refused.value
    assert (error.chunk_type, error.chunk_size, error.max_size) == ("data-x", 1_047_553, 1_047_552)


def test_messages_without_an_id_are_all_kept_where_they_come() -> None:
    """R-135: an empty id, or none, is nobody's."""
    nameless = [
        {"id": "", "role": "user", "parts": [{"type": "text", "text": "one"}]},
        {"role": "user", "parts": [{"type": "text", "text": "two"}]},
    ]
    known = {"id": "k", "role": "user", "parts": []}
    newer = {**known, "parts": [{"type": "text", "text": "newer"}]}
    merged = merge_by_id([*nameless, known], [*nameless, newer])
    assert merged == [*nameless, newer, *nameless]


async def test_two_harnesses_of_one_chat_id_share_nothing() -> None:
    """R-261."""
    talk = Chat()
    async with mock_chat_agent(talk.agent) as one, mock_chat_agent(talk.agent) as two:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.send_message, "a")
            tasks.start_soon(two.send_message, "b")
        assert [turn.text for turn in await one.turns()] == ["re a"]
        assert [turn.text for turn in await two.turns()] == ["re b"]
    assert sorted(talk.lanes) == [["a"], ["b"]]
