"""Steering: messages that arrive during a turn (chat-agent §4.5, §9.11; rulings §1.14)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from everturn import PendingMessages, chat
from everturn.chat.definition import ChatAgent
from everturn.chat.injected import marked_ids
from everturn.chat.steering import PendingBatch
from everturn.errors import ConfigurationError, Unavailable
from everturn.rules import limits
from everturn.testing.harness import ChatHarness, HarnessTurn, mock_chat_agent

pytestmark = pytest.mark.anyio
MARKER = "data-pending-message-injected"


class TwoSteps:
    """A model that calls `wait` once per turn and then answers. The tool waits for the test."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.working = anyio.Event()
        self.go_on = anyio.Event()
        self.meanwhile: Callable[[], object] = lambda: None
        self.agent: Agent[None, str] = Agent(FunctionModel(stream_function=self._answer))

        @self.agent.tool_plain
        async def wait() -> str:
            self.working.set()
            self.meanwhile()
            await self.go_on.wait()
            return "waited"

    async def _answer(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        self.requests.append(prompts(messages))
        if any(part.part_kind == "tool-return" for part in since_last_answer(messages)):
            yield f"answer {len(self.requests)}"
        else:
            yield {0: DeltaToolCall(name="wait", json_args="{}")}

    async def at_work(self) -> None:
        await self.working.wait()
        await anyio.wait_all_tasks_blocked()


def prompts(messages: list[ModelMessage]) -> list[str]:
    """What users said, in the order the model hears it."""
    return [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]


def since_last_answer(messages: list[ModelMessage]) -> list[Any]:
    """The parts after the newest text of the model."""
    parts = [part for message in messages for part in message.parts]
    texts = [index for index, part in enumerate(parts) if part.part_kind == "text"]
    return parts[texts[-1] + 1 :] if texts else parts


def user(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


def steered(model: TwoSteps, **options: Any) -> ChatAgent[Any]:
    options.setdefault("pending_messages", PendingMessages(should_inject=lambda batch: True))

    @chat.agent("steered", **options)
    async def agent(turn: Any) -> Any:
        return turn.stream(model.agent)

    return agent


def kinds(turn: HarnessTurn) -> list[str]:
    return [chunk["type"] for chunk in turn.chunks]


async def mid_turn(h: ChatHarness, model: TwoSteps, *arriving: dict[str, Any]) -> HarnessTurn:
    """One turn, during whose first step these messages arrive."""
    await h.post_message(user("first", "m1"))
    await model.at_work()
    for message in arriving:
        await h.post_message(message)
    await anyio.wait_all_tasks_blocked()
    model.go_on.set()
    return await h.turn_after(-1)


class TestTaking:
    async def test_a_message_in_the_first_step_is_in_the_second_request_and_gets_no_turn(
        self,
    ) -> None:
        """R-168."""
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            turn = await mid_turn(h, model, user("and that", "m2"))
            await h.settled()
            turns = await h.turns()
        assert model.requests == [["first"], ["first", "and that"]]
        assert kinds(turn).count(MARKER) == 1
        assert len(turns) == 1
        marker = next(chunk for chunk in turn.chunks if chunk["type"] == MARKER)
        assert marker["data"]["messageIds"] == ["m2"]
        assert marker["data"]["messages"] == [{"id": "m2", "text": "and that"}]
        assert marker["data"]["uiMessages"] == [user("and that", "m2")]

    async def test_the_marker_stands_between_the_steps(self) -> None:
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            turn = await mid_turn(h, model, user("and that", "m2"))
        found = kinds(turn)
        at = found.index(MARKER)
        assert found[at - 2 : at + 2] == [
            "tool-output-available",
            "finish-step",
            MARKER,
            "start-step",
        ]
        assert found.count("start-step") == found.count("finish-step") == 2

    async def test_waiting_messages_are_one_batch_in_order_of_arrival(self) -> None:
        """R-169."""
        model, seen = TwoSteps(), list[PendingBatch]()

        def should_inject(batch: PendingBatch) -> bool:
            seen.append(batch)
            return True

        agent = steered(model, pending_messages=PendingMessages(should_inject=should_inject))
        async with mock_chat_agent(agent) as h:
            await mid_turn(h, model, user("two", "m2"), user("three", "m3"))
        assert [[m.id for m in batch.messages] for batch in seen] == [["m2", "m3"]]
        assert model.requests[1] == ["first", "two", "three"]
        assert (seen[0].step_number, len(seen[0].steps)) == (0, 1)
        assert prompts(seen[0].model_messages) == ["first"]

    async def test_a_refused_batch_becomes_turns_of_its_own_in_order(self) -> None:
        """R-169, D-07."""
        model = TwoSteps()
        pending = PendingMessages(should_inject=lambda batch: False)
        async with mock_chat_agent(steered(model, pending_messages=pending)) as h:
            await mid_turn(h, model, user("two", "m2"), user("three", "m3"))
            await h.settled()
            turns = await h.turns()
        assert len(turns) == 3
        assert not any(MARKER in kinds(turn) for turn in turns)
        assert [requests[-1] for requests in model.requests[1::2]] == ["first", "two", "three"]

    async def test_what_waits_when_a_turn_begins_is_offered_before_its_first_step(self) -> None:
        model, numbers = TwoSteps(), list[tuple[int, int]]()

        def should_inject(batch: PendingBatch) -> bool:
            numbers.append((batch.step_number, len(batch.steps)))
            return True

        agent = steered(model, pending_messages=PendingMessages(should_inject=should_inject))
        model.go_on.set()
        async with mock_chat_agent(agent, preload=False, continuation=True, start=False) as h:
            await h.seed_in(user("one", "m1"), user("two", "m2"))
            await h.start()
            turn = await h.turn_after(-1)
        assert numbers == [(-1, 0)]
        assert model.requests[0] == ["one", "two"]
        assert kinds(turn)[:3] == ["start", MARKER, "start-step"]

    async def test_background_messages_come_after_those_of_users(self) -> None:
        """§4.8: steering, then background injection, both for the rest of the run."""
        model = TwoSteps()
        model.meanwhile = lambda: chat.inject("from beside")
        async with mock_chat_agent(steered(model)) as h:
            await mid_turn(h, model, user("two", "m2"))
        assert model.requests[1] == ["first", "two", "from beside"]

    async def test_the_turn_complete_covers_what_was_taken(self) -> None:
        """R-174."""
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            turn = await mid_turn(h, model, user("two", "m2"), user("three", "m3"))
        assert turn.cursor.seq_num == 2
        assert not turn.cursor.decided

    async def test_other_records_keep_their_place_and_are_never_taken(self) -> None:
        """R-173: the action waits in front; the message behind it is taken all the same."""
        model = TwoSteps()
        agent = steered(model)
        agent.on_action(lambda event: f"did {event.action}")
        async with mock_chat_agent(agent) as h:
            await h.post_message(user("first", "m1"))
            await model.at_work()
            await h.post(h.wire("action", action="x"))
            await h.post_message(user("two", "m2"))
            await anyio.wait_all_tasks_blocked()
            model.go_on.set()
            turn = await h.turn_after(-1)
            after = await h.turn_after(turn.turn_complete.seq_num)
            await h.settled()
        assert model.requests[1] == ["first", "two"]
        assert after.text == "did x"
        # The action is open still: the cursor stays before it and names what is decided above.
        assert (turn.cursor.seq_num, turn.cursor.decided) == (0, {2})
        assert (after.cursor.seq_num, after.cursor.decided) == (2, frozenset())

    async def test_the_same_message_twice_is_said_once(self) -> None:
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            turn = await mid_turn(h, model, user("two", "m2"), user("two", "m2"))
            await h.settled()
            turns = await h.turns()
        assert model.requests[1] == ["first", "two"]
        assert turn.cursor.seq_num == 2
        assert len(turns) == 1

    async def test_an_answer_to_a_tool_call_is_never_offered(self) -> None:
        model = TwoSteps()
        answer = {"id": "a1", "role": "assistant", "parts": [{"type": "text", "text": "?"}]}
        async with mock_chat_agent(steered(model)) as h:
            turn = await mid_turn(h, model, answer)
        assert MARKER not in kinds(turn)

    async def test_a_message_whose_own_turn_was_stopped_is_not_taken(self) -> None:
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            await h.post_message(user("first", "m1"))
            await model.at_work()
            seq_num = await h.post_message(user("never mind", "m2"))
            await h.send_stop(target=seq_num)
            await anyio.wait_all_tasks_blocked()
            model.go_on.set()
            turn = await h.turn_after(-1)
        assert MARKER not in kinds(turn)


class TestNotTaking:
    async def test_without_should_inject_every_message_is_a_turn_and_is_announced(self) -> None:
        """R-167."""
        model, received = TwoSteps(), list[tuple[str, int]]()
        pending = PendingMessages(on_received=lambda e: received.append((e.message.id, e.turn)))
        async with mock_chat_agent(steered(model, pending_messages=pending)) as h:
            await mid_turn(h, model, user("two", "m2"))
            await h.settled()
            turns = await h.turns()
        assert received == [("m2", 0)]
        assert len(turns) == 2

    @pytest.mark.parametrize(("unconsumed", "count"), [("next_turn", 2), ("drop", 1)])
    async def test_a_message_in_the_last_step_is_the_next_turn_unless_dropped(
        self, unconsumed: Any, count: int
    ) -> None:
        """R-170."""
        speaking, go_on = anyio.Event(), anyio.Event()

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
            yield "a"
            speaking.set()
            await go_on.wait()
            yield "b"

        inner = Agent(FunctionModel(stream_function=answer))
        pending = PendingMessages(should_inject=lambda b: True, unconsumed=unconsumed)

        @chat.agent("late", pending_messages=pending)
        async def agent(turn: Any) -> Any:
            return turn.stream(inner)

        async with mock_chat_agent(agent) as h:
            await h.post_message(user("first", "m1"))
            await speaking.wait()
            await h.post_message(user("two", "m2"))
            await anyio.wait_all_tasks_blocked()
            go_on.set()
            turn = await h.turn_after(-1)
            await h.settled()
            turns = await h.turns()
        assert len(turns) == count
        assert turn.cursor.seq_num == (1 if unconsumed == "drop" else 0)

    async def test_another_step_hook_disables_steering(self) -> None:
        """R-175."""
        model = TwoSteps()

        @chat.agent("own", on_busy="steer")
        async def agent(turn: Any) -> Any:
            return turn.stream(model.agent, step_hook=None)

        async with mock_chat_agent(agent) as h:
            await mid_turn(h, model, user("two", "m2"))
            await h.settled()
            turns = await h.turns()
        assert len(turns) == 2

    async def test_run_options_bring_the_step_hook_once(self) -> None:
        model = TwoSteps()

        @chat.agent("bundle", on_busy="steer")
        async def agent(turn: Any) -> Any:
            return turn.stream(model.agent, **chat.run_options(tools=turn.tools))

        async with mock_chat_agent(agent) as h:
            turn = await mid_turn(h, model, user("two", "m2"))
        assert kinds(turn).count(MARKER) == 1

    async def test_a_message_that_validation_refuses_fails_in_its_own_turn(self) -> None:
        model = TwoSteps()
        agent = steered(model)

        @agent.on_validate_messages
        def polite(event: Any) -> Any:
            if any("rude" in chat.text_of(message) for message in event.messages):
                raise ValueError("be polite")
            return event.messages

        async with mock_chat_agent(agent) as h:
            turn = await mid_turn(h, model, user("rude", "m2"))
            refused = await h.turn_after(turn.turn_complete.seq_num)
        assert MARKER not in kinds(turn)
        assert refused.errors == ["be polite"]

    async def test_a_batch_too_large_for_its_marker_becomes_turns(self) -> None:
        model = TwoSteps()
        big = [user("x" * (limits.CHUNK_BYTES_MAX * 2 // 3), f"m{n}") for n in (2, 3)]
        async with mock_chat_agent(steered(model)) as h:
            turn = await mid_turn(h, model, *big)
            await h.settled()
            turns = await h.turns()
        assert MARKER not in kinds(turn)
        assert len(turns) >= 2
        assert not any(turn.errors for turn in turns)

    async def test_a_stopped_turn_takes_nothing_more(self) -> None:
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            await h.post_message(user("first", "m1"))
            await model.at_work()
            await h.post_message(user("two", "m2"))
            await h.send_stop()
            turn = await h.turn_after(-1)
            model.go_on.set()
            await h.settled()
            turns = await h.turns()
        assert MARKER not in kinds(turn)
        assert len(turns) == 2


class TestForms:
    async def test_prepare_gives_the_models_form_and_on_injected_sees_both(self) -> None:
        """R-171."""
        model, injected = TwoSteps(), list[Any]()
        pending = PendingMessages(
            should_inject=lambda batch: True,
            prepare=lambda batch: [
                ModelRequest(parts=[UserPromptPart(f"{len(batch.messages)} more")])
            ],
            on_injected=injected.append,
        )
        async with mock_chat_agent(steered(model, pending_messages=pending)) as h:
            turn = await mid_turn(h, model, user("two", "m2"), user("three", "m3"))
        assert model.requests[1] == ["first", "2 more"]
        assert kinds(turn).count(MARKER) == 1
        assert [m.id for m in injected[0].messages] == ["m2", "m3"]
        assert prompts(injected[0].injected_model_messages) == ["2 more"]
        assert injected[0].step_number == 0

    async def test_prepare_that_gives_nothing_takes_the_messages_without_a_marker(self) -> None:
        """R-171: they stay in history, before the answer, as a replay would put them."""
        model = TwoSteps()
        pending = PendingMessages(should_inject=lambda b: True, prepare=lambda batch: [])
        async with mock_chat_agent(steered(model, pending_messages=pending)) as h:
            turn = await mid_turn(h, model, user("two", "m2"))
            await h.settled()
            turns, snapshot = await h.turns(), await h.get_snapshot()
        assert model.requests[1] == ["first"]
        assert MARKER not in kinds(turn)
        assert len(turns) == 1
        assert snapshot is not None
        assert [m["role"] for m in snapshot["messages"]] == ["user", "user", "assistant"]

    @pytest.mark.parametrize("broken", ["on_received", "on_injected"])
    async def test_what_the_telling_functions_raise_changes_nothing(self, broken: str) -> None:
        def fails(event: Any) -> None:
            raise RuntimeError("author")

        model = TwoSteps()
        told: dict[str, Callable[..., Any]] = {broken: fails}
        pending = PendingMessages(should_inject=lambda batch: True, **told)
        async with mock_chat_agent(steered(model, pending_messages=pending)) as h:
            turn = await mid_turn(h, model, user("two", "m2"))
        assert not turn.errors
        assert model.requests[1] == ["first", "two"]

    async def test_functions_may_be_async(self) -> None:
        async def should_inject(batch: PendingBatch) -> bool:
            await anyio.lowlevel.checkpoint()
            return True

        model = TwoSteps()
        pending = PendingMessages(should_inject=should_inject)
        async with mock_chat_agent(steered(model, pending_messages=pending)) as h:
            await mid_turn(h, model, user("two", "m2"))
        assert model.requests[1] == ["first", "two"]

    def test_another_word_for_unconsumed_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="next_turn or drop"):
            PendingMessages(unconsumed="keep")  # type: ignore[arg-type]  # what is tested


async def after_a_failed_turn(h: Any, *joined: dict[str, Any]) -> None:
    """Start after the server failed a turn that these had joined: its partial answer names them."""
    data = {"messageIds": [m["id"] for m in joined], "messages": [], "uiMessages": list(joined)}
    await h.seed_in(user("first", "m1"), *joined)
    await h.seed_out(
        {"type": "start", "messageId": "a1"},
        {"type": MARKER, "id": "x", "data": data},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "so far"},
        {"type": "text-end", "id": "t"},
        {"type": "error", "errorText": "crashed"},
        {"type": "trigger:turn-complete", "cursor": 0},
    )
    await h.start()


class TestHistory:
    async def test_later_turns_and_runs_hear_the_message_at_its_place(self) -> None:
        """R-172, D-08."""
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            await mid_turn(h, model, user("two", "m2"))
            await h.send_message(user("three", "m3"))
            await h.settled()
            await h.crash()
            await h.restart()
            await h.send_message(user("four", "m4"))
        assert model.requests[2] == ["first", "two", "three"]
        assert model.requests[4] == ["first", "two", "three", "four"]

    async def test_it_is_in_history_after_a_crash_before_the_snapshot(self) -> None:
        """The log alone tells it: the marker, and a turn-complete that covers the message."""
        model = TwoSteps()
        async with mock_chat_agent(steered(model)) as h:
            h.world.faults["save_snapshot"] = [Unavailable("down")] * 9
            await mid_turn(h, model, user("two", "m2"))
            await h.settled()
            await h.crash()
            h.world.faults.clear()
            await h.restart()
            await h.send_message(user("three", "m3"))
            await h.settled()
            turns = await h.turns()
        assert model.requests[2] == ["first", "two", "three"]
        assert len(turns) == 2

    async def test_taken_messages_of_an_uncommitted_turn_are_open_again(self) -> None:
        """Rulings §1.14: the next attempt finds them behind the message they joined."""
        model = TwoSteps()
        speaking = anyio.Event()
        agent = steered(model)

        @agent.on_before_turn_complete
        async def hang(event: Any) -> None:
            if not speaking.is_set():
                speaking.set()
                await anyio.sleep_forever()

        async with mock_chat_agent(agent, preload=False, continuation=True) as h:
            await h.post_message(user("first", "m1"))
            await model.at_work()
            await h.post_message(user("two", "m2"))
            await anyio.wait_all_tasks_blocked()
            model.go_on.set()
            await speaking.wait()
            await h.crash()
            await h.restart(attempt=2)
            turn = await h.turn_after(-1)
            await h.settled()
            turns, snapshot = await h.turns(), await h.get_snapshot()
        assert len(turns) == 1
        assert turn.cursor.seq_num == 1
        assert model.requests[2] == ["first", "two"]
        assert snapshot is not None
        assert [m["role"] for m in snapshot["messages"]] == ["user", "assistant"]
        parts = snapshot["messages"][1]["parts"]
        assert [part["type"] for part in parts].count(MARKER) == 1

    async def test_a_message_that_is_answered_by_itself_after_all_is_said_once(self) -> None:
        """The server failed the turn it had joined: the partial answer names it, nobody owns it."""
        model = TwoSteps()
        model.go_on.set()
        whole = [user("two", "m2")]
        agent = steered(model)
        async with mock_chat_agent(agent, preload=False, continuation=True, start=False) as h:
            await after_a_failed_turn(h, *whole)
            await h.turn_after(6)
            await h.settled()
            snapshot = await h.get_snapshot()
        assert model.requests[0] == ["first", "two"]
        assert snapshot is not None
        assert MARKER not in str(snapshot)
        assert [m["id"] for m in snapshot["messages"]][:3] == ["m1", "a1", "m2"]

    async def test_a_message_that_joins_another_turn_after_all_is_said_once(self) -> None:
        """P-8: it had joined the turn that failed, beside the one whose turn it joins now."""
        model = TwoSteps()
        model.go_on.set()
        both = [user("two", "m2"), user("three", "m3")]
        agent = steered(model)
        async with mock_chat_agent(agent, preload=False, continuation=True, start=False) as h:
            await after_a_failed_turn(h, *both)
            turn = await h.turn_after(6)
            await h.settled()
            snapshot = await h.get_snapshot()
        assert turn.cursor.seq_num == 2
        assert snapshot is not None
        named = [id for m in snapshot["messages"] for id in sorted(marked_ids(m))]
        assert named == ["m3"], "in the turn it joined, and not in the dead one"

    async def test_the_messages_of_a_failed_turn_fail_with_it_and_stay_in_history(self) -> None:
        model = TwoSteps()

        @chat.agent("fails", on_busy="steer")
        async def agent(turn: Any) -> Any:
            if turn.turn:
                return turn.stream(model.agent)
            await chat.pipe_and_capture(turn.stream(model.agent))
            raise RuntimeError("it broke")

        async with mock_chat_agent(agent) as h:
            turn = await mid_turn(h, model, user("two", "m2"))
            await h.send_message(user("three", "m3"))
        assert turn.errors == ["it broke"]
        assert turn.cursor.seq_num == 1
        assert model.requests[2] == ["first", "two", "three"]


class TestLoops:
    async def test_a_session_of_turns_takes_messages_in_and_commits_them(self) -> None:
        """§4.9: `pending_messages` of `chat.create_session`."""
        model, received = TwoSteps(), list[str]()
        pending = PendingMessages(
            should_inject=lambda batch: True,
            on_received=lambda event: received.append(event.message.id),
        )

        @chat.custom_agent("loop")
        async def loop(payload: Any, ctx: Any) -> None:
            async with chat.create_session(payload, pending_messages=pending) as session:
                async for turn in session:
                    assert turn.prepare_step() is not None
                    await turn.complete(turn.stream(model.agent))

        async with mock_chat_agent(loop) as h:
            turn = await mid_turn(h, model, user("two", "m2"))
            await h.send_message(user("three", "m3"))
        assert received == ["m2"]
        assert turn.cursor.seq_num == 1
        assert model.requests[2] == ["first", "two", "three"]
