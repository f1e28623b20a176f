"""Raw streams of providers as chunks: events as the providers document and send them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everturn import chat
from everturn.chat.adapters.openai_agents import agents_chunks
from everturn.chat.adapters.plain import ProviderStream, anthropic_chunks, openai_chunks
from everturn.chat.reducer import MessageReducer
from everturn.errors import StreamAlreadyConsumed
from everturn.protocol.chunks import chunk_problem
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio
#: Recorded from the SDK itself: a run with one tool call, on a model served by chat completions.
AGENTS_RUN = Path(__file__).parent / "openai_agents_run.jsonl"


async def collected(stream: ProviderStream) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The chunks, all of them valid, and the message they build."""
    reducer, chunks = MessageReducer(), []
    async for chunk in stream:
        assert chunk_problem(chunk) is None
        reducer.feed(chunk)
        chunks.append(chunk)
    return chunks, reducer.message


def kinds(chunks: Iterable[dict[str, Any]]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


def as_objects(value: Any) -> Any:
    """The same events as a provider's package gives them: objects with attributes."""
    return json.loads(json.dumps(value), object_hook=lambda found: SimpleNamespace(**found))


# --- chat completions -----------------------------------------------------------------------------


def completion(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def tool_piece(index: int, arguments: str, id: str | None = None) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": arguments}
    if id is not None:
        function["name"] = "weather"
    return {"index": index, "id": id, "type": "function", "function": function}


COMPLETION = [
    completion({"role": "assistant", "content": "", "refusal": None}),
    completion({"reasoning_content": "They mean "}),
    completion({"reasoning_content": "Oslo."}),
    completion({"content": "Let me "}),
    completion({"content": "look."}),
    completion({"tool_calls": [tool_piece(0, "", "call_1")]}),
    completion({"tool_calls": [tool_piece(0, '{"city":')]}),
    completion({"tool_calls": [tool_piece(1, '{"city":"Bonn"}', "call_2")]}),
    completion({"tool_calls": [tool_piece(0, '"Oslo"}')]}),
    completion({}, "tool_calls"),
    {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    },
]


@pytest.mark.parametrize("shape", [list, as_objects])
async def test_a_chat_completion_becomes_reasoning_text_and_calls(shape: Any) -> None:
    stream = openai_chunks(iter(shape(COMPLETION)))
    chunks, message = await collected(stream)
    assert kinds(chunks)[:2] == ["start", "start-step"]
    assert kinds(chunks)[-2:] == ["finish-step", "finish"]
    assert chunks[-1]["finishReason"] == stream.finish_reason == "tool-calls"
    step, thought, said, first, second = message["parts"]
    assert step == {"type": "step-start"}
    assert (thought["text"], thought["state"]) == ("They mean Oslo.", "done")
    assert (said["text"], said["state"]) == ("Let me look.", "done")
    assert [first["state"], second["state"]] == ["input-available"] * 2
    assert [call.input for call in stream.calls] == [{"city": "Oslo"}, {"city": "Bonn"}]
    assert [call.name for call in stream.calls] == ["weather", "weather"]
    usage = stream.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (10, 5, 15)
    assert (usage.input_token_details.cache_read, usage.input_token_details.no_cache) == (4, 6)
    assert (usage.output_token_details.reasoning, usage.output_token_details.text) == (1, 4)


async def test_input_that_is_no_json_is_said_to_be_wrong_and_never_called() -> None:
    pieces = [tool_piece(0, '{"city":', "call_1")]
    stream = openai_chunks(iter([completion({"tool_calls": pieces}), completion({}, "length")]))
    chunks, message = await collected(stream)
    assert stream.calls == ()
    assert stream.finish_reason == "length"
    assert message["parts"][-1]["state"] == "output-error"
    assert "tool-input-error" in kinds(chunks)


async def test_a_stream_that_breaks_off_closes_its_parts_and_says_nothing_it_does_not_know() -> (
    None
):
    chunks, _ = await collected(openai_chunks(iter([completion({"content": "half"})])))
    assert kinds(chunks)[-3:] == ["text-end", "finish-step", "finish"]
    assert chunks[-1]["finishReason"] == "other"


# --- responses ------------------------------------------------------------------------------------

ADDED = {"type": "response.output_item.added", "output_index": 2}
RESPONSE = [
    {"type": "response.created", "response": {"id": "r"}},
    {
        "type": "response.reasoning_summary_text.delta",
        "item_id": "rs",
        "output_index": 0,
        "summary_index": 0,
        "delta": "Hm.",
    },
    {
        "type": "response.reasoning_summary_text.done",
        "item_id": "rs",
        "output_index": 0,
        "summary_index": 0,
        "text": "Hm.",
    },
    {
        "type": "response.output_text.delta",
        "item_id": "m",
        "output_index": 1,
        "content_index": 0,
        "delta": "Looking.",
    },
    {
        "type": "response.output_text.annotation.added",
        "item_id": "m",
        "output_index": 1,
        "content_index": 0,
        "annotation": {"type": "url_citation", "url": "https://x.test", "title": "X"},
    },
    {
        "type": "response.output_text.done",
        "item_id": "m",
        "output_index": 1,
        "content_index": 0,
        "text": "Looking.",
    },
    {**ADDED, "item": {"type": "function_call", "id": "f", "call_id": "c1", "name": "weather"}},
    {
        "type": "response.function_call_arguments.delta",
        "item_id": "f",
        "output_index": 2,
        "delta": '{"city":"Oslo"}',
    },
    {
        "type": "response.output_item.done",
        "output_index": 2,
        "item": {
            "type": "function_call",
            "id": "f",
            "call_id": "c1",
            "name": "weather",
            "arguments": '{"city":"Oslo"}',
        },
    },
    {
        "type": "response.completed",
        "response": {
            "output": [{"type": "message"}, {"type": "function_call"}],
            "usage": {
                "input_tokens": 3,
                "output_tokens": 4,
                "total_tokens": 7,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 2},
            },
        },
    },
]


@pytest.mark.parametrize("shape", [list, as_objects])
async def test_a_response_becomes_reasoning_text_sources_and_calls(shape: Any) -> None:
    stream = openai_chunks(iter(shape(RESPONSE)))
    chunks, message = await collected(stream)
    types = [part["type"] for part in message["parts"]]
    assert types == ["step-start", "reasoning", "text", "source-url", "tool-weather"]
    assert stream.finish_reason == "tool-calls"
    assert [(call.id, call.input) for call in stream.calls] == [("c1", {"city": "Oslo"})]
    assert stream.usage is not None
    assert stream.usage.total_tokens == 7
    assert kinds(chunks).count("tool-input-available") == 1


@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [
        (
            {
                "type": "response.incomplete",
                "response": {"incomplete_details": {"reason": "max_output_tokens"}},
            },
            "length",
            None,
        ),
        (
            {"type": "response.failed", "response": {"error": {"message": "overloaded"}}},
            "error",
            "overloaded",
        ),
        ({"type": "error", "code": "x", "message": "no more"}, "error", "no more"),
        ({"type": "response.something.new"}, None, None),
    ],
)
async def test_a_response_ends_as_its_provider_says(
    end: dict[str, Any], reason: str | None, error: str | None
) -> None:
    stream = openai_chunks(iter([RESPONSE[3], end]))
    chunks, message = await collected(stream)
    assert chunks[-1] == {"type": "finish", "finishReason": reason or "other"}
    assert [c["errorText"] for c in chunks if c["type"] == "error"] == ([error] if error else [])
    assert message["parts"][-1]["state"] == "done"


