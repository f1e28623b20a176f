"""The model library's own queue in a chat: what we put into it, and what an author does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent, CancellationToken, RunContext
from pydantic_ai.capabilities import AbstractCapability, HandleDeferredToolCalls
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import (
    EnqueuedMessagesEvent,
    ModelMessage,
    ModelRequest,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults
from pydantic_ai.usage import UsageLimits

from everturn import PendingMessages, chat
from everturn.chat.adapters.offline import offline_model
from everturn.chat.adapters.pydantic_ai import stream_agent
from everturn.chat.step_hook import StepHook
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio
ENQUEUED = "data-enqueued-messages"
MARKER = "data-pending-message-injected"


class Heard:
    """A model that calls `work` first and then answers, and keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[list[ModelMessage]] = []
        self.agent: Agent[None, str] = Agent(FunctionModel(stream_function=self._answer))

    async def _answer(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        self.requests.append(list(messages))
        last = messages[-1]
        new = isinstance(last, ModelRequest) and len(last.parts) == 1
        if new and isinstance(last.parts[0], UserPromptPart) and last.parts[0].content == "work":
            yield {0: DeltaToolCall(name="work", json_args="{}")}
        else:
            yield f"answer {len(self.requests)}"

    def words(self, request: int) -> list[str]:
        """What people and the model said, in the order a request holds it."""
        return [
            str(part.content)
            for message in self.requests[request]
            for part in message.parts
            if isinstance(part, UserPromptPart | TextPart)
        ]


# --- RunContext.enqueue of an author ----------------------------------------------------------------


async def test_what_a_tool_enqueues_is_heard_in_this_turn_and_in_later_ones_at_its_place() -> None:
    heard = Heard()

    @heard.agent.tool
    def work(ctx: RunContext[None]) -> str:
        ctx.enqueue("and be brief")
        return "worked"

    @chat.agent("enqueuing")
    async def agent(turn: chat.Turn[Any]) -> Any:
        return turn.stream(heard.agent)

    async with mock_chat_agent(agent) as h:
        await h.send_message("work")
        await h.settled()
        await h.crash()
        await h.restart()
        await h.send_message("next")

    assert heard.words(1) == ["work", "and be brief"]
    assert heard.words(2) == ["work", "and be brief", "answer 2", "next"]


async def test_what_is_enqueued_inside_of_something_enqueued_is_left_out() -> None:
    from everturn.chat.conversion import to_model_messages

    inner = {"type": ENQUEUED, "data": {"messages": [{"id": "x", "role": "user", "parts": []}]}}
    said = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "hi"}, inner]}
    answer = {"id": "m", "role": "assistant", "parts": [inner, {"type": "text", "text": "ho"}]}
    part = {"type": ENQUEUED, "data": {"messages": [said, answer, "no message", {"role": "?"}]}}
    found = to_model_messages([{"id": "a", "role": "assistant", "parts": [part]}])

    assert [part.content for message in found for part in message.parts] == ["hi", "ho"]
    for broken in (None, "x", {"messages": 7}):
        part["data"] = broken
        assert to_model_messages([{"id": "a", "role": "assistant", "parts": [dict(part)]}]) == []


# --- and ours ---------------------------------------------------------------------------------------


class Listening(AbstractCapability[Any]):
    """Keeps the events of the library's queue."""

    def __init__(self) -> None:
        self.events: list[EnqueuedMessagesEvent] = []


async def test_messages_that_join_a_turn_go_through_the_librarys_queue_and_are_shown_once() -> None:
    heard = Heard()

    @chat.agent(
        "steered", pending_messages=PendingMessages(should_inject=lambda batch: bool(batch.steps))
    )
    async def agent(turn: chat.Turn[Any]) -> Any:
        return turn.stream(heard.agent)

    @heard.agent.tool_plain
    async def work() -> str:
        chat.inject("from the background")
        await h.post_message("and me")
        await anyio.wait_all_tasks_blocked()
        return "worked"

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("work")
        await h.send_message("next")
    kinds = [chunk["type"] for chunk in turn.chunks]

    assert kinds.count(MARKER) == 1
    assert ENQUEUED not in kinds
    assert heard.words(1) == ["work", "and me", "from the background"]
    assert heard.words(2) == ["work", "from the background", "and me", "answer 2", "next"]


