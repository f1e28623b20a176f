"""`AgentChat` and `ChatStream` against a real server, the agent played by hand (chat-agent §5)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from client_stage import Stage, text

from everturn import AgentChat, ChatSessionState, Signal, sessions
from everturn.client.chat_stream import ChatStream
from everturn.errors import (
    ChatTurnError,
    SessionClosedError,
    StreamAlreadyConsumed,
    UIMessageStreamError,
)

pytestmark = pytest.mark.anyio


def chat(stage: Stage, id: str = "c/1", **options: Any) -> AgentChat:
    return AgentChat("agent", id, api=stage.api, **options)


class TestSending:
    async def test_the_first_send_starts_the_session_once_and_streams_its_turn(
        self, stage: Stage
    ) -> None:
        """R-224"""
        triggered: list[Any] = []
        agent = chat(stage, on_triggered=triggered.append, client_data={"u": 1})
        first = await agent.send_message("hello")
        [(seq, chunk)] = await stage.input("c/1")
        await stage.answer("c/1", seq, "hi ", "there")

        assert await first.text() == "hi there"
        assert first.complete
        assert chunk["kind"] == "message"
        assert chunk["payload"]["chatId"] == "c/1"
        assert chunk["payload"]["trigger"] == "submit-message"
        assert chunk["payload"]["metadata"] == {"u": 1}
        assert chunk["payload"]["message"]["parts"] == [{"type": "text", "text": "hello"}]

        second = await agent.send_message("again")
        await stage.answer("c/1", (await stage.input("c/1"))[-1][0], "yes")
        assert await second.text() == "yes"
        assert [event.chat_id for event in triggered] == ["c/1"]
        assert triggered[0].run_id.startswith("run_")

    async def test_the_session_is_started_with_everything_that_was_asked_for(
        self, stage: Stage
    ) -> None:
        """D-22"""
        agent = chat(
            stage,
            client_data={"u": 1},
            trigger_config={
                "base_payload": {"x": 1},
                "tags": ["a", "b", "c", "d", "e"],
                "max_duration": 60,
                "lock_to_version": "v",
                "region": "r",
            },
        )
        await agent.preload(idle_timeout="1m")
        info = await sessions.retrieve("c/1", api=stage.api)
        assert info.trigger_config == {
            "basePayload": {"trigger": "preload", "x": 1, "chatId": "c/1", "metadata": {"u": 1}},
            "tags": ["chat:c/1", "a", "b", "c", "d"],
            "maxDuration": 60,
            "lockToVersion": "v",
            "region": "r",
            "idleTimeoutInSeconds": 60,
        }
        assert info.type == "chat.agent"

    async def test_two_first_sends_at_once_start_one_session(self, stage: Stage) -> None:
        triggered: list[Any] = []
        agent = chat(stage, on_triggered=triggered.append)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agent.preload)
            tasks.start_soon(agent.preload)
        assert len(triggered) == 1

    async def test_a_stored_cursor_goes_on_with_the_next_turn(self, stage: Stage) -> None:
        """R-225"""
        first = chat(stage)
        stream = await first.send_message("one")
        end = await stage.answer("c/1", 0, "1")
        await stream.text()
        assert first.session == ChatSessionState(str(end))

        second = chat(stage, session=first.session)
        stream = await second.send_message("two")
        await stage.answer("c/1", 1, "2")
        assert await stream.text() == "2"

    async def test_a_new_object_on_an_existing_chat_streams_its_own_turn(
        self, stage: Stage
    ) -> None:
        """R-226"""
        stream = await chat(stage).send_message("one")
        await stage.answer("c/1", 0, "1")
        await stream.text()

        stream = await chat(stage).send_message("two")
        await stage.answer("c/1", 1, "2")
        assert await stream.text() == "2"

    async def test_a_new_object_skips_what_is_left_of_a_turn_under_way(self, stage: Stage) -> None:
        await chat(stage).send_message("one")
        await stage.write("c/1", text("1")[:4])
        stream = await chat(stage).send_message("two")
        await stage.write("c/1", text("1")[4:])
        await stage.finish("c/1", 0)
        await stage.answer("c/1", 1, "2")
        assert await stream.text() == "2"

    async def test_a_turn_of_somebody_else_does_not_end_the_stream(self, stage: Stage) -> None:
        """X-01: the boundary is the turn-complete that covers our record."""
        ours = chat(stage)
        await ours.preload()
        await chat(stage, session=ChatSessionState()).send_message("theirs")
        stream = await ours.send_message("ours")
        await stage.finish("c/1", 0)
        await stage.answer("c/1", 1, "2")
        assert await stream.text() == "2"
        assert stream.complete

    async def test_a_server_without_numbers_ends_the_stream_at_the_first_turn_complete(
        self, stage: Stage
    ) -> None:
        stream = await chat(stage).send_message("one")
        await stage.answer("c/1", None, "1")
        assert await stream.text() == "1"

    async def test_a_second_send_skips_the_rest_of_the_first_turn(self, stage: Stage) -> None:
        agent = chat(stage)
        first = await agent.send_message("one")
        second = await agent.send_message("two")
        await stage.answer("c/1", 0, "1")
        await stage.answer("c/1", 1, "2")
        assert await second.text() == "2"
        assert await first.text() == "1"

    async def test_a_steered_message_that_became_a_turn_is_not_part_of_the_next_answer(
        self, stage: Stage
    ) -> None:
        agent = chat(stage)
        first = await agent.send_message("one")
        assert await agent.steer("faster")
        await stage.answer("c/1", 0, "1")
        assert await first.text() == "1"

        third = await agent.send_message("three")
        await stage.write("c/1", [*text("steered"), {"type": "error", "errorText": "refused"}])
        await stage.finish("c/1", 1)
        await stage.answer("c/1", 2, "3")
        result = await third.result()
        assert (result.text, result.error, result.complete) == ("3", None, True)

    async def test_a_steered_turn_that_ended_unseen_is_passed_over(self, stage: Stage) -> None:
        agent = chat(stage)
        first = await agent.send_message("one")
        await agent.steer("faster")
        await stage.answer("c/1", 0, "1")
        await first.text()
        await stage.answer("c/1", 1, "steered")

        second = await agent.send_message("two")
        await stage.answer("c/1", 2, "2")
        assert await second.text() == "2"

    async def test_a_steered_message_that_joined_the_turn_swallows_nothing(
        self, stage: Stage
    ) -> None:
        agent = chat(stage)
        first = await agent.send_message("one")
        await agent.steer("faster")
        await stage.answer("c/1", 1, "1")
        await first.text()
        second = await agent.send_message("two")
        await stage.answer("c/1", 2, "2")
        assert await second.text() == "2"

    async def test_the_turn_of_a_steered_message_can_be_read_by_reconnecting(
        self, stage: Stage
    ) -> None:
        agent = chat(stage)
        first = await agent.send_message("one")
        await agent.steer("faster")
        await stage.answer("c/1", 0, "1")
        await first.text()
        await stage.answer("c/1", 1, "steered")
        rest = await agent.reconnect()
        assert rest is not None
        assert await rest.text() == "steered"
        second = await agent.send_message("two")
        await stage.answer("c/1", 2, "2")
        assert await second.text() == "2"

    async def test_the_third_of_three_overlapping_sends_skips_both_before_it(
        self, stage: Stage
    ) -> None:
        agent = chat(stage)
        await agent.send_message("one")
        await agent.send_message("two")
        third = await agent.send_message("three")
        for number in range(3):
            await stage.answer("c/1", number, str(number + 1))
        assert await third.text() == "3"

    async def test_two_who_ask_at_once_read_an_answer_each(self, stage: Stage) -> None:
        """P-2 for a chat with two devices: what the other asked first is answered first."""
        one, two = chat(stage), chat(stage)
        await one.preload()
        await two.preload()
        first = await one.send_message("one")
        second = await two.send_message("two")
        await stage.answer("c/1", 0, "1")
        await stage.answer("c/1", 1, "2")

        assert await first.text() == "1"
        assert await second.text() == "2"

    async def test_turns_of_others_since_the_last_look_are_passed_over(self, stage: Stage) -> None:
        ours, theirs = chat(stage), chat(stage)
        mine = await ours.send_message("mine")
        await stage.answer("c/1", 0, "0")
        assert await mine.text() == "0"
        stream = await theirs.send_message("theirs")
        await stage.answer("c/1", 1, "not ours")
        assert await stream.text() == "not ours"
        again = await ours.send_message("again")
        await stage.answer("c/1", 2, "ours")

        assert await again.text() == "ours"

    async def test_a_stop_of_somebody_else_swallows_nothing(self, stage: Stage) -> None:
        """It is a record between ours and the one before, and no turn answers it."""
        ours, theirs = chat(stage), chat(stage)
        await theirs.preload()
        await ours.preload()
        await theirs.stop()
        stream = await ours.send_message("hello")
        await stage.answer("c/1", 1, "ours")

        assert await stream.text() == "ours"

    async def test_a_stored_cursor_passes_over_what_others_asked_meanwhile(
        self, stage: Stage
    ) -> None:
        first = chat(stage)
        stream = await first.send_message("one")
        await stage.answer("c/1", 0, "1")
        await stream.text()
        other = chat(stage, session=first.session)
        answered = await other.send_message("two")
        await stage.answer("c/1", 1, "2")
        assert await answered.text() == "2"
        waiting = await other.send_message("three")

        back = chat(stage, session=first.session)
        stream = await back.send_message("four")
        await stage.answer("c/1", 2, "3")
        await stage.answer("c/1", 3, "4")

        assert await waiting.text() == "3"
        assert await stream.text() == "4"

    async def test_a_chat_of_one_device_asks_nothing_beside_its_messages(
        self, stage: Stage
    ) -> None:
        calls: list[tuple[str, str]] = []

        async def counted(request: Any, context: Any, send: Any) -> Any:
            calls.append((request.method, context.endpoint))
            return await send(request)

        agent = chat(stage, request=counted)
        for number, text_ in enumerate(["a", "b", "c"]):
            stream = await agent.send_message(text_)
            await stage.answer("c/1", number, text_)
            assert await stream.text() == text_

        assert calls == [("POST", "in"), ("GET", "out")] * 3

    async def test_only_the_last_message_travels_reduced_to_what_is_new(self, stage: Stage) -> None:
        """R-238"""
        agent = chat(stage)
        await agent.send_raw(
            [
                {"id": "u", "role": "user", "parts": []},
                {
                    "id": "a",
                    "role": "assistant",
                    "metadata": {"big": 1},
                    "parts": [
                        {"type": "text", "text": "long"},
                        {
                            "type": "tool-ask",
                            "toolCallId": "1",
                            "state": "output-available",
                            "input": {"q": 1},
                            "output": 7,
                        },
                        {"type": "tool-wait", "toolCallId": "2", "state": "input-available"},
                        {
                            "type": "dynamic-tool",
                            "toolName": "d",
                            "toolCallId": "3",
                            "state": "approval-responded",
                            "approval": {"id": "x", "approved": True},
                        },
                    ],
                },
            ]
        )
        [(_, chunk)] = await stage.input("c/1")
        assert chunk["payload"]["message"] == {
            "id": "a",
            "role": "assistant",
            "parts": [
                {
                    "type": "tool-ask",
                    "toolCallId": "1",
                    "state": "output-available",
                    "output": 7,
                },
                {
                    "type": "dynamic-tool",
                    "toolCallId": "3",
                    "state": "approval-responded",
                    "toolName": "d",
                    "approval": {"id": "x", "approved": True},
                },
            ],
        }

    async def test_an_empty_submit_is_refused_and_a_regenerate_sends_no_message(
        self, stage: Stage
    ) -> None:
        """R-238"""
        agent = chat(stage)
        with pytest.raises(ValueError, match="no message"):
            await agent.send_raw([])
        await agent.send_raw([], trigger="regenerate-message")
        [(_, chunk)] = await stage.input("c/1")
        assert chunk["payload"] == {"chatId": "c/1", "trigger": "regenerate-message"}

    async def test_an_action_is_sent_and_its_output_streamed(self, stage: Stage) -> None:
        """R-237"""
        stream = await chat(stage).send_action({"type": "undo"})
        [(seq, chunk)] = await stage.input("c/1")
        await stage.answer("c/1", seq, "undone")
        assert chunk["payload"]["trigger"] == "action"
        assert chunk["payload"]["action"] == {"type": "undo"}
        assert await stream.text() == "undone"

    async def test_a_closed_session_refuses_messages_and_actions(self, stage: Stage) -> None:
        """R-237, R-241"""
        agent = chat(stage)
        await agent.preload()
        await sessions.close("c/1", api=stage.api)
        with pytest.raises(SessionClosedError):
            await agent.send_message("late")
        with pytest.raises(SessionClosedError):
            await agent.send_action("late")
        assert not await agent.steer("late")
        assert not await agent.close()

    async def test_steering_appends_without_disturbing_the_open_stream(self, stage: Stage) -> None:
        """R-229"""
        agent = chat(stage)
        assert not await agent.steer("too early")
        stream = await agent.send_message("one")
        assert await agent.steer("faster")
        assert await agent.steer("faster")
        found = await stage.input("c/1")
        ids = [chunk["payload"]["message"]["id"] for _, chunk in found]
        assert len(set(ids)) == 3
        await stage.answer("c/1", 2, "1")
        assert await stream.text() == "1"

    async def test_after_close_a_send_starts_the_session_again(self, stage: Stage) -> None:
        """R-239"""
        triggered: list[Any] = []
        agent = chat(stage, on_triggered=triggered.append)
        assert not await agent.close()
        await agent.preload()
        assert await agent.close()
        await agent.send_message("again")
        assert [c["payload"]["trigger"] for _, c in await stage.input("c/1")] == [
            "close",
            "submit-message",
        ]
        assert len(triggered) == 2


class TestReading:
    async def test_text_result_and_messages_agree_on_one_turn(self, stage: Stage) -> None:
        """R-227, R-228"""
        chunks = [
            *text("a", "b")[:-2],
            {"type": "tool-input-available", "toolCallId": "1", "toolName": "t", "input": {"q": 1}},
            {"type": "tool-output-available", "toolCallId": "1", "output": 7},
            {"type": "finish"},
        ]
        agent = chat(stage)
        sender = await agent.send_message("one")
        await stage.write("c/1", chunks)
        await stage.finish("c/1", 0)
        result = await sender.result()
        assert result is await sender.result()
        assert (result.text, result.complete, result.error) == ("ab", True, None)
        assert [(c.tool_name, c.tool_call_id, c.input) for c in result.tool_calls] == [
            ("t", "1", {"q": 1})
        ]
        assert [(r.tool_call_id, r.output) for r in result.tool_results] == [("1", 7)]

        start = ChatSessionState()
        again = await chat(stage, session=start).reconnect()
        assert again is not None
        snapshots = [message async for message in again.messages()]
        assert snapshots[-1] == result.message
        sizes = [
            sum(len(part.get("text", "")) + 1 for part in snapshot["parts"])
            for snapshot in snapshots
        ]
        assert sizes == sorted(sizes)

        third = await chat(stage, session=start).reconnect()
        assert third is not None
        assert await third.text() == "ab"
        with pytest.raises(StreamAlreadyConsumed):
            await third.result()
        with pytest.raises(StreamAlreadyConsumed):
            third.messages()
        with pytest.raises(StreamAlreadyConsumed):
            aiter(third)

    async def test_an_error_chunk_is_kept_and_raised_on_request(self, stage: Stage) -> None:
        """R-236"""
        stream = await chat(stage).send_message("one")
        await stage.write("c/1", [{"type": "error", "errorText": "boom"}])
        await stage.finish("c/1", 0)
        assert await stream.text() == ""
        assert stream.error == "boom"
        with pytest.raises(ChatTurnError, match="boom"):
            stream.raise_for_error()

    async def test_an_answer_that_was_begun_anew_counts_once(self, stage: Stage) -> None:
        """Rulings §1.6"""
        stream = await chat(stage).send_message("one")
        restarted = {"type": "data-restarted", "data": {"runId": "run_1", "attempt": 2}}
        await stage.write("c/1", [*text("lost")[:4], {"type": "text-end", "id": "t"}, restarted])
        await stage.answer("c/1", 0, "kept")
        result = await stream.result()
        assert result.text == "kept"
        assert result.message is not None
        assert [p["text"] for p in result.message["parts"] if p["type"] == "text"] == ["kept"]

    async def test_text_and_snapshots_begin_anew_while_every_chunk_is_delivered(
        self, stage: Stage
    ) -> None:
        """Rulings §1.6"""
        restarted = {"type": "data-restarted", "data": {"runId": "run_1", "attempt": 2}}
        lost = [*text("lost")[:4], {"type": "text-end", "id": "t"}, restarted]
        agent = chat(stage)
        sender = await agent.send_message("one")
        await stage.write("c/1", lost)
        await stage.answer("c/1", 0, "kept")
        assert await sender.text() == "kept"

        async def again() -> ChatStream:
            stream = await chat(stage, session=ChatSessionState()).reconnect()
            assert stream is not None
            return stream

        assert [chunk async for chunk in await again()] == [*lost, *text("kept")]
        stream = await again()
        snapshots = [message async for message in stream.messages()]
        said = ["".join(p.get("text", "") for p in message["parts"]) for message in snapshots]
        assert list(dict.fromkeys(said)) == ["", "lost", "kept"]
        assert {message["id"] for message in snapshots} == {"m1"}
        begun_anew = len(said) - 1 - said[::-1].index("lost") + 1
        assert snapshots[begun_anew] == {"id": "m1", "role": "assistant", "parts": []}

    async def test_control_records_and_old_spellings_are_invisible(self, stage: Stage) -> None:
        """R-003, R-240"""
        stream = await chat(stage).send_message("one")
        await stage.api.write_records("c/1", [{"control": "upgrade-required"}, {"trim": 0}])
        await stage.write("c/1", [{"type": "trigger:upgrade-required"}, *text("1")])
        await stage.write("c/1", [{"type": "trigger:turn-complete"}])
        assert await stream.text() == "1"
        assert stream.complete

    async def test_reconnect_delivers_the_rest_of_the_turn_once(self, stage: Stage) -> None:
        """R-233"""
        agent = chat(stage)
        assert await agent.reconnect() is None
        stream = await agent.send_message("one")
        await stage.write("c/1", text("a", "b")[:4])
        async with stream:
            async for chunk in stream:
                if chunk["type"] == "text-delta":
                    break
        rest = await agent.reconnect()
        assert rest is not None
        await stage.write("c/1", text("a", "b")[4:])
        await stage.finish("c/1", 0)
        result = await rest.result()
        assert result.text == "b"
        assert result.message is None  # the middle of a message is none

    async def test_messages_of_a_stream_that_begins_in_the_middle_say_so(
        self, stage: Stage
    ) -> None:
        stream = await chat(stage).send_message("one")
        await stage.write("c/1", [{"type": "text-delta", "id": "t", "delta": "x"}])
        await stage.finish("c/1", 0)
        with pytest.raises(UIMessageStreamError):
            [message async for message in stream.messages()]

    async def test_a_lost_connection_leaves_no_gap_and_no_repetition(self, stage: Stage) -> None:
        """R-234"""
        stream = await chat(stage).send_message("one")
        deltas = [str(n) for n in range(20)]
        got: list[str] = []
        chunks = text(*deltas)
        await stage.write("c/1", chunks[:3])
        async for chunk in stream:
            if chunk["type"] == "text-start" or chunk["type"] == "text-delta":
                got += [chunk["delta"]] if "delta" in chunk else []
                if len(got) < 20:
                    stage.transport.cut()
                    await stage.write("c/1", chunks[3 + len(got) : 4 + len(got)])
                else:
                    await stage.finish("c/1", 0)
        assert got == deltas
        assert stream.complete

    async def test_silence_ends_the_stream_incomplete(self, stage: Stage) -> None:
        """R-235"""
        stream = await chat(stage, stream_timeout=1).send_message("one")
        assert await stream.text() == ""
        assert not stream.complete

    async def test_each_end_of_a_turn_is_told_and_a_failing_callback_is_dropped(
        self, stage: Stage
    ) -> None:
        told: list[str] = []

        def tell(event: Any) -> None:
            told.append(event.last_event_id)
            raise RuntimeError("the caller's own trouble")

        stream = await chat(stage, on_turn_complete=tell).send_message("one")
        end = await stage.answer("c/1", 0, "1")
        assert await stream.text() == "1"
        assert told == [str(end)]


class TestStopping:
    async def test_aborting_stops_once_and_the_next_send_shows_nothing_of_it(
        self, stage: Stage
    ) -> None:
        """R-230"""
        agent = chat(stage)
        signal = Signal()
        stream = await agent.send_message("one", signal=signal)
        await stage.write("c/1", text("old")[:4])
        async for chunk in stream:
            if chunk["type"] == "text-delta":
                signal.abort()
        assert not stream.complete
        await stream.aclose()
        found = await stage.input("c/1")
        assert [chunk for _, chunk in found[1:]] == [{"kind": "stop", "targetSeq": 0}]

        after = await agent.send_message("two")
        await stage.write("c/1", [{"type": "text-delta", "id": "t", "delta": "more old"}])
        await stage.finish("c/1", 1)
        await stage.answer("c/1", 2, "new")
        assert await after.text() == "new"

    async def test_an_abort_while_waiting_ends_the_stream_at_once(self, stage: Stage) -> None:
        agent = chat(stage)
        signal = Signal()
        stream = await agent.send_message("one", signal=signal)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.text)
            await anyio.wait_all_tasks_blocked()
            signal.abort()
        assert len(await stage.input("c/1")) == 2

    async def test_a_turn_that_was_stopped_and_has_ended_swallows_nothing(
        self, stage: Stage
    ) -> None:
        """The next turn is never taken for the end of the stopped one."""
        agent = chat(stage)
        signal = Signal()
        stream = await agent.send_message("one", signal=signal)
        signal.abort()
        assert await stream.text() == ""
        await stage.finish("c/1", 1)
        after = await agent.send_message("two")
        await stage.answer("c/1", 2, "new")
        assert await after.text() == "new"

    async def test_a_stop_that_is_due_goes_before_the_next_message(self, stage: Stage) -> None:
        agent = chat(stage)
        signal = Signal()
        await agent.send_message("one", signal=signal)
        signal.abort()
        await agent.send_message("two")
        assert [chunk["kind"] for _, chunk in await stage.input("c/1")] == [
            "message",
            "stop",
            "message",
        ]

    async def test_stop_while_reading_ends_the_stream_at_the_turns_end(self, stage: Stage) -> None:
        """R-231"""
        agent = chat(stage)
        await agent.stop()  # before the start: nothing
        stream = await agent.send_message("one")
        await stage.write("c/1", text("partial")[:4])
        got = []
        async for chunk in stream:
            got.append(chunk["type"])
            if chunk["type"] == "text-delta":
                await agent.stop()
                await stage.write("c/1", [{"type": "abort"}])
                await stage.finish("c/1", 1)
        assert got[-1] == "abort"
        assert stream.complete
        assert (await stage.input("c/1"))[1][1] == {"kind": "stop", "targetSeq": 0}

    async def test_with_several_messages_on_their_way_a_stop_means_whichever_is_answered(
        self, stage: Stage
    ) -> None:
        agent = chat(stage)
        stream = await agent.send_message("one")
        await agent.steer("faster")
        await agent.stop()
        await stage.answer("c/1", 0, "1")
        await stream.text()
        await agent.stop()
        stops = [chunk for _, chunk in await stage.input("c/1") if chunk["kind"] == "stop"]
        assert stops == [{"kind": "stop"}, {"kind": "stop", "targetSeq": 1}]

    async def test_leaving_early_stops_nothing(self, stage: Stage) -> None:
        """R-232"""
        agent = chat(stage)
        stream = await agent.send_message("one")
        await stage.write("c/1", text("1")[:4])
        async with stream:
            async for _ in stream:
                break
        assert len(await stage.input("c/1")) == 1

    async def test_aborting_a_reconnected_stream_stops_nothing(self, stage: Stage) -> None:
        """R-233"""
        agent = chat(stage)
        await agent.send_message("one")
        signal = Signal()
        stream = await agent.reconnect(signal=signal)
        assert stream is not None
        signal.abort()
        assert await stream.text() == ""
        assert len(await stage.input("c/1")) == 1


async def test_requests_can_be_made_by_the_caller(stage: Stage) -> None:
    seen: list[tuple[str, str, str]] = []

    async def request(prepared: Any, context: Any, send: Any) -> Any:
        seen.append((context.endpoint, context.chat_id, prepared.url.host))
        return await send(prepared)

    agent = chat(stage, request=request, base_url=lambda endpoint, _id: f"http://{endpoint}.test/")
    stream = await agent.send_message("one")
    await stage.answer("c/1", 0, "1")
    await stream.text()
    assert seen == [("in", "c/1", "in.test"), ("out", "c/1", "out.test")]


async def test_a_chat_without_a_name_gets_a_uuid(stage: Stage) -> None:
    assert len(AgentChat("agent", api=stage.api).id) == 36


def test_a_chat_can_be_made_before_any_event_loop_runs() -> None:
    agent = AgentChat("agent", "x")

    async def main() -> None:
        assert await agent.reconnect() is None

    anyio.run(main)
