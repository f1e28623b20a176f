"""Compaction between steps and between turns (chat-agent §4.6, §9.12; R-176 to R-182, R-046)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from everturn import Compaction, PendingMessages, chat
from everturn.chat.compaction import ShouldCompactEvent, SummarizeEvent, is_settled
from everturn.chat.definition import ChatAgent
from everturn.chat.prepare import tail_of, with_tail
from everturn.errors import ChatContextError, ConfigurationError
from everturn.testing.harness import HarnessTurn, mock_chat_agent

pytestmark = pytest.mark.anyio
TITLE = "[Conversation summary]"


class Worker:
    """A model that calls `work` some times in a turn, then answers; it remembers its requests."""

    def __init__(self, calls: int = 1, *, system: str = "") -> None:
        self.calls = calls
        self.requests: list[list[str]] = []
        self.returns = 0
        self.agent: Agent[None, str] = Agent(
            FunctionModel(stream_function=self._answer), system_prompt=system or ()
        )

        @self.agent.tool_plain
        async def work() -> str:
            self.returns += 1
            return f"result {self.returns}"

    async def _answer(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        self.requests.append(shape(messages))
        if len(self.requests) % (self.calls + 1):
            yield {0: DeltaToolCall(name="work", json_args="{}")}
        else:
            yield "answer"


def shape(messages: list[ModelMessage]) -> list[str]:
    """What a request says, one word and content per part."""
    names = {"user-prompt": "user", "system-prompt": "system", "text": "model"}
    return [
        f"{names.get(part.part_kind, part.part_kind)}: {getattr(part, 'content', '')}".strip(": ")
        for message in messages
        for part in message.parts
    ]


def user(text: str, id: str = "") -> dict[str, Any]:
    return {"id": id or f"m-{text}", "role": "user", "parts": [{"type": "text", "text": text}]}


def compaction(source: str, **more: Any) -> Compaction:
    options: dict[str, Any] = {
        "should_compact": lambda event: event.source == source,
        "summarize": lambda event: f"S{len(event.messages)}",
    }
    return Compaction(**{**options, **more})


def working(worker: Worker, config: Compaction | None, **options: Any) -> ChatAgent[Any]:
    @chat.agent("working", compaction=config, **options)
    async def agent(turn: Any) -> Any:
        return turn.stream(worker.agent)

    return agent


def kinds(turn: HarnessTurn) -> list[str]:
    return [
        f"{c['type']}:{c['data']['status']}" if c["type"] == "data-compaction" else c["type"]
        for c in turn.chunks
        if not c["type"].startswith("tool-input")
    ]


class TestInner:
    async def test_the_next_request_starts_from_the_summary_and_clients_see_the_step(self) -> None:
        """R-176."""
        worker = Worker()
        async with mock_chat_agent(working(worker, compaction("inner"))) as h:
            turn = await h.send_message(user("hi"))
        assert worker.requests == [["user: hi"], ["user: S3"]]
        assert kinds(turn)[:8] == [
            "start",
            "start-step",
            "tool-output-available",
            "finish-step",
            "start-step",
            "data-compaction:compacting",
            "data-compaction:complete",
            "finish-step",
        ]
        assert kinds(turn).count("start-step") == kinds(turn).count("finish-step")
        assert not turn.errors

    async def test_the_client_hears_of_it_while_the_summary_is_being_written(self) -> None:
        # W-87
        shown, go_on = anyio.Event(), anyio.Event()

        async def summarize(event: SummarizeEvent) -> str:
            shown.set()
            await go_on.wait()
            return "S"

        agent = working(Worker(), compaction("inner", summarize=summarize))
        async with mock_chat_agent(agent) as h:
            await h.post_message(user("hi"))
            await shown.wait()
            await anyio.wait_all_tasks_blocked()
            chunks = await h.all_chunks()
            go_on.set()
            await h.turn_after(-1)
        assert chunks[-1] == {
            "type": "data-compaction",
            "data": {"status": "compacting", "totalTokens": chunks[-1]["data"]["totalTokens"]},
            "transient": True,
        }

    async def test_it_happens_once_and_later_steps_send_the_summary_and_what_came_since(
        self,
    ) -> None:
        """R-177."""
        worker, asked = Worker(calls=3), list[ShouldCompactEvent]()

        def should(event: ShouldCompactEvent) -> bool:
            asked.append(event)
            return event.source == "inner"

        async with mock_chat_agent(working(worker, compaction("", should_compact=should))) as h:
            await h.send_message(user("hi"))
        assert worker.requests[1:] == [
            ["user: S3"],
            ["user: S3", "tool-call", "tool-return: result 2"],
            [
                "user: S3", "tool-call", "tool-return: result 2",
                "tool-call", "tool-return: result 3",
            ],
        ]  # fmt: skip
        assert len(asked) == 1
        assert (asked[0].step_number, len(asked[0].steps)) == (0, 1)
        assert asked[0].total_tokens is not None

    def test_a_step_with_an_open_or_failed_call_is_not_settled(self) -> None:
        history = [
            ModelResponse(parts=[ToolCallPart("a", {}, "1"), ToolCallPart("b", {}, "2")]),
            ModelRequest(parts=[ToolReturnPart("a", "x", "1")]),
        ]
        assert not is_settled(history)
        assert is_settled([*history, ModelRequest(parts=[ToolReturnPart("b", "y", "2")])])
        assert not is_settled(
            [*history, ModelRequest(parts=[ToolReturnPart("b", "y", "2", outcome="failed")])]
        )
        assert not is_settled([])

    async def test_system_prompts_outlive_it(self) -> None:
        worker = Worker(system="be kind")
        async with mock_chat_agent(working(worker, compaction("inner"))) as h:
            await h.send_message(user("hi"))
        assert worker.requests[-1][-1] == "user: S3"
        assert set(worker.requests[-1][:-1]) == {
            said for said in worker.requests[0] if said.startswith("system")
        }

    async def test_later_turns_start_from_the_summary_and_the_whole_answer(self) -> None:
        worker = Worker()
        async with mock_chat_agent(working(worker, compaction("inner"))) as h:
            await h.send_message(user("hi"))
            await h.send_message(user("more"))
        assert worker.requests[2] == [
            f"model: {TITLE}\n\nS3",
            "tool-call",
            "tool-return: result 1",
            "model: answer",
            "user: more",
        ]

    async def test_messages_that_join_after_it_are_in_this_and_later_requests(self) -> None:
        """Order: compaction, then steering."""
        worker = Worker(calls=2)
        pending = PendingMessages(should_inject=lambda batch: batch.step_number == 0)
        agent = working(worker, compaction("inner"), pending_messages=pending)
        async with mock_chat_agent(agent, preload=False, continuation=True, start=False) as h:
            await h.seed_in(user("hi"), user("wait"))
            await h.start()
            await h.turn_after(-1)
        assert worker.requests[1:] == [
            ["user: S3", "user: wait"],
            ["user: S3", "user: wait", "tool-call", "tool-return: result 2"],
        ]


class TestOuter:
    async def test_the_next_turn_begins_with_the_summary(self) -> None:
        """R-178."""
        worker = Worker()
        async with mock_chat_agent(working(worker, compaction("outer"))) as h:
            turn = await h.send_message(user("hi"))
            await h.send_message(user("more"))
        assert worker.requests[2] == [f"model: {TITLE}\n\nS4", "user: more"]
        assert kinds(turn)[-3:] == [
            "finish", "data-compaction:compacting", "data-compaction:complete",
        ]  # fmt: skip

    async def test_it_is_not_asked_for_when_the_turn_was_compacted_inside(self) -> None:
        sources: list[str] = []

        def should(event: ShouldCompactEvent) -> bool:
            sources.append(event.source)
            return True

        agent = working(Worker(), compaction("", should_compact=should))
        async with mock_chat_agent(agent) as h:
            await h.send_message(user("hi"))
            await h.settled()
        assert sources == ["inner"]

    async def test_it_is_not_asked_for_after_a_stop_nor_without_a_known_cost(self) -> None:
        asked: list[Any] = []
        speaking = anyio.Event()

        async def endless(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
            yield "a"
            speaking.set()
            await anyio.sleep_forever()

        inner = Agent(FunctionModel(stream_function=endless))

        @chat.agent("stops", compaction=compaction("", should_compact=asked.append))
        async def agent(turn: Any) -> Any:
            return "plain text" if turn.text == "plain" else turn.stream(inner)

        async with mock_chat_agent(agent) as h:
            await h.post_message(user("hi"))
            await speaking.wait()
            await h.send_stop()
            await h.settled()
            await h.send_message(user("plain"))
            await h.settled()
        assert not asked

    async def test_on_compacted_sees_what_was_compacted(self) -> None:
        """R-181."""
        worker, events = Worker(), list[Any]()
        agent = working(worker, compaction("outer"))
        agent.on_compacted(events.append)
        async with mock_chat_agent(agent) as h:
            await h.send_message(user("hi"))
            await h.settled()
        assert (events[0].summary, events[0].step_number, events[0].message_count) == ("S4", -1, 4)
        assert shape(events[0].messages)[0] == "user: hi"
        assert events[0].total_tokens > 0

    async def test_data_written_when_it_is_over_does_not_undo_it(self) -> None:
        """It joins the response that was just compacted, and no model hears of it."""
        worker = Worker()
        agent = working(worker, compaction("outer"))

        @agent.on_compacted
        def say_so(event: Any) -> None:
            event.writer.data("summary", event.summary)

        async with mock_chat_agent(agent) as h:
            turn = await h.send_message(user("hi"))
            await h.send_message(user("again"))
            await h.settled()
        assert "data-summary" in [part["type"] for part in turn.message["parts"]]
        first_of_second_turn = next(r for r in worker.requests if r[-1] == "user: again")
        assert "user: hi" not in first_of_second_turn
        assert len(first_of_second_turn) == 2


class TestLanes:
    @pytest.mark.parametrize("source", ["inner", "outer"])
    async def test_what_clients_see_is_unchanged(self, source: str) -> None:
        """R-179."""
        async with mock_chat_agent(working(Worker(), compaction(source))) as h:
            await h.send_message(user("hi"))
            await h.settled()
            snapshot = await h.get_snapshot()
        assert snapshot is not None
        assert [chat.text_of(m) for m in snapshot["messages"]] == ["hi", "answer"]

    @pytest.mark.parametrize("source", ["inner", "outer"])
    async def test_a_later_run_sends_the_whole_history_again(self, source: str) -> None:
        """R-182."""
        worker = Worker()
        async with mock_chat_agent(working(worker, compaction(source))) as h:
            await h.send_message(user("hi"))
            await h.settled()
            await h.crash()
            await h.restart()
            await h.send_message(user("more"))
        assert worker.requests[2] == [
            "user: hi", "tool-call", "tool-return: result 1", "model: answer", "user: more",
        ]  # fmt: skip

    async def test_compact_ui_messages_shortens_what_is_stored_and_later_runs_start_from_it(
        self,
    ) -> None:
        """R-179, R-182; and it is stored before the turn-complete that commits it."""
        worker = Worker()
        short = {"id": "s", "role": "assistant", "parts": [{"type": "text", "text": "short"}]}
        config = compaction("outer", compact_ui_messages=lambda event: [short])
        async with mock_chat_agent(working(worker, config)) as h:
            await h.send_message(user("hi"))
            await h.settled()
            snapshot = await h.get_snapshot()
            await h.crash()
            await h.restart()
            await h.send_message(user("more"))
        assert snapshot is not None
        assert snapshot["messages"] == [short]
        assert worker.requests[2] == ["model: short", "user: more"]

    async def test_compact_model_messages_chooses_what_later_turns_start_from(self) -> None:
        worker = Worker()
        kept = [ModelRequest(parts=[UserPromptPart("kept")])]
        config = compaction("outer", compact_model_messages=lambda event: kept)
        async with mock_chat_agent(working(worker, config)) as h:
            await h.send_message(user("hi"))
            await h.send_message(user("more"))
        assert worker.requests[2] == ["user: kept", "user: more"]

    async def test_rewriting_history_makes_the_summary_void(self) -> None:
        worker = Worker()
        agent = working(worker, compaction("outer"))

        @agent.on_action
        def undo(event: Any) -> None:
            chat.history.set([user("afresh")])

        async with mock_chat_agent(agent) as h:
            await h.send_message(user("hi"))
            await h.send_action("undo")
            await h.send_message(user("more"))
        assert worker.requests[2] == ["user: afresh", "user: more"]

    @pytest.mark.parametrize("source", ["inner", "outer"])
    @pytest.mark.parametrize("outcome", ["raises", "nothing"])
    async def test_a_summary_that_fails_changes_nothing(self, source: str, outcome: str) -> None:
        """R-180, D-17."""

        def summarize(event: SummarizeEvent) -> Any:
            if outcome == "raises":
                raise RuntimeError("no summary")

        worker = Worker()
        agent = working(worker, compaction(source, summarize=summarize))
        async with mock_chat_agent(agent) as h:
            turn = await h.send_message(user("hi"))
            await h.send_message(user("more"))
        assert not turn.errors
        assert turn.text == "answer"
        assert "data-compaction:complete" not in kinds(turn)
        assert kinds(turn).count("start-step") == kinds(turn).count("finish-step")
        assert worker.requests[1][0] == worker.requests[2][0] == "user: hi"

    async def test_a_failing_on_compacted_is_only_logged(self) -> None:
        """Q-11."""
        worker = Worker()
        agent = working(worker, compaction("inner"))

        @agent.on_compacted
        def fails(event: Any) -> None:
            raise RuntimeError("hook")

        async with mock_chat_agent(agent) as h:
            turn = await h.send_message(user("hi"))
        assert not turn.errors
        assert "data-compaction:complete" in kinds(turn)


class TestPrepareMessages:
    async def test_it_is_told_the_reason_of_every_list_it_gets(self) -> None:
        worker, reasons = Worker(calls=2), list[str]()
        agent = working(worker, compaction("inner"))

        @agent.prepare_messages
        def prepare(event: Any) -> Any:
            reasons.append(event.reason)
            return [ModelRequest(parts=[UserPromptPart(event.reason)]), *event.messages]

        async with mock_chat_agent(agent) as h:
            await h.send_message(user("hi"))
        assert reasons == ["run", "compaction-result", "compaction-rebuild"]
        assert worker.requests[1] == ["user: compaction-result", "user: S3"]
        assert worker.requests[2][:2] == ["user: compaction-rebuild", "user: S3"]

    async def test_a_tail_of_calls_and_results_cannot_be_removed_nor_moved(self) -> None:
        """R-046."""
        said = ModelRequest(parts=[UserPromptPart("hi")])
        call = ModelResponse(parts=[ToolCallPart("a", {}, "1")])
        result = ModelRequest(parts=[ToolReturnPart("a", "x", "1")])
        for messages in ([said, call], [said, call, result]):
            tail = tail_of(messages)
            assert tail == messages[1:]
            assert with_tail([said], tail) == messages
            assert with_tail([*tail, said], tail) == [said, *tail]
            assert with_tail(messages, tail) == messages
        for messages in ([said], [said, call, result, said], [], [result]):
            assert tail_of(messages) == []

    async def test_the_answer_to_a_call_reaches_the_agent_whatever_the_hook_returns(self) -> None:
        """R-046, in a turn that a client's tool result began."""
        heard: list[list[str]] = []
        call: dict[str, Any] = {"type": "tool-ask", "toolCallId": "1", "state": "input-available"}
        asking = {"id": "a", "role": "assistant", "parts": [{**call, "input": {}}]}
        answer = {**call, "state": "output-available", "output": "yes"}

        @chat.agent("asks")
        async def agent(turn: Any) -> str:
            heard.append(shape(turn.messages))
            return "thanks"

        agent.prepare_messages(lambda event: event.messages[:1])
        snapshot = {"version": 1, "savedAt": 0, "messages": [user("q"), user("r"), asking]}
        async with mock_chat_agent(agent, continuation=True, snapshot=snapshot) as h:
            turn = await h.send_message({"id": "a", "role": "assistant", "parts": [answer]})
        assert not turn.errors
        assert heard == [["user: q", "user: r", "tool-call", "tool-return: yes"]]

    async def test_what_is_no_list_fails_the_turn_with_a_clear_word(self) -> None:
        agent = working(Worker(), None)
        agent.prepare_messages(lambda event: None)
        async with mock_chat_agent(agent) as h:
            turn = await h.send_message(user("hi"))
        assert turn.errors == ["prepare_messages must return a list of messages, not NoneType"]