# --- messages -------------------------------------------------------------------------------------


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


MESSAGE = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "usage": {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 1},
        },
    },
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "signature_delta", "signature": "sig"},
    ),
    *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Looking."}),
    *block(
        2,
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"query":"oslo"}'},
    ),
    *block(
        3,
        {
            "type": "web_search_tool_result",
            "tool_use_id": "s1",
            "content": [{"type": "web_search_result", "url": "https://x.test"}],
        },
    ),
    *block(
        4,
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"city":'},
        {"type": "input_json_delta", "partial_json": '"Oslo"}'},
    ),
    *block(5, {"type": "tool_use", "id": "t2", "name": "now", "input": {}}),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 20},
    },
    {"type": "message_stop"},
]


@pytest.mark.parametrize("shape", [list, as_objects])
async def test_an_anthropic_message_becomes_thinking_text_and_calls(shape: Any) -> None:
    stream = anthropic_chunks(iter(shape(MESSAGE)))
    chunks, message = await collected(stream)
    _, thought, said, search, weather, now = message["parts"]
    assert thought["providerMetadata"] == {"anthropic": {"signature": "sig"}}
    assert said["text"] == "Looking."
    assert search["providerExecuted"] is True
    assert (search["state"], search["input"]) == ("output-available", {"query": "oslo"})
    assert weather["input"] == {"city": "Oslo"}
    assert (now["state"], now["input"]) == ("input-available", {})
    assert [call.id for call in stream.calls] == ["t1", "t2"], "its own search is not ours to do"
    assert stream.finish_reason == "tool-calls"
    assert stream.usage is not None
    assert (stream.usage.input_tokens, stream.usage.output_tokens) == (100, 20)
    assert kinds(chunks).count("finish-step") == 1


