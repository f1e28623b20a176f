"""`chat.create_session` (chat-agent §4.9; R-205 to R-208)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn import chat
from everturn.errors import ChatContextError, InvalidRequest
from everturn.tasks.signals import Signal
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Loop:
    """A custom agent around `create_session`, and what its turns looked like."""

    def __init__(self, body: Any, **options: Any) -> None:
        self.left = False
        self.turns: list[Any] = []

        @chat.custom_agent("looping")
        async def looping(payload: Any) -> None:
            async with chat.create_session(payload, **options) as session:
                async for turn in session:
                    self.turns.append(turn)
                    await body(turn)
            self.left = True

        self.agent = looping


async def echo(turn: Any) -> None:
    await turn.complete(f"echo {turn.text}")


async def test_completing_a_turn_pipes_accumulates_and_commits() -> None:
    """R-205."""
    loop = Loop(echo)
    async with mock_chat_agent(loop.agent) as h:
        first = await h.send_message("one")
        second = await h.send_message("two")

        assert (first.text, second.text) == ("echo one", "echo two")
        assert (first.cursor.seq_num, second.cursor.seq_num) == (0, 1)
        assert [turn.number for turn in loop.turns] == [0, 1]
        roles = [message["role"] for message in loop.turns[1].ui_messages]
        assert roles == ["user", "assistant", "user", "assistant"]


async def test_a_turn_without_a_source_is_refused_unless_a_handover_is_final() -> None:
    """R-205."""
    refused: list[str] = []

    async def body(turn: Any) -> None:
        try:
            await turn.complete()
        except InvalidRequest as error:
            refused.append(str(error))
        await turn.complete("fine")

    async with mock_chat_agent(Loop(body).agent) as h:
        turn = await h.send_message("hi")

        assert len(refused) == 1
        assert turn.text == "fine"


async def test_a_turn_is_completed_once() -> None:
    refused: list[str] = []

    async def body(turn: Any) -> None:
        await turn.complete("once")
        try:
            await turn.done()
        except ChatContextError as error:
            refused.append(str(error))

    async with mock_chat_agent(Loop(body).agent) as h:
        await h.send_message("hi")
        await h.settled()

        assert len(refused) == 1
        assert len(await h.turns()) == 1


@pytest.mark.parametrize("final", [True, False])
async def test_a_head_start_is_the_first_turn(final: bool) -> None:
    async def body(turn: Any) -> None:
        assert turn.handover.is_final is final
        await turn.complete(None if final else " there")

    question = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    loop = Loop(body)
    async with mock_chat_agent(loop.agent, start=False) as h:
        await h.start(payload={"trigger": "handover-prepare", "headStartMessages": [question]})
        content = [{"type": "text", "text": "hello"}]
        await h.send(
            {
                "kind": "handover",
                "partialAssistantMessage": [{"role": "assistant", "content": content}],
                "messageId": "m1",
                "isFinal": final,
            }
        )
        await h.settled()

        [turn] = loop.turns
        [asked, answered] = turn.ui_messages
        assert (asked["id"], answered["id"]) == ("u", "m1")
        assert chat.text_of(answered) == ("hello" if final else "hello there")


async def test_a_close_ends_the_iteration() -> None:
    """R-206."""
    loop = Loop(echo)
    async with mock_chat_agent(loop.agent) as h:
        await h.send_message("hi")
        await h.send_close()
        await h.reached(lambda: not h.alive)

        assert loop.left
        assert len(loop.turns) == 1


async def test_silence_ends_the_iteration() -> None:
    """R-206."""
    loop = Loop(echo, idle_timeout=1, timeout=10)
    async with mock_chat_agent(loop.agent) as h:
        await h.send_message("hi")
        await h.settled()
        await h.advance(2)
        await h.reached(lambda: h.suspended)
        await h.advance(11)
        await h.reached(lambda: not h.alive)

        assert loop.left


@pytest.mark.parametrize("ending", [chat.end_run, chat.request_upgrade])
async def test_a_request_ends_the_iteration_after_its_turn(ending: Any) -> None:
    """R-206."""

    async def body(turn: Any) -> None:
        ending()
        await echo(turn)

    loop = Loop(body)
    async with mock_chat_agent(loop.agent) as h:
        turn = await h.send_message("hi")
        await h.reached(lambda: not h.alive)

        assert turn.text == "echo hi"
        assert loop.left


async def test_an_upgrade_before_a_turn_hands_its_message_to_the_successor() -> None:
    asked: list[str] = []

    @chat.custom_agent("upgrading")
    async def upgrading(payload: Any) -> None:
        if not payload.get("continuation"):
            chat.request_upgrade()
        async with chat.create_session(payload) as session:
            async for turn in session:
                asked.append(turn.text)
                await echo(turn)

    async with mock_chat_agent(upgrading) as h:
        turn = await h.send_message("hi")

        assert asked == ["hi"]
        assert turn.raw_chunks[0]["type"] == "trigger:upgrade-required"
        assert turn.text == "echo hi"


async def test_max_turns_ends_the_iteration_and_a_successor_goes_on() -> None:
    """R-206."""
    loop = Loop(echo, max_turns=1)
    async with mock_chat_agent(loop.agent) as h:
        await h.post_message("one")
        await h.post_message("two")
        first = await h.turn_after(-1)
        second = await h.turn_after(first.turn_complete.seq_num)

        assert (first.text, second.text) == ("echo one", "echo two")
        assert len({run for run, _ in h.outcomes} | {h.run_id}) >= 2


async def test_an_aborted_signal_commits_the_turn_keeps_nothing_and_ends() -> None:
    """R-206."""
    own = Signal()
    results: list[Any] = []

    async def body(turn: Any) -> None:
        async def words() -> Any:
            yield "half"
            own.abort("enough")
            await anyio.sleep_forever()

        results.append(await turn.complete(words()))

    loop = Loop(body, signal=own)
    async with mock_chat_agent(loop.agent) as h:
        await h.send_message("hi")
        await h.reached(lambda: not h.alive)

        assert results == [None]
        assert [message["role"] for message in loop.turns[0].ui_messages] == ["user"]
        assert loop.left


async def test_messages_that_arrive_during_a_turn_are_further_turns_in_order() -> None:
    """R-207."""
    gate = anyio.Event()

    async def body(turn: Any) -> None:
        await gate.wait()
        await echo(turn)

    loop = Loop(body)
    async with mock_chat_agent(loop.agent) as h:
        for text in ("one", "two", "three"):
            await h.post_message(text)
        gate.set()
        await h.settled()

        assert [turn.text for turn in loop.turns] == ["one", "two", "three"]
        assert [each.cursor.seq_num for each in await h.turns()] == [0, 1, 2]


async def test_a_stop_during_complete_cuts_cleans_and_commits() -> None:
    """R-208."""
    streaming = anyio.Event()

    async def body(turn: Any) -> None:
        async def words() -> Any:
            yield "half"
            yield {
                "type": "tool-input-available",
                "toolCallId": "c",
                "toolName": "x",
                "input": {},
            }
            streaming.set()
            await anyio.sleep_forever()

        await turn.complete(words())

    loop = Loop(body)
    async with mock_chat_agent(loop.agent) as h:
        await h.post_message("hi")
        await streaming.wait()
        await h.send_stop()
        turn = await h.turn_after(-1)

        assert turn.chunks[-1]["type"] == "abort"
        assert loop.turns[0].stopped
        kept = [part["type"] for part in loop.turns[0].ui_messages[-1]["parts"]]
        assert kept == ["step-start", "text"]
        assert h.alive


async def test_an_error_of_the_source_fails_the_run_and_writes_nothing_more() -> None:
    async def body(turn: Any) -> None:
        async def words() -> Any:
            yield "half"
            raise ValueError("no")

        await turn.complete(words())

    async with mock_chat_agent(Loop(body).agent) as h:
        await h.post_message("hi")
        await h.reached(lambda: not h.alive)

        assert [how for _, how in h.outcomes] == ["failed"]
        assert await h.turns() == []


async def test_a_turn_that_was_left_open_is_done_with_the_next_one() -> None:
    async def body(turn: Any) -> None:
        message = await chat.pipe_and_capture(f"echo {turn.text}")
        turn.add_response(message)

    loop = Loop(body)
    async with mock_chat_agent(loop.agent) as h:
        turn = await h.send_message("hi")

        assert turn.text == "echo hi"
        assert turn.cursor.seq_num == 0


async def test_data_parts_join_the_answer_of_the_turn() -> None:
    async def body(turn: Any) -> None:
        chat.response.data("note", 1)
        await echo(turn)

    loop = Loop(body)
    async with mock_chat_agent(loop.agent) as h:
        await h.send_message("hi")
        await h.settled()

        assert loop.turns[0].ui_messages[-1]["parts"][-1] == {"type": "data-note", "data": 1}


async def test_history_is_the_authors_over_runs() -> None:
    stored: list[Any] = []

    async def body(turn: Any) -> None:
        if turn.continuation and turn.number == 0:
            turn.set_messages([*stored, *turn.ui_messages])
        await echo(turn)
        stored[:] = turn.ui_messages

    loop = Loop(body)
    async with mock_chat_agent(loop.agent) as h:
        await h.send_message("one")
        await h.settled()
        await h.crash()
        await h.restart()
        await h.send_message("two")
        await h.settled()

        assert [message["role"] for message in stored] == ["user", "assistant"] * 2


async def test_a_regenerate_answers_the_last_question_anew() -> None:
    loop = Loop(echo)
    async with mock_chat_agent(loop.agent) as h:
        await h.send_message("hi")
        await h.send_regenerate()
        await h.settled()

        assert [m["role"] for m in loop.turns[1].ui_messages] == ["user", "assistant"]


async def test_an_interrupted_turn_is_answered_again_under_its_id() -> None:
    # W-84
    gate = anyio.Event()
    started = anyio.Event()

    async def body(turn: Any) -> None:
        async def words() -> Any:
            yield "echo "
            started.set()
            await gate.wait()
            yield turn.text

        await turn.complete(words())

    async with mock_chat_agent(Loop(body).agent) as h:
        await h.post_message("hi")
        await started.wait()
        await anyio.wait_all_tasks_blocked()
        await h.crash()
        gate.set()
        await h.restart(attempt=2)
        turn = await h.turn_after(-1)

        ids = [chunk["messageId"] for chunk in turn.chunks if chunk["type"] == "start"]
        assert len(ids) == 2
        assert len(set(ids)) == 1


async def test_client_data_is_validated_where_the_agent_declares_it() -> None:
    seen: list[Any] = []

    @chat.custom_agent("typed", client_data=lambda value: int(value["n"]))
    async def typed(payload: Any) -> None:
        async with chat.create_session(payload) as session:
            async for turn in session:
                seen.append(turn.client_data)
                await turn.complete("ok")

    async with mock_chat_agent(typed, client_data={"n": "7"}) as h:
        await h.send_message("hi")

        assert seen == [7]


async def test_a_managed_agent_has_no_sessions_of_its_own() -> None:
    @chat.agent("managed")
    async def managed(turn: Any) -> None:
        chat.create_session({})

    async with mock_chat_agent(managed) as h:
        turn = await h.send_message("hi")

        assert "custom_agent" in turn.errors[0]