class TestByHand:
    async def test_compact_skips_compacts_and_rebuilds(self) -> None:
        found: list[Any] = []
        history: list[Any] = [ModelRequest(parts=[UserPromptPart("hi")])]
        step = ModelResponse(parts=[ToolCallPart("a", {}, "1")])
        step.usage.input_tokens = 100
        result = ModelRequest(parts=[ToolReturnPart("a", "x", "1")])

        async def once(steps: list[Any]) -> None:
            found.append(
                await chat.compact(history, steps, threshold=50, summarize=lambda event: "S")
            )

        @chat.agent("own")
        async def agent(turn: Any) -> None:
            await once([])
            found.append(chat.compaction_state())
            history.extend([step, result])
            await once([step])
            found.append(chat.compaction_state())
            history.append(ModelResponse(parts=[TextPart("since")]))
            await once([step])

        async with mock_chat_agent(agent) as h:
            turn = await h.send_message(user("go"))
        assert not turn.errors
        assert isinstance(found[0], chat.Skipped)
        assert found[1] is None
        assert isinstance(found[2], chat.Compacted)
        assert (shape(found[2].messages), found[2].summary) == (["user: S"], "S")
        assert found[3] == ("S", 2)
        assert isinstance(found[4], chat.Rebuilt)
        assert shape(found[4].messages) == ["user: S", "model: since"]
        assert [c["type"] for c in turn.chunks][:4] == [
            "start-step", "data-compaction", "data-compaction", "finish-step",
        ]  # fmt: skip

    async def test_below_the_threshold_nothing_happens(self) -> None:
        worker = Worker()

        @chat.agent("own")
        async def agent(turn: Any) -> Any:
            hook = chat.compaction_step(threshold=10**9, summarize=lambda event: "S")
            return turn.stream(worker.agent, step_hook=hook)

        async with mock_chat_agent(agent) as h:
            await h.send_message(user("hi"))
        assert worker.requests[1][0] == "user: hi"

    async def test_compaction_step_compacts_and_takes_nothing_in(self) -> None:
        worker = Worker()

        @chat.agent("own", on_busy="steer")
        async def agent(turn: Any) -> Any:
            hook = chat.compaction_step(threshold=0, summarize=lambda event: "S")
            return turn.stream(worker.agent, step_hook=hook)

        async with mock_chat_agent(agent, preload=False, continuation=True, start=False) as h:
            await h.seed_in(user("hi"), user("wait"))
            await h.start()
            await h.turn_after(-1)
        assert worker.requests[:2] == [["user: hi"], ["user: S"]]

    async def test_exactly_one_rule_is_given(self) -> None:
        for rules in ({}, {"threshold": 1, "should_compact": lambda event: True}):
            with pytest.raises(ConfigurationError, match="either"):
                chat.compaction_step(summarize=lambda event: "S", **rules)

    async def test_compaction_state_is_for_turns(self) -> None:
        with pytest.raises(ChatContextError):
            chat.compaction_state()

    @pytest.mark.parametrize(
        ("part", "safe"),
        [
            ({"type": "text", "text": "x"}, True),
            ({"type": "tool-a", "toolCallId": "1", "state": "output-available"}, True),
            ({"type": "tool-a", "toolCallId": "1", "state": "output-error"}, True),
            ({"type": "tool-a", "toolCallId": "1", "state": "output-denied"}, True),
            ({"type": "tool-a", "toolCallId": "1", "state": "input-available"}, False),
            ({"type": "tool-a", "toolCallId": "1", "state": "input-streaming"}, False),
            ({"type": "tool-a", "toolCallId": "1", "state": "approval-requested"}, False),
            ({"type": "dynamic-tool", "toolCallId": "1", "state": "approval-responded"}, False),
        ],
    )
    def test_it_is_safe_only_while_no_call_waits(self, part: dict[str, Any], safe: bool) -> None:
        message = {"id": "a", "role": "assistant", "parts": [part]}
        assert chat.is_compaction_safe([user("hi"), message]) is safe


class TestLoops:
    @pytest.mark.parametrize(
        ("source", "begins"), [("outer", []), ("inner", ["tool-call", "tool-return: result 1"])]
    )
    async def test_a_session_of_turns_compacts(self, source: str, begins: list[str]) -> None:
        """§4.9: `compaction` of `chat.create_session`."""
        worker = Worker()

        @chat.custom_agent("loop")
        async def loop(payload: Any, ctx: Any) -> None:
            config = compaction(source)
            async with chat.create_session(payload, compaction=config) as session:
                async for turn in session:
                    await turn.complete(turn.stream(worker.agent))

        async with mock_chat_agent(loop) as h:
            await h.send_message(user("hi"))
            await h.send_message(user("more"))
        assert worker.requests[2][0].startswith(f"model: {TITLE}")
        assert worker.requests[2][1:3] == (begins or ["user: more"])