async def test_an_error_in_an_anthropic_stream_is_shown() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    chunks, _ = await collected(anthropic_chunks(iter([MESSAGE[0], error])))
    assert chunks[-2:] == [
        {"type": "error", "errorText": "Overloaded"},
        {"type": "finish", "finishReason": "error"},
    ]


# --- the agents SDK -------------------------------------------------------------------------------


class Run:
    """What `Runner.run_streamed` returns, as far as it is used."""

    def __init__(self) -> None:
        self.cancelled = False

    async def stream_events(self) -> AsyncIterator[Any]:
        for line in AGENTS_RUN.read_text().splitlines():
            yield json.loads(line)

    def cancel(self) -> None:
        self.cancelled = True


async def test_a_run_of_the_agents_sdk_becomes_steps_with_its_tools_results() -> None:
    run = Run()
    stream = agents_chunks(run)
    chunks, message = await collected(stream)
    assert [part["type"] for part in message["parts"]] == [
        "step-start",
        "text",
        "tool-weather",
        "step-start",
        "text",
    ]
    call = message["parts"][2]
    assert (call["state"], call["input"]) == ("output-available", {"city": "Oslo"})
    assert call["output"] == {"city": "Oslo", "degrees": -3}
    assert chat.text_of(message) == "Let me look.It is cold."
    assert stream.finish_reason == "stop"
    assert stream.usage is not None
    assert stream.usage.total_tokens == 41
    assert kinds(chunks).count("finish") == 1
    assert not run.cancelled


async def test_a_run_of_the_agents_sdk_is_cancelled_when_nobody_reads_on() -> None:
    run = Run()
    stream = agents_chunks(run)
    async for chunk in stream:
        if chunk["type"] == "text-delta":
            break
    await stream.aclose()
    assert run.cancelled


# --- as streamables -------------------------------------------------------------------------------


class Connection:
    """A provider's stream that must be closed."""

    def __init__(self, events: Iterable[Any]) -> None:
        self._events = iter(events)
        self.closed = False

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> Any:
        for event in self._events:
            return event
        raise StopAsyncIteration

    async def close(self) -> None:
        self.closed = True


async def test_an_agent_may_return_a_request_that_was_not_even_awaited() -> None:
    connection = Connection(COMPLETION[:5])

    async def create() -> Connection:
        return connection

    @chat.agent("plain")
    async def agent(turn: chat.Turn[Any]) -> Any:
        return openai_chunks(create())

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("weather?")
        assert turn.text == "Let me look."
    assert turn.errors == []
    assert turn.chunks[0]["messageId"] == turn.message["id"]
    assert connection.closed


async def test_a_loop_of_several_requests_makes_one_answer() -> None:
    @chat.agent("looping")
    async def agent(turn: chat.Turn[Any]) -> AsyncIterator[Any]:
        for events in (COMPLETION, [completion({"content": "Cold."}), completion({}, "stop")]):
            step = openai_chunks(iter(events), is_step=True)
            async for chunk in step:
                yield chunk
            for call in step.calls:
                output = {"of": call.input["city"]}
                yield {"type": "tool-output-available", "toolCallId": call.id, "output": output}

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("weather?")
    found = kinds(turn.chunks)
    assert (found.count("start"), found.count("finish")) == (1, 1)
    assert found.count("start-step") == found.count("finish-step") == 2
    tools = [part for part in turn.message["parts"] if part["type"] == "tool-weather"]
    assert [part["output"] for part in tools] == [{"of": "Oslo"}, {"of": "Bonn"}]
    assert chat.text_of(turn.message) == "Let me look.Cold."


async def test_what_the_connection_raises_fails_the_turn_and_keeps_what_was_shown() -> None:
    async def broken() -> AsyncIterator[Any]:
        yield COMPLETION[3]
        raise ConnectionError("reset")

    @chat.agent("broken")
    async def agent(turn: chat.Turn[Any]) -> Any:
        return openai_chunks(broken())

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("weather?")
    assert turn.text == "Let me "
    assert turn.errors != []


async def test_a_stream_is_read_once() -> None:
    stream = openai_chunks(iter(COMPLETION))
    await collected(stream)
    with pytest.raises(StreamAlreadyConsumed):
        aiter(stream)


async def test_text_in_a_string_class_of_its_librarys_own_is_text() -> None:
    """LangChain yields such, and JSON knows none of them."""

    class Accessor(str):
        pass

    @chat.agent("own")
    async def agent(turn: chat.Turn[Any]) -> AsyncIterator[str]:
        yield Accessor("Hello ")
        yield Accessor("there.")

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("hello")
        await h.settled()
        stored = await h.get_snapshot()
    assert (turn.text, turn.errors) == ("Hello there.", [])
    assert stored is not None
    assert chat.text_of(stored["messages"][-1]) == "Hello there."
