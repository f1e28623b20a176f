"""Custom agents and their primitives (chat-agent §4.10; R-203, R-204, R-209 to R-212)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn import chat, sessions
from everturn.errors import AgentError, ChatContextError, ConfigurationError
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


def echoing(**options: Any) -> Any:
    """A loop by hand: answers each message until nobody writes."""

    @chat.custom_agent("echoing", **options)
    async def echoing(payload: Any, ctx: Any) -> None:
        while payload is not None and payload.get("trigger") != "close":
            if "message" in payload:
                await chat.pipe(f"you said {chat.text_of(payload['message'])}")
                await chat.write_turn_complete()
            payload = (await chat.messages.wait_with_idle_timeout(30, timeout="1h")).output

    return echoing


async def test_a_loop_by_hand_answers_each_message_with_one_turn_complete() -> None:
    async with mock_chat_agent(echoing()) as h:
        first = await h.send_message("one")
        second = await h.send_message("two")

        assert (first.text, second.text) == ("you said one", "you said two")
        assert (first.cursor.seq_num, second.cursor.seq_num) == (0, 1)


async def test_nothing_is_written_unless_the_code_writes_it() -> None:
    """R-203."""

    @chat.custom_agent("silent")
    async def silent(payload: Any) -> dict[str, Any]:
        return {"chat": payload["chatId"]}

    async with mock_chat_agent(silent) as h:
        await h.reached(lambda: not h.alive)

        assert await h.records() == []
        assert await h.get_snapshot() is None
        assert [how for _, how in h.outcomes] == ["completed"]


async def test_an_exception_fails_the_run() -> None:
    """R-203."""

    @chat.custom_agent("failing")
    async def failing(payload: Any) -> None:
        raise ValueError("no")

    async with mock_chat_agent(failing) as h:
        await h.reached(lambda: not h.alive)

        assert [how for _, how in h.outcomes] == ["failed"]
        assert isinstance(h.error, ValueError)
        assert await h.records() == []


def test_a_custom_agent_takes_no_hooks() -> None:
    """R-203."""
    with pytest.raises(ConfigurationError, match="on_turn_start"):
        echoing().on_turn_start(lambda event: None)


def test_a_copy_is_a_custom_agent_too() -> None:
    copied = echoing().copy("other")

    assert (copied.task_id, copied.kind) == ("other", "custom-agent")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_turns"):
        echoing(max_turns=3)


def test_it_is_declared_as_what_it_is() -> None:
    declared = echoing(queue="chats").declaration()

    assert (declared.kind, declared.queue) == ("custom-agent", "chats")


async def test_an_answered_message_does_not_come_again_in_a_continuation() -> None:
    """R-204."""
    async with mock_chat_agent(echoing()) as h:
        await h.send_message("one")
        await h.settled()
        await h.crash()
        await h.restart()
        turn = await h.send_message("two")

        assert turn.text == "you said two"


async def test_a_message_taken_and_not_committed_comes_again_after_a_crash() -> None:
    taken: list[Any] = []
    gate = anyio.Event()

    @chat.custom_agent("slow")
    async def slow(payload: Any) -> None:
        while payload is not None:
            if "message" in payload:
                taken.append(chat.text_of(payload["message"]))
                await chat.pipe("half ")
                await gate.wait()
                await chat.pipe("done")
                await chat.write_turn_complete()
            payload = (await chat.messages.wait("1h")).output

    async with mock_chat_agent(slow) as h:
        await h.post_message("one")
        await h.reached(lambda: taken == ["one"])
        await anyio.wait_all_tasks_blocked()
        await h.crash()
        gate.set()
        await h.restart(attempt=2)
        turn = await h.turn_after(-1)

        assert taken == ["one", "one"]
        kinds = [chunk["type"] for chunk in turn.chunks]
        assert kinds.count("data-restarted") == 1, "readers are told that it begins anew"


async def test_the_first_message_is_in_the_payload_of_the_run_it_started() -> None:
    payloads: list[Any] = []

    @chat.custom_agent("once")
    async def once(payload: Any) -> None:
        payloads.append(payload)
        await chat.pipe("hello")

    async with mock_chat_agent(once, start=False) as h:
        await h.seed_in("first")
        await h.start(payload={"metadata": {"a": 1}})
        turn = await h.turn_after(-1)

        [payload] = payloads
        assert chat.text_of(payload["message"]) == "first"
        assert payload["metadata"] == {"a": 1}
        assert turn.cursor.seq_num == 0, "returning ended the turn"


async def test_returning_without_ever_asking_for_messages_is_an_error() -> None:
    """Its messages would start it again, for ever."""

    @chat.custom_agent("deaf")
    async def deaf(payload: Any) -> None:
        pass

    async with mock_chat_agent(deaf, start=False) as h:
        await h.seed_in("anyone?")
        await h.start(payload={"continuation": True})
        await h.reached(lambda: not h.alive)

        assert [how for _, how in h.outcomes] == ["failed"]
        assert isinstance(h.error, AgentError)


async def test_a_loop_may_read_the_channel_by_itself() -> None:
    @chat.custom_agent("raw")
    async def raw(payload: Any) -> None:
        handle = sessions.open(payload["chatId"])
        await handle.in_.receive(10)
        await handle.out.append({"type": "data-said", "data": 1})

    async with mock_chat_agent(raw) as h:
        await h.post_message("hi")
        await h.reached(lambda: not h.alive)

        assert [how for _, how in h.outcomes] == ["completed"]
        assert h.runtime is not None
        assert h.runtime.cursor.seq_num == 0


async def test_a_handler_consumes_messages_and_leaves_stops_to_others() -> None:
    """R-209."""
    seen: list[str] = []
    stops: list[str | None] = []

    @chat.custom_agent("listening")
    async def listening(payload: Any) -> None:
        async with chat.stop_signal() as stop:
            undo = chat.messages.on(lambda p: seen.append(chat.text_of(p["message"])))
            stops.append(await stop.signal.wait())
            undo()
            stop.reset()
            await chat.write_turn_complete()
            seen.append(chat.text_of((await chat.messages.once(5)).unwrap()["message"]))

    async with mock_chat_agent(listening) as h:
        await h.post_message("one")
        await h.post_message("two")
        await h.send_stop("enough")
        await h.turn_after(-1)
        assert (seen, stops) == (["one", "two"], ["enough"])

        await h.post_message("three")
        await h.reached(lambda: not h.alive)
        assert seen == ["one", "two", "three"]


async def test_a_stop_between_turns_has_no_effect() -> None:
    aborted: list[bool] = []

    @chat.custom_agent("patient")
    async def patient(payload: Any) -> None:
        async with chat.stop_signal() as stop:
            for _ in range(2):
                await chat.messages.once(60)
                stop.reset()
                aborted.append(stop.signal.aborted)
                await chat.write_turn_complete()

    async with mock_chat_agent(patient) as h:
        await h.send_message("one")
        await h.send_stop()
        await h.send_message("two")

        assert aborted == [False, False]


async def test_a_stop_for_a_message_that_still_waits_stops_it_when_it_is_taken() -> None:
    aborted: list[bool] = []
    gate = anyio.Event()

    @chat.custom_agent("busy")
    async def busy(payload: Any) -> None:
        async with chat.stop_signal() as stop:
            for _ in range(2):
                await chat.messages.once(60)
                stop.reset()
                await gate.wait()
                aborted.append(stop.signal.aborted)
                await chat.write_turn_complete()

    async with mock_chat_agent(busy) as h:
        await h.post_message("one")
        second = await h.post_message("two")
        await h.send_stop(target=second)
        gate.set()
        await h.reached(lambda: not h.alive)

        assert aborted == [False, True]


async def test_a_wait_suspends_and_a_stop_does_not_end_it() -> None:
    moments: list[str] = []

    @chat.custom_agent("sleeping")
    async def sleeping(payload: Any) -> None:
        found = await chat.messages.wait_with_idle_timeout(
            5,
            timeout=100,
            on_suspend=lambda: moments.append("suspend"),
            on_resume=lambda: moments.append("resume"),
        )
        moments.append(chat.text_of(found.unwrap()["message"]))

    async with mock_chat_agent(sleeping) as h:
        await h.advance(6)
        await h.reached(lambda: h.suspended)
        await h.send_stop()
        await h.advance(6)
        await h.reached(lambda: h.suspended)
        await h.post_message("hi")
        await h.reached(lambda: not h.alive)

        assert moments == ["suspend", "resume", "suspend", "resume", "hi"]


async def test_waits_end_with_a_value_when_nobody_writes() -> None:
    results: list[Any] = []

    @chat.custom_agent("lonely")
    async def lonely(payload: Any) -> None:
        results.append(await chat.messages.once(1))
        results.append(await chat.messages.wait(2))
        results.append(await chat.messages.wait_with_idle_timeout(3, skip_suspend=True))
        results.append(chat.messages.peek())

    async with mock_chat_agent(lonely) as h:
        for _ in range(3):
            await h.settled()
            await h.advance(3.5)
        await h.reached(lambda: not h.alive)

        *waits, peeked = results
        assert [type(wait.error).__name__ for wait in waits] == [
            "InputStreamTimeoutError",
            "WaitTimeoutError",
            "WaitTimeoutError",
        ]
        assert peeked is None


async def test_waiting_for_a_handover_returns_at_once_on_another_boot() -> None:
    """R-210."""
    found: list[Any] = []

    @chat.custom_agent("hasty")
    async def hasty(payload: Any) -> None:
        found.append(await chat.wait_for_handover(payload))

    async with mock_chat_agent(hasty) as h:
        await h.reached(lambda: not h.alive)

        assert found == [None]


async def test_a_head_start_is_taken_over_by_hand() -> None:
    kept: list[Any] = []

    @chat.custom_agent("handed")
    async def handed(payload: Any) -> None:
        history = chat.MessageAccumulator()
        is_final, skipped = await history.consume_handover(payload)
        kept.append((is_final, skipped, history.ui_messages))
        await chat.write_turn_complete()

    question = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    async with mock_chat_agent(handed, start=False) as h:
        await h.start(payload={"trigger": "handover-prepare", "headStartMessages": [question]})
        content = [{"type": "text", "text": "hello"}]
        turn = await h.send(
            {
                "kind": "handover",
                "partialAssistantMessage": [{"role": "assistant", "content": content}],
                "messageId": "m1",
                "isFinal": True,
            }
        )

        [(is_final, skipped, messages)] = kept
        assert (is_final, skipped) == (True, False)
        assert [message["id"] for message in messages] == ["u", "m1"]
        assert turn.cursor.seq_num == 0


async def test_turn_completes_by_hand_trim_to_the_one_before() -> None:
    """R-212."""
    async with mock_chat_agent(echoing()) as h:
        first = await h.send_message("one")
        await h.send_message("two")
        await h.settled()

        assert await h.trims() == [first.turn_complete.seq_num]


async def test_a_managed_agent_cannot_write_turn_completes() -> None:
    @chat.agent("managed")
    async def managed(turn: Any) -> None:
        await chat.write_turn_complete()

    async with mock_chat_agent(managed) as h:
        turn = await h.send_message("hi")

        assert len(turn.errors) == 1


def test_primitives_need_a_run() -> None:
    with pytest.raises(ChatContextError):
        chat.stop_signal()


async def test_chunks_of_ones_own_making_go_out_beside_the_answer() -> None:
    read: list[Any] = []

    @chat.custom_agent("writing")
    async def writing(payload: Any) -> None:
        async with chat.stream.writer() as out:
            out.write({"type": "data-a", "data": 1})
            out.merge([{"type": "data-b", "data": 2}])
        await chat.stream.append({"type": "data-c", "data": 3})
        await chat.stream.pipe([{"type": "data-d", "data": 4}])
        read.extend(await chat.stream.read())

    async with mock_chat_agent(writing) as h:
        await h.reached(lambda: not h.alive)

        assert [chunk["type"] for chunk in read] == ["data-a", "data-b", "data-c", "data-d"]


class TestMessageAccumulator:
    def test_a_known_answer_is_replaced_in_place(self) -> None:
        """R-211."""
        history = chat.MessageAccumulator()
        history.set_messages([user("1"), answer("a", "old"), user("2")])

        history.add_response(answer("a", "new"))

        assert [m["id"] for m in history.ui_messages] == ["1", "a", "2"]
        assert chat.text_of(history.ui_messages[1]) == "new"

    def test_the_first_turn_and_a_regenerate_replace_and_others_append(self) -> None:
        history = chat.MessageAccumulator()
        history.add_incoming([user("1")], "submit-message", 0)
        history.add_incoming([user("2")], "submit-message", 1)
        assert [m["id"] for m in history.ui_messages] == ["1", "2"]

        history.add_incoming([user("3")], "regenerate-message", 2)
        assert [m["id"] for m in history.ui_messages] == ["3"]

    def test_a_regenerate_without_messages_drops_the_trailing_answer(self) -> None:
        history = chat.MessageAccumulator()
        history.set_messages([user("1"), answer("a", "old")])

        assert len(history.add_incoming([], "regenerate-message", 3)) == 1
        assert [m["id"] for m in history.ui_messages] == ["1"]

    def test_incoming_answers_lose_their_unfinished_calls(self) -> None:
        history = chat.MessageAccumulator()
        call = {"type": "tool-x", "toolCallId": "c", "state": "input-available", "input": {}}
        whole = answer("a", "hm")
        history.add_incoming([{**whole, "parts": [*whole["parts"], call]}], "submit-message", 0)

        assert history.ui_messages == [whole]

    def test_steering_messages_are_kept_once_and_taken_back(self) -> None:
        history = chat.MessageAccumulator()
        for message in (user("1"), user("2"), user("1")):
            history.steer(message)

        assert [m["id"] for m in history.drain_steering()] == ["1", "2"]
        assert history.drain_steering() == []


def user(message_id: str) -> dict[str, Any]:
    return {"id": message_id, "role": "user", "parts": [{"type": "text", "text": "hi"}]}


def answer(message_id: str, text: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": text, "state": "done"}]
    return {"id": message_id, "role": "assistant", "parts": parts}
