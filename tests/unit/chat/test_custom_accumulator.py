"""Steering and compaction in a loop its author wrote, by hand (chat-agent §4.10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from everturn import Compaction, PendingMessages, chat
from everturn.chat.adapters.pydantic_ai import stream_agent
from everturn.chat.adapters.usage import Usage
from everturn.chat.compaction import SUMMARY_TITLE
from everturn.errors import ChatContextError, TooLarge
from everturn.rules import limits
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio
MARKER = "data-pending-message-injected"


def user(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


def prompts(messages: list[ModelMessage]) -> list[str]:
    return [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]


class ByHand:
    """A loop that collects what arrives during a turn itself, and a model of two steps.

    Args:
        hook: whether its model runs have the step hook.
        model: gives the model form of a message that is offered.
    """

    def __init__(self, pending: PendingMessages | None, **options: Any) -> None:
        self.requests: list[list[str]] = []
        self.history: list[str] = []
        self.left: list[list[str]] = []
        self.arrived = anyio.Event()
        self.prepares = False
        agent = Agent(FunctionModel(stream_function=self._answer))

        @agent.tool_plain
        async def wait() -> str:
            await self.arrived.wait()
            return "waited"

        @chat.custom_agent("by-hand")
        async def loop(payload: Any) -> None:
            history = chat.MessageAccumulator(pending_messages=pending)
            hook = history.prepare_step()
            self.prepares = hook is not None
            while (payload := (await chat.messages.wait("1h")).output) is not None:
                model_messages = history.add_incoming([payload["message"]], "submit-message", 1)

                def arrived(later: Any, history: chat.MessageAccumulator = history) -> None:
                    text = chat.text_of(later["message"])
                    history.steer(later["message"], **options.get(text, {}))
                    history.steer(later["message"])  # twice is once
                    self.arrived.set()

                undo = chat.messages.on(arrived)
                stream = stream_agent(
                    agent, message_history=model_messages, capabilities=[hook] if hook else []
                )
                history.add_response(await chat.pipe_and_capture(stream) or {})
                undo()
                left = history.drain_steering()
                self.left.append([chat.text_of(message) for message in left])
                history.add_incoming(left, "submit-message", 1)
                self.history = [chat.text_of(message) for message in history.ui_messages]
                await chat.write_turn_complete()

        self.agent = loop

    async def _answer(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        self.requests.append(prompts(messages))
        if any(part.part_kind == "tool-return" for part in messages[-1].parts) or (
            len(messages) > 1 and len(self.requests) == 2
        ):
            yield "done"
        else:
            yield {0: DeltaToolCall(name="wait", json_args="{}")}


async def one_turn(by_hand: ByHand) -> list[dict[str, Any]]:
    async with mock_chat_agent(by_hand.agent) as h:
        await h.post_message(user("first", "m1"))
        await h.reached(lambda: bool(by_hand.requests))
        await h.post_message(user("later", "m2"))
        turn = await h.turn_after(-1)
        await h.settled()
        assert len(await h.turns()) == 1, "both messages are decided by one turn-complete"
        assert turn.cursor.seq_num == 1
    return turn.chunks


async def test_a_message_offered_by_hand_joins_the_answer_at_the_next_step() -> None:
    taken: list[str] = []
    by_hand = ByHand(
        PendingMessages(
            should_inject=lambda batch: len(batch.messages) == 1,
            on_injected=lambda event: taken.extend(m["id"] for m in event.messages),
        )
    )
    chunks = await one_turn(by_hand)
    assert by_hand.prepares
    assert by_hand.requests == [["first"], ["first", "later"]]
    assert [chunk["data"]["messageIds"] for chunk in chunks if chunk["type"] == MARKER] == [["m2"]]
    assert taken == ["m2"]
    assert by_hand.left == [[]]
    assert by_hand.history == ["first", "done"]


async def test_the_model_form_of_an_offered_message_may_be_the_authors() -> None:
    form = ModelRequest(parts=[UserPromptPart(content="LATER")])
    by_hand = ByHand(PendingMessages(should_inject=lambda batch: True), later={"model": [form]})
    await one_turn(by_hand)
    assert by_hand.requests == [["first"], ["first", "LATER"]]


@pytest.mark.parametrize("pending", [None, PendingMessages(should_inject=lambda batch: False)])
async def test_what_is_not_taken_comes_back_to_the_loop(pending: PendingMessages | None) -> None:
    by_hand = ByHand(pending)
    chunks = await one_turn(by_hand)
    assert by_hand.prepares == (pending is not None)
    assert by_hand.requests == [["first"], ["first"]]
    assert not [chunk for chunk in chunks if chunk["type"] == MARKER]
    assert by_hand.left == [["later"]]
    assert by_hand.history == ["first", "done", "later"]


async def test_a_message_taken_without_a_mark_comes_before_the_answer_in_history() -> None:
    by_hand = ByHand(PendingMessages(should_inject=lambda batch: True, prepare=lambda batch: []))
    chunks = await one_turn(by_hand)
    assert not [chunk for chunk in chunks if chunk["type"] == MARKER]
    assert by_hand.left == [[]]
    assert by_hand.history == ["first", "later", "done"]


def test_more_offered_messages_than_an_input_buffer_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "INPUT_BUFFER_MAX", 2)
    history = chat.MessageAccumulator()
    history.steer(user("1", "1"))
    history.steer(user("2", "2"))
    with pytest.raises(TooLarge):
        history.steer(user("3", "3"))


async def test_a_loop_compacts_when_its_author_wants_it_and_knows_what_for() -> None:
    asked: list[Any] = []
    told: list[Any] = []
    found: list[Any] = []

    def should(event: chat.ShouldCompactEvent) -> bool:
        asked.append(event)
        return event.total_tokens is not None and event.total_tokens > 100

    def summarize(event: chat.SummarizeEvent) -> str:
        told.append(event)
        return "they greeted"

    @chat.custom_agent("compacting")
    async def loop(payload: Any) -> None:
        history = chat.MessageAccumulator(
            compaction=Compaction(should_compact=should, summarize=summarize)
        )
        for tokens in (50, 150):
            payload = (await chat.messages.wait("1h")).unwrap()
            history.add_incoming([payload["message"]], "submit-message", 1)
            history.add_response(await chat.pipe_and_capture("hello") or {})
            usage = Usage(total_tokens=tokens)
            found.append(
                await history.compact_if_needed(
                    usage, client_data={"plan": "pro"}, turn=7, total_usage=Usage(total_tokens=9)
                )
            )
            with pytest.raises(TypeError, match="colour"):
                await history.compact_if_needed(usage, colour="blue")
            await chat.write_turn_complete()
        found.append(history.model_messages)

    async with mock_chat_agent(loop) as h:
        await h.post_message(user("hi", "1"))
        await h.turn_after(-1)
        await h.post_message(user("ho", "2"))
        await h.settled()
    assert h.error is None
    first, second, model_messages = found
    assert (first, second) == (False, True)
    assert [event.total_tokens for event in asked] == [50, 150]
    assert {(event.turn, event.total_usage.total_tokens) for event in asked} == {(7, 9)}
    assert told[0].client_data == {"plan": "pro"}
    assert told[0].source == "outer"
    (summary,) = model_messages
    assert summary.parts[0].content == f"{SUMMARY_TITLE}\n\nthey greeted"


async def test_without_a_turn_there_is_nothing_to_compact() -> None:
    with pytest.raises(ChatContextError):
        await chat.MessageAccumulator().compact_if_needed(None)
