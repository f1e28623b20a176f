"""Declaring tools, and one run of a model with them (chat-agent §4.11.1, §8.2; rulings §5.4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import chat
from everturn.chat.adapters.pydantic_ai import AgentStream, stream_agent
from everturn.chat.chunks import check_chunk
from everturn.chat.reducer import MessageReducer
from everturn.chat.toolsets import PRELIMINARY_MAX
from everturn.chat.ui_messages import text_of
from everturn.errors import ConfigurationError

pytestmark = pytest.mark.anyio

Chunk = dict[str, Any]


class Search(BaseModel):
    """What to look for."""

    words: str
    limit: int = 3


class Caller:
    """A model that calls one tool with given arguments, and then says what came back."""

    def __init__(self, name: str, arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.returned: list[Any] = []
        self.definitions: list[Any] = []

    async def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        self.definitions = list(info.function_tools)
        returns = [p for m in messages for p in m.parts if isinstance(p, ToolReturnPart)]
        if returns:
            self.returned = [part.content for part in returns]
            yield f"it said {returns[-1].model_response_str()}"
        else:
            yield {0: DeltaToolCall(name=self.name, json_args=self.arguments, tool_call_id="call")}


def run(model: Caller, *tools: Any) -> AgentStream:
    agent = Agent(FunctionModel(stream_function=model))
    return stream_agent(agent, user_prompt="go", **chat.run_options(tools=list(tools)))


async def collect(stream: AgentStream) -> list[Chunk]:
    return [chunk async for chunk in stream]


def reduced(chunks: list[Chunk]) -> Chunk:
    reducer = MessageReducer()
    for chunk in chunks:
        check_chunk(chunk)
        reducer.feed(chunk)
    return reducer.message


def outputs(chunks: list[Chunk]) -> list[tuple[Any, bool]]:
    """Every output of the stream, and whether it was preliminary."""
    return [
        (chunk["output"], chunk.get("preliminary", False))
        for chunk in chunks
        if chunk["type"] == "tool-output-available"
    ]


async def test_a_tool_gets_one_instance_of_its_model_and_what_it_returns_is_the_output() -> None:
    seen: list[Any] = []

    @chat.tool
    async def search(query: Search) -> dict[str, Any]:
        """Look something up."""
        seen.append(query)
        return {"found": query.words, "query": query}

    model = Caller("search", '{"words": "owls"}')
    chunks = await collect(run(model, search))

    assert seen == [Search(words="owls", limit=3)]
    assert outputs(chunks) == [({"found": "owls", "query": {"words": "owls", "limit": 3}}, False)]
    (definition,) = model.definitions
    assert (definition.name, definition.description) == ("search", "Look something up.")
    assert set(definition.parameters_json_schema["properties"]) == {"words", "limit"}


async def test_the_call_form_names_and_describes_a_function() -> None:
    async def anything(input: Any) -> str:
        return f"{input.words}!"

    tool = chat.tool(anything, name="shout", description="Shout it.", input=Search)
    model = Caller("shout", '{"words": "hey"}')
    chunks = await collect(run(model, tool))

    assert outputs(chunks) == [("hey!", False)]
    assert model.definitions[0].description == "Shout it."
    assert await tool(Search(words="direct")) == "direct!"


async def test_a_function_without_parameters_takes_no_arguments() -> None:
    @chat.tool(name="now", description="The time.")
    async def now() -> str:
        return "noon"

    model = Caller("now", "{}")
    assert outputs(await collect(run(model, now))) == [("noon", False)]
    assert model.definitions[0].parameters_json_schema["properties"] == {}


async def test_a_plain_function_runs_in_a_thread_so_that_it_may_block() -> None:
    @chat.tool
    def search(query: Search) -> str:
        return anyio.from_thread.run(answer, query.words)

    async def answer(words: str) -> str:
        return words.upper()

    chunks = await collect(run(Caller("search", '{"words": "owls"}'), search))
    assert outputs(chunks) == [("OWLS", False)]


async def test_a_second_parameter_gets_the_context_of_the_call() -> None:
    @chat.tool
    async def search(query: Search, ctx: chat.ToolContext) -> str:
        return f"{ctx.tool_call_id} {ctx.chat_id} {ctx.signal.aborted}"

    chunks = await collect(run(Caller("search", '{"words": "owls"}'), search))
    assert outputs(chunks) == [("call None False", False)]


async def test_arguments_that_do_not_fit_never_reach_the_function() -> None:
    @chat.tool
    async def search(query: Search) -> str:
        raise AssertionError("called with invalid arguments")

    chunks = await collect(run(Caller("search", '{"words": 7}'), search))
    assert "tool-input-error" in [chunk["type"] for chunk in chunks]


async def test_a_failing_tool_is_an_error_of_its_call_and_the_model_goes_on() -> None:
    @chat.tool
    async def search(query: Search) -> str:
        raise LookupError("no such thing")

    chunks = await collect(run(Caller("search", '{"words": "owls"}'), search))
    message = reduced(chunks)

    part = next(part for part in message["parts"] if part["type"] == "tool-search")
    assert (part["state"], part["errorText"]) == ("output-error", "no such thing")
    assert "no such thing" in text_of(message)
    assert chunks[-1]["finishReason"] == "stop"


async def test_the_model_sees_what_to_model_output_makes_and_the_client_the_whole_output() -> None:
    seen: list[Any] = []

    def brief(output: Any, given: Any, call_id: str) -> str:
        seen.append((given, call_id))
        return f"{len(output['hits'])} hits"

    @chat.tool(to_model_output=brief)
    async def search(query: Search) -> dict[str, Any]:
        return {"hits": ["a", "b"]}

    model = Caller("search", '{"words": "owls"}')
    chunks = await collect(run(model, search))

    assert outputs(chunks) == [({"hits": ["a", "b"]}, False)]
    assert model.returned == ["2 hits"]
    assert seen == [({"words": "owls", "limit": 3}, "call")]


# --- streaming tools ------------------------------------------------------------------------------


async def test_each_yield_but_the_last_is_preliminary_and_the_last_is_the_output() -> None:
    @chat.streaming_tool(name="count", description="Count.", input=Search)
    async def count(query: Search) -> AsyncIterator[dict[str, int]]:
        for number in range(3):
            yield {"n": number}
            if number < 2:
                await anyio.lowlevel.checkpoint()

    chunks = await collect(run(Caller("count", '{"words": "x"}'), count))

    assert outputs(chunks) == [({"n": 0}, True), ({"n": 1}, True), ({"n": 2}, False)]
    part = next(part for part in reduced(chunks)["parts"] if part["type"] == "tool-count")
    assert part["output"] == {"n": 2}
    assert "preliminary" not in part
    kinds = [chunk["type"] for chunk in chunks]
    assert kinds.index("tool-input-available") < kinds.index("tool-output-available")


async def test_a_yield_is_shown_while_the_generator_waits_not_when_it_goes_on() -> None:
    go_on = anyio.Event()

    @chat.streaming_tool(name="count", description="Count.", input=Search)
    async def count(query: Search) -> AsyncIterator[str]:
        yield "working"
        await go_on.wait()
        yield "done"

    found: list[tuple[Any, bool]] = []
    async for chunk in run(Caller("count", '{"words": "x"}'), count):
        if chunk["type"] == "tool-output-available":
            found.append((chunk["output"], chunk.get("preliminary", False)))
            go_on.set()
    assert found == [("working", True), ("done", False)]


async def test_a_generator_that_cleans_up_after_its_last_yield_has_it_shown_meanwhile() -> None:
    @chat.streaming_tool(name="count", description="Count.", input=Search)
    async def count(query: Search) -> AsyncIterator[str]:
        try:
            yield "all of it"
        finally:
            await anyio.lowlevel.checkpoint()

    chunks = await collect(run(Caller("count", '{"words": "x"}'), count))
    assert outputs(chunks) == [("all of it", True), ("all of it", False)]


async def test_a_ui_message_may_be_yielded_and_the_model_sees_its_text() -> None:
    message = {"id": "m", "role": "assistant", "parts": [{"type": "text", "text": "42"}]}

    @chat.streaming_tool(name="ask", description="Ask.", input=Search, to_model_output=chat.text_of)
    async def ask(query: Search) -> AsyncIterator[Any]:
        yield {**message, "parts": []}
        yield message

    model = Caller("ask", '{"words": "x"}')
    chunks = await collect(run(model, ask))

    assert outputs(chunks) == [({**message, "parts": []}, True), (message, False)]
    assert model.returned == ["42"]


async def test_a_generator_that_yields_nothing_has_an_output_of_null() -> None:
    @chat.streaming_tool(name="count", description="Count.", input=Search)
    async def count(query: Search) -> AsyncIterator[int]:
        for number in ():
            yield number

    assert outputs(await collect(run(Caller("count", '{"words": "x"}'), count))) == [(None, False)]


async def test_a_failing_generator_keeps_what_it_showed_and_ends_with_the_error() -> None:
    @chat.streaming_tool(name="count", description="Count.", input=Search)
    async def count(query: Search) -> AsyncIterator[int]:
        yield 1
        await anyio.lowlevel.checkpoint()
        raise LookupError("lost count")

    chunks = await collect(run(Caller("count", '{"words": "x"}'), count))

    assert outputs(chunks) == [(1, True)]
    assert [c["errorText"] for c in chunks if c["type"] == "tool-output-error"] == ["lost count"]


async def test_a_slow_reader_bounds_what_waits_and_still_ends_with_the_newest() -> None:
    @chat.streaming_tool(name="count", description="Count.", input=Search)
    async def count(query: Search) -> AsyncIterator[int]:
        for number in range(5 * PRELIMINARY_MAX):
            yield number

    chunks = await collect(run(Caller("count", '{"words": "x"}'), count))
    shown = [output for output, preliminary in outputs(chunks) if preliminary]

    assert len(shown) <= PRELIMINARY_MAX + 1
    assert shown == sorted(shown)
    assert outputs(chunks)[-1] == (5 * PRELIMINARY_MAX - 1, False)


# --- client tools ---------------------------------------------------------------------------------


async def test_a_client_is_only_asked_what_fits_the_input_model() -> None:
    ask = chat.client_tool("ask", "Ask the person.", Search)

    good = await collect(run(Caller("ask", '{"words": "which?"}'), ask))
    assert reduced(good)["parts"][-1]["state"] == "input-available"
    assert good[-1]["finishReason"] == "tool-calls"

    bad = await collect(run(Caller("ask", '{"words": 7}'), ask))
    assert "tool-input-error" in [chunk["type"] for chunk in bad]
    assert bad[-1]["finishReason"] == "stop"


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes_in_a_declaration_are_told_where_they_are_made() -> None:
    async def plain(query: Search) -> str:
        return ""

    def unannotated(query):  # type: ignore[no-untyped-def]  # what the test is about
        return ""

    async def streaming(query: Search) -> AsyncIterator[str]:
        yield ""

    with pytest.raises(ConfigurationError, match="is no async generator"):
        chat.streaming_tool(name="x", description="", input=Search)(plain)
    with pytest.raises(ConfigurationError, match="is an async generator"):
        chat.tool(streaming)
    with pytest.raises(ConfigurationError, match="say what its input is"):
        chat.tool(unannotated)
    with pytest.raises(ConfigurationError, match="needs a name"):
        chat.client_tool("", "Ask.")
    with pytest.raises(TypeError, match="answered by the client"):
        chat.client_tool("ask", "Ask.", Search)(Search(words="x"))
