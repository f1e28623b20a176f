"""pydantic-ai runs as streams of chunks (§8.2, §4.14, R-157)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import (
    AgentInfo,
    DeltaThinkingPart,
    DeltaToolCall,
    FunctionModel,
)
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset
from pydantic_ai.usage import RunUsage, UsageLimits

from everturn.chat.adapters.offline import offline_model
from everturn.chat.adapters.pydantic_ai import AgentStream, as_agent_chunks, stream_agent
from everturn.chat.adapters.usage import InputTokens, OutputTokens, Usage
from everturn.chat.chunks import check_chunk
from everturn.chat.reducer import MessageReducer
from everturn.chat.ui_messages import text_of
from everturn.errors import StreamAlreadyConsumed
from everturn.tasks.signals import Signal

pytestmark = pytest.mark.anyio

Chunk = dict[str, Any]


def clock_agent(delay_ms: float = 0) -> Agent[None, str]:
    agent = Agent(offline_model(delay_ms=delay_ms))

    @agent.tool_plain
    def current_time() -> str:
        return "noon"

    @agent.tool_plain(requires_approval=True)
    def launch() -> str:
        return "launched"

    return agent


async def collect(chunks: Any) -> list[Chunk]:
    return [chunk async for chunk in chunks]


def types(chunks: list[Chunk]) -> list[str]:
    """The types in order, runs of deltas as one."""
    found: list[str] = []
    for chunk in chunks:
        if not (found and found[-1] == chunk["type"] and chunk["type"].endswith("-delta")):
            found.append(chunk["type"])
    return found


def reduced(chunks: list[Chunk], seed: Chunk | None = None) -> Chunk:
    reducer = MessageReducer(seed)
    for chunk in chunks:
        check_chunk(chunk)
        reducer.feed(chunk)
    return reducer.message


def user(body: str) -> Chunk:
    return {"id": "u", "role": "user", "parts": [{"type": "text", "text": body}]}


async def test_nothing_runs_before_the_stream_is_read_and_it_is_read_once() -> None:
    calls = 0

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        yield "x"

    stream = stream_agent(Agent(FunctionModel(stream_function=model)), user_prompt="hi")
    await anyio.lowlevel.checkpoint()
    assert calls == 0
    assert stream.usage is None

    await collect(stream)
    assert calls == 1
    with pytest.raises(StreamAlreadyConsumed):
        aiter(stream)


async def test_a_run_with_a_tool_has_two_steps_with_right_borders_and_ends_with_finish() -> None:
    """R-157."""
    stream = stream_agent(clock_agent(), user_prompt="what time is it?", message_id="m1")
    chunks = await collect(stream)

    assert types(chunks) == [
        "start",
        "start-step",
        "tool-input-start",
        "tool-input-delta",
        "tool-input-available",
        "tool-output-available",
        "finish-step",
        "start-step",
        "text-start",
        "text-delta",
        "text-end",
        "finish-step",
        "finish",
    ]
    assert chunks[0]["messageId"] == "m1"
    assert chunks[-1]["finishReason"] == stream.finish_reason == "stop"
    assert text_of(reduced(chunks)).startswith("current_time says noon")
    assert stream.result is not None


async def test_a_start_without_a_known_id_leaves_it_to_whoever_pipes_the_stream() -> None:
    chunks = await collect(stream_agent(clock_agent(), user_prompt="hi"))

    assert chunks[0] == {"type": "start"}


async def test_an_answer_that_continues_a_message_keeps_its_id() -> None:
    messages = [user("hi"), {"id": "a", "role": "assistant", "parts": []}]
    chunks = await collect(
        stream_agent(clock_agent(), user_prompt="go on", original_messages=messages)
    )

    assert chunks[0]["messageId"] == "a"


async def test_usage_is_counted_in_our_fields() -> None:
    stream = stream_agent(clock_agent(), user_prompt="hello")
    await collect(stream)

    assert stream.usage is not None
    assert stream.usage.total_tokens == (stream.usage.input_tokens or 0) + (
        stream.usage.output_tokens or 0
    )
    assert stream.usage.input_token_details.cache_read == 0


def test_usage_adds_up_and_stays_unknown_when_nobody_knows() -> None:
    one = Usage(input_tokens=1, output_token_details=OutputTokens(reasoning=2))
    two = Usage(input_tokens=3, input_token_details=InputTokens(cache_read=4))
    total = one + two

    assert total.input_tokens == 4
    assert total.output_tokens is None
    assert total.output_token_details == OutputTokens(reasoning=2)
    assert total.input_token_details == InputTokens(cache_read=4)
    assert one + None == one
    assert (one + RunUsage(input_tokens=5)).input_tokens == 6


# --- stop and failure ---------------------------------------------------------------------------


async def test_a_stop_closes_open_text_and_ends_with_abort() -> None:
    stop = Signal()
    stream = stream_agent(clock_agent(delay_ms=1), user_prompt="hello", stop=stop)
    chunks: list[Chunk] = []
    async for chunk in stream:
        chunks.append(chunk)
        if chunk["type"] == "text-delta":
            stop.abort("user")

    assert types(chunks)[-2:] == ["text-end", "abort"]
    assert chunks[-1]["reason"] == "user"
    assert stream.finish_reason is None
    assert reduced(chunks)["parts"][-1]["state"] == "done"


async def test_a_stop_reaches_a_model_that_says_nothing() -> None:
    waiting = anyio.Event()

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        waiting.set()
        await anyio.sleep_forever()
        yield "never"

    stop = Signal()
    stream = stream_agent(
        Agent(FunctionModel(stream_function=model)), user_prompt="hello", stop=stop
    )
    chunks: list[Chunk] = []

    async def read() -> None:
        chunks.extend(await collect(stream))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await waiting.wait()
        stop.abort("user")

    assert types(chunks)[-1] == "abort"


async def test_a_stop_before_the_first_chunk_never_asks_the_model() -> None:
    stop = Signal()
    stop.abort("early")
    chunks = await collect(stream_agent(clock_agent(), user_prompt="hello", stop=stop))

    assert types(chunks) == ["start", "abort"]


async def test_a_call_that_was_running_when_the_run_stopped_gets_no_made_up_result() -> None:
    stop = Signal()
    agent = Agent(offline_model(delay_ms=0))

    @agent.tool_plain
    async def wait_here() -> str:
        stop.abort("user")
        await anyio.sleep_forever()
        return "never"

    chunks = await collect(stream_agent(agent, user_prompt="wait here", stop=stop))

    assert types(chunks)[-2:] == ["tool-input-available", "abort"]


async def test_a_failing_model_gives_one_error_chunk_and_no_exception() -> None:
    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "half "
        raise RuntimeError("secret details")

    agent = Agent(FunctionModel(stream_function=model))
    stream = stream_agent(agent, user_prompt="hi", on_error=lambda error: "Sorry.")
    chunks = await collect(stream)

    assert types(chunks)[-4:] == ["text-end", "error", "finish-step", "finish"]
    assert chunks[-3]["errorText"] == "Sorry."
    assert chunks[-1]["finishReason"] == stream.finish_reason == "error"
    assert isinstance(stream.error, RuntimeError)
    assert stream.result is None


async def test_a_run_that_cannot_begin_is_an_error_chunk_too() -> None:
    chunks = await collect(stream_agent(Agent(), user_prompt="hi"))

    assert types(chunks) == ["start", "error", "finish"]


async def test_leaving_the_stream_ends_the_run() -> None:
    ended = anyio.Event()

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        try:
            while True:
                yield "word "
                await anyio.lowlevel.checkpoint()
        finally:
            ended.set()

    stream = stream_agent(Agent(FunctionModel(stream_function=model)), user_prompt="hi")
    async for chunk in stream:
        if chunk["type"] == "text-delta":
            break
    await stream.aclose()

    assert ended.is_set()


async def test_cancelling_the_reader_ends_the_run() -> None:
    ended = anyio.Event()

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        try:
            yield "word"
            await anyio.sleep_forever()
        finally:
            ended.set()

    stream = stream_agent(Agent(FunctionModel(stream_function=model)), user_prompt="hi")
    with anyio.CancelScope() as scope:
        async for chunk in stream:
            if chunk["type"] == "text-delta":
                scope.cancel()

    assert scope.cancelled_caught
    assert ended.is_set()


# --- steps --------------------------------------------------------------------------------------


async def test_a_step_limit_ends_after_the_tools_of_the_last_step() -> None:
    stream = stream_agent(clock_agent(), user_prompt="what time is it", max_steps=1)
    chunks = await collect(stream)

    assert types(chunks)[-3:] == ["tool-output-available", "finish-step", "finish"]
    assert stream.finish_reason == "tool-calls"
    assert stream.error is None


async def test_a_usage_limit_of_the_author_is_still_an_error() -> None:
    stream = stream_agent(
        clock_agent(), user_prompt="what time", usage_limits=UsageLimits(request_limit=1)
    )
    await collect(stream)

    assert stream.finish_reason == "error"


# --- tools that a person answers ----------------------------------------------------------------


async def test_a_tool_without_code_ends_the_turn_with_its_call_waiting() -> None:
    ask = ExternalToolset([ToolDefinition(name="ask_user", description="Ask.")])
    stream = stream_agent(clock_agent(), user_prompt="ask user", toolsets=[ask])
    message = reduced(await collect(stream))

    assert message["parts"][-1]["state"] == "input-available"
    assert stream.finish_reason == "tool-calls"


async def test_the_answer_of_a_person_goes_on_in_the_same_message() -> None:
    ask = ExternalToolset([ToolDefinition(name="ask_user", description="Ask.")])
    first = reduced(
        await collect(
            stream_agent(clock_agent(), messages=[user("ask user")], toolsets=[ask], message_id="a")
        )
    )
    first["parts"][-1].update(state="output-available", output="blue")
    history = [user("ask user"), first]
    stream = stream_agent(
        clock_agent(), messages=history, original_messages=history, toolsets=[ask]
    )
    message = reduced(await collect(stream), first)

    assert message["id"] == "a"
    assert "ask_user says blue" in text_of(message)


async def asked_to_launch() -> Chunk:
    stream = stream_agent(clock_agent(), messages=[user("please launch")], message_id="a")
    message = reduced(await collect(stream))
    assert message["parts"][-1]["state"] == "approval-requested"
    assert stream.finish_reason == "tool-calls"
    return message


@pytest.mark.parametrize(
    ("approved", "state", "said"),
    [(True, "output-available", "launched"), (False, "output-denied", "denied")],
)
async def test_an_approval_is_asked_for_and_its_decision_carried_out(
    approved: bool, state: str, said: str
) -> None:
    asked = await asked_to_launch()
    part = asked["parts"][-1]
    part["state"] = "approval-responded"
    part["approval"] = {"id": part["approval"]["id"], "approved": approved}
    history = [user("please launch"), asked]
    chunks = await collect(stream_agent(clock_agent(), messages=history, original_messages=history))
    message = reduced(chunks, asked)

    decided = next(p for p in message["parts"] if p["type"] == "tool-launch")
    assert decided["state"] == state
    assert said in text_of(message)


# --- reasoning, nulls, invalid input ------------------------------------------------------------


async def test_reasoning_is_streamed_as_reasoning() -> None:
    """R-157."""

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        yield {0: DeltaThinkingPart(content="hm", signature="sig")}
        yield "answer"

    chunks = await collect(
        stream_agent(Agent(FunctionModel(stream_function=model)), user_prompt="hi")
    )
    parts = reduced(chunks)["parts"]

    assert [part["type"] for part in parts] == ["step-start", "reasoning", "text"]
    assert parts[1]["providerMetadata"]["pydantic_ai"]["signature"] == "sig"


async def test_a_tool_that_returns_none_has_an_output_of_null() -> None:
    agent = Agent(offline_model(delay_ms=0))

    @agent.tool_plain
    def do_nothing() -> None:
        return None

    message = reduced(await collect(stream_agent(agent, user_prompt="do nothing")))

    assert message["parts"][1]["state"] == "output-available"
    assert message["parts"][1]["output"] is None


async def test_invalid_arguments_are_an_input_error_and_the_model_may_try_again() -> None:
    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        tried = sum(isinstance(p, ToolReturnPart) for m in messages for p in m.parts)
        if len(messages) == 1 or not tried:
            good = len(messages) > 1
            yield {0: DeltaToolCall(name="add", json_args='{"n": 1}' if good else '{"n": "x"}')}
        else:
            yield "done"

    agent = Agent(FunctionModel(stream_function=model))

    @agent.tool_plain
    def add(n: int) -> int:
        return n

    chunks = await collect(stream_agent(agent, user_prompt="add"))

    assert "tool-input-error" in types(chunks)
    assert text_of(reduced(chunks)) == "done"


async def test_tools_for_one_run_only_are_given_beside_the_agents_own() -> None:
    def ping() -> str:
        """Ping."""
        return "pong"

    stream = stream_agent(Agent(offline_model(delay_ms=0)), user_prompt="ping", tools=[ping])

    assert "ping says pong" in text_of(reduced(await collect(stream)))


# --- what the library makes itself --------------------------------------------------------------


async def test_a_finished_run_is_told_again_as_one_message() -> None:
    result = await Agent(TestModel(custom_output_text="hello")).run("hi")
    chunks = as_agent_chunks(result)
    assert chunks is not None

    assert text_of(reduced(await collect(chunks))) == "hello"


async def test_a_streamed_run_and_its_events_are_taken_as_they_are() -> None:
    agent = Agent(TestModel(custom_output_text="hello there"))
    async with agent.run_stream("hi") as result:
        streamed = as_agent_chunks(result)
        assert streamed is not None
        assert text_of(reduced(await collect(streamed))) == "hello there"
    async with agent.run_stream_events("hi") as events:
        mapped = as_agent_chunks(events)
        assert mapped is not None
        assert text_of(reduced(await collect(mapped))) == "hello there"
    unentered = as_agent_chunks(agent.run_stream_events("hi"))
    assert unentered is not None
    assert text_of(reduced(await collect(unentered))) == "hello there"


async def test_an_agent_stream_is_one_of_them_and_other_things_are_not() -> None:
    stream = stream_agent(clock_agent(), user_prompt="hi")
    assert isinstance(stream, AgentStream)
    assert as_agent_chunks(stream) is not None
    for other in ("text", {"type": "start"}, [], None, object()):
        assert as_agent_chunks(other) is None
    await stream.aclose()