async def test_the_step_hook_uses_the_queue_of_the_run() -> None:
    """What the queue delivers has its event: authors' own listeners hear of joined messages too."""
    heard, events = Heard(), []

    @chat.agent("told")
    async def agent(turn: chat.Turn[Any]) -> Any:
        chat.inject("from the background")
        async with heard.agent.run_stream_events("hello", capabilities=[StepHook()]) as run:
            events.extend([event async for event in run])
        return "done"

    async with mock_chat_agent(agent) as h:
        await h.send_message("hello")
    [told] = [event for event in events if isinstance(event, EnqueuedMessagesEvent)]

    assert [part.content for message in told.messages for part in message.parts] == [
        "from the background"
    ]
    assert heard.words(0) == ["hello", "from the background"]


# --- CancellationToken ------------------------------------------------------------------------------


async def test_a_token_of_the_author_ends_the_stream_with_abort() -> None:
    token = CancellationToken()
    stream = stream_agent(
        Agent(offline_model(delay_ms=1)), user_prompt="hello", cancellation_token=token
    )
    chunks = []
    async for chunk in stream:
        chunks.append(chunk)
        if chunk["type"] == "text-delta":
            token.cancel()

    assert [chunk["type"] for chunk in chunks][-2:] == ["text-end", "abort"]
    assert stream.error is None


async def test_a_stop_ends_a_run_that_an_agent_function_waits_for_itself() -> None:
    working = anyio.Event()
    cancelled: list[BaseException] = []

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        working.set()
        await anyio.sleep_forever()
        yield "never"

    @chat.agent("own")
    async def agent(turn: chat.Turn[Any]) -> Any:
        mine = Agent(FunctionModel(stream_function=model))
        try:
            async with mine.run_stream("hello", **chat.run_options()) as result:
                return await result.get_output()
        except RunCancelled as error:
            cancelled.append(error)
            raise

    async with mock_chat_agent(agent) as h, anyio.create_task_group() as tasks:
        turns: list[Any] = []

        async def send() -> None:
            turns.append(await h.send_message("hello"))

        tasks.start_soon(send)
        await working.wait()
        await h.send_stop()
    [turn] = turns

    assert len(cancelled) == 1
    assert turn.errors == []


# --- deferred tools, limits ---------------------------------------------------------------------------


async def test_deferred_calls_that_a_capability_answers_never_reach_a_person() -> None:
    heard = Heard()

    @heard.agent.tool_plain(requires_approval=True)
    def work() -> str:
        return "worked"

    def approve(
        ctx: RunContext[None], requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        return requests.build_results(approve_all=True)

    @chat.agent("approving")
    async def agent(turn: chat.Turn[Any]) -> Any:
        return turn.stream(heard.agent, capabilities=[HandleDeferredToolCalls(handler=approve)])

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("work")

    kinds = [chunk["type"] for chunk in turn.chunks]
    assert "tool-approval-request" not in kinds
    assert "tool-output-available" in kinds
    assert turn.text == "answer 2"


@pytest.mark.parametrize(
    "limits",
    [
        UsageLimits(request_limit=1),
        UsageLimits(tool_calls_limit=0),
        UsageLimits(total_tokens_limit=1),
    ],
    ids=["requests", "tool calls", "tokens"],
)
async def test_a_usage_limit_ends_the_turn_visibly_and_the_chat_goes_on(
    limits: UsageLimits,
) -> None:
    heard = Heard()

    @heard.agent.tool_plain
    def work() -> str:
        return "worked"

    @chat.agent("limited")
    async def agent(turn: chat.Turn[Any]) -> Any:
        return turn.stream(heard.agent, usage_limits=limits if turn.text == "work" else None)

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("work")
        again = await h.send_message("next")

    [error] = turn.errors
    assert "limit" in error
    assert turn.chunks[-1] == {"type": "finish", "finishReason": "error"}
    assert turn.turn_complete is not None
    assert again.text.startswith("answer")
