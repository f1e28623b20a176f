"""Our reducer gives the message the AI SDK gives: for written streams and for random ones (R-149).

A stream begins with a `start`, as every stream of ours does. Before the first `start` the two may
differ on purpose: the SDK's follower of saved streams forgets what came earlier, its chat keeps it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everturn.chat.adapters.offline import offline_model
from everturn.chat.adapters.pydantic_ai import stream_agent
from everturn.chat.reducer import MessageReducer
from everturn.errors import UIMessageStreamError

Chunk = dict[str, Any]
START: Chunk = {"type": "start", "messageId": "m1"}
#: Makes both show the message as it is at the very end: a lone step border is not announced.
SHOW: Chunk = {"type": "message-metadata", "messageMetadata": {"shown": True}}


def ours(chunks: list[Chunk], seed: Chunk | None = None) -> tuple[Chunk, bool]:
    reducer = MessageReducer(seed)
    for chunk in chunks:
        try:
            reducer.feed(chunk)
        except UIMessageStreamError:
            return reducer.message, True
    return reducer.message, False


def agree(oracle: Any, chunks: list[Chunk], seed: Chunk | None = None) -> None:
    chunks = [START, *chunks, SHOW]
    message, refused = ours(chunks, seed)
    theirs, theirs_refused = oracle.reduce(chunks, seed)
    assert refused == theirs_refused
    if not refused:
        assert message == theirs


WRITTEN: dict[str, list[Chunk]] = {
    "text in two steps": [
        {"type": "start-step"},
        {"type": "text-start", "id": "t", "providerMetadata": {"p": {"a": 1}}},
        {"type": "text-delta", "id": "t", "delta": "he"},
        {"type": "text-delta", "id": "t", "delta": "llo", "providerMetadata": {"p": {"b": 2}}},
        {"type": "text-end", "id": "t"},
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "again"},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "stop", "messageMetadata": {"a": {"x": 1}}},
    ],
    "reasoning": [
        {"type": "reasoning-start", "id": "r"},
        {"type": "reasoning-delta", "id": "r", "delta": "hm"},
        {"type": "reasoning-end", "id": "r", "providerMetadata": {"p": {"signature": "s"}}},
    ],
    "a tool call with streamed input": [
        {"type": "start-step"},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "get-weather", "title": "W"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"city": "Be'},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": 'rlin"}'},
        {
            "type": "tool-input-available",
            "toolCallId": "c",
            "toolName": "get-weather",
            "input": {"city": "Berlin"},
            "providerMetadata": {"p": {"id": "1"}},
        },
        {"type": "tool-output-available", "toolCallId": "c", "output": 1, "preliminary": True},
        {"type": "tool-output-available", "toolCallId": "c", "output": {"deg": None}},
    ],
    "a dynamic tool that fails": [
        {
            "type": "tool-input-available",
            "toolCallId": "d",
            "toolName": "x",
            "dynamic": True,
            "input": None,
        },
        {"type": "tool-output-error", "toolCallId": "d", "errorText": "no", "toolMetadata": {}},
    ],
    "bad input of a declared and of a dynamic tool": [
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "x"},
        {
            "type": "tool-input-error",
            "toolCallId": "c",
            "toolName": "x",
            "input": "{",
            "errorText": "bad",
        },
        {
            "type": "tool-input-error",
            "toolCallId": "d",
            "toolName": "x",
            "input": "{",
            "errorText": "bad",
            "dynamic": True,
        },
        {"type": "tool-output-error", "toolCallId": "c", "errorText": "worse"},
    ],
    "an approval, asked and denied": [
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {}},
        {"type": "tool-approval-request", "toolCallId": "c", "approvalId": "a", "signature": "s"},
        {"type": "tool-output-denied", "toolCallId": "c"},
    ],
    "a result for a call of an earlier step": [
        {"type": "start-step"},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {}},
        {"type": "start-step"},
        {"type": "tool-output-available", "toolCallId": "c", "output": "late"},
    ],
    "files, sources and data": [
        {"type": "file", "url": "data:text/plain,x", "mediaType": "text/plain"},
        {"type": "source-url", "sourceId": "s", "url": "https://a.test", "title": "A"},
        {"type": "source-document", "sourceId": "s", "mediaType": "a/b", "title": "T"},
        {"type": "data-note", "id": "1", "data": {"n": 1}, "extra": "kept"},
        {"type": "data-note", "id": "1", "data": {"n": 2}},
        {"type": "data-note", "data": 3},
        {"type": "data-note", "id": "2", "data": 4, "transient": True},
    ],
    "metadata is merged key by key": [
        {"type": "message-metadata", "messageMetadata": {"a": {"x": 1, "l": [1, 2]}}},
        {"type": "message-metadata", "messageMetadata": {"a": {"y": 2, "l": [3]}, "b": None}},
    ],
    "an error, an abort, a type of tomorrow": [
        {"type": "text-start", "id": "t"},
        {"type": "error", "errorText": "broke"},
        {"type": "of-tomorrow"},
        {"type": "abort", "reason": "user"},
    ],
    "a start with another id": [
        {"type": "text-start", "id": "t"},
        {"type": "start", "messageId": "m2"},
        {"type": "data-note", "data": 1},
    ],
    "parts that are opened again before their end": [
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "first"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "second"},
        {"type": "text-end", "id": "t"},
        {"type": "reasoning-start", "id": "t"},
        {"type": "reasoning-start", "id": "t", "providerMetadata": {"p": {"n": 2}}},
        {"type": "reasoning-delta", "id": "t", "delta": "hm"},
    ],
    "a call that is begun again": [
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "x"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"a": 1'},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "x"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"b": 2}'},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {"b": 2}},
    ],
    "interim outputs, the last of which stays": [
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {}},
        {"type": "tool-output-available", "toolCallId": "c", "output": [1], "preliminary": True},
        {"type": "tool-output-available", "toolCallId": "c", "output": [1, 2], "preliminary": True},
    ],
    "an interim output and then an error": [
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {"a": 1}},
        {"type": "tool-output-available", "toolCallId": "c", "output": 1, "preliminary": True},
        {
            "type": "tool-output-error",
            "toolCallId": "c",
            "errorText": "no",
            "providerMetadata": {"p": {"r": 1}},
        },
    ],
    "a denial of what nobody asked, of a dynamic tool": [
        {
            "type": "tool-input-available",
            "toolCallId": "c",
            "toolName": "x",
            "dynamic": True,
            "input": {},
            "providerExecuted": True,
        },
        {"type": "tool-output-denied", "toolCallId": "c"},
    ],
    "data of one id in two steps, and of one id in two types": [
        {"type": "start-step"},
        {"type": "data-a", "id": "1", "data": 1},
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "data-b", "id": "1", "data": 2},
        {"type": "data-a", "id": "1", "data": {"new": True}},
        {"type": "data-a", "id": "1", "data": "unseen", "transient": True},
        {"type": "data-a", "data": None},
        {"type": "data-a", "data": None},
    ],
    "files and sources with everything they may have": [
        {
            "type": "file",
            "url": "https://a.test/f",
            "mediaType": "a/b",
            "providerMetadata": {"p": {"f": 1}},
        },
        {"type": "source-url", "sourceId": "s", "url": "https://a.test", "providerMetadata": {}},
        {
            "type": "source-document",
            "sourceId": "s",
            "mediaType": "a/b",
            "title": "T",
            "filename": "t.pdf",
            "providerMetadata": {"p": {"d": 1}},
        },
    ],
    "metadata on start, between and at the end": [
        {"type": "start", "messageId": "m1", "messageMetadata": {"a": 1, "b": {"c": 1}}},
        {"type": "message-metadata", "messageMetadata": {"b": {"d": 2}}},
        {"type": "finish", "messageMetadata": {"a": None, "usage": {"in": 3}}},
    ],
    "steps that do not end, and ends without steps": [
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "x"},
        {"type": "start-step"},
        {"type": "text-delta", "id": "t", "delta": "y"},
        {"type": "finish-step"},
        {"type": "finish-step"},
    ],
    "chunks after the finish, and another finish": [
        {"type": "text-start", "id": "t"},
        {"type": "text-end", "id": "t"},
        {"type": "finish", "finishReason": "stop"},
        {"type": "data-late", "data": 1},
        {"type": "finish", "finishReason": "length", "messageMetadata": {"b": 2}},
    ],
    "an error in the middle of a call": [
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "x"},
        {"type": "error", "errorText": "broke"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"a": '},
        {"type": "abort"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "1}"},
    ],
    "a delta of nothing": [{"type": "text-delta", "id": "nobody", "delta": "x"}],
    "an output of nothing": [{"type": "tool-output-available", "toolCallId": "n", "output": 1}],
    "a delta after the end of its step": [
        {"type": "text-start", "id": "t"},
        {"type": "finish-step"},
        {"type": "text-end", "id": "t"},
    ],
}


@pytest.mark.parametrize("chunks", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_written_stream_builds_the_same_message(oracle: Any, chunks: list[Chunk]) -> None:
    """R-149."""
    agree(oracle, chunks)


def test_an_answer_is_continued_on_top_of_its_earlier_parts(oracle: Any) -> None:
    seed = {
        "id": "m1",
        "role": "assistant",
        "metadata": {"a": 1},
        "parts": [
            {"type": "step-start"},
            {"type": "text", "text": "Let me ask.", "state": "done"},
            {
                "type": "tool-ask",
                "toolCallId": "c",
                "state": "output-available",
                "input": {},
                "output": "yes",
            },
            {
                "type": "tool-half",
                "toolCallId": "h",
                "state": "input-streaming",
                "rawInput": '{"a',
                "input": {},
            },
        ],
    }
    chunks = [
        {"type": "tool-input-delta", "toolCallId": "h", "inputTextDelta": '": 1'},
        {"type": "start-step"},
        {"type": "text-start", "id": "1"},
        {"type": "text-delta", "id": "1", "delta": "You said yes."},
    ]
    agree(oracle, chunks, seed)


@pytest.mark.parametrize("question", ["hello", "what time is it"])
def test_a_recorded_agent_run_builds_the_same_message(oracle: Any, question: str) -> None:
    from pydantic_ai import Agent

    agent = Agent(offline_model(delay_ms=0))

    @agent.tool_plain
    def current_time() -> str:
        return "noon"

    async def record() -> list[Chunk]:
        stream = stream_agent(agent, user_prompt=question, message_id="m1")
        return [chunk async for chunk in stream]

    agree(oracle, asyncio.run(record())[1:])


IDS = st.sampled_from(["a", "b"])
# No negative numbers: the SDK shows nothing while a minus sign is all there is of a list's first
# item, and ours shows the empty list.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 99) | st.sampled_from(["", "ä", "text"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(IDS, inner, max_size=2),
    max_leaves=4,
)
META = st.fixed_dictionaries({}, optional={"providerMetadata": st.just({"p": {"id": "x"}})})
CALL_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dynamic": st.booleans(),
        "title": st.just("T"),
        "providerExecuted": st.booleans(),
        "toolMetadata": st.just({"m": 1}),
        "providerMetadata": st.just({"p": {"id": "y"}}),
    },
)


def chunk(kind: str, options: Any = None, /, **fields: Any) -> Any:
    made = st.fixed_dictionaries({"type": st.just(kind), **fields})
    if options is None:
        return made
    return st.tuples(options, made).map(lambda pair: {**pair[0], **pair[1]})


NAMES = st.sampled_from(["x", "get-it"])
CHUNKS = st.one_of(
    chunk("start-step"),
    chunk("finish-step"),
    chunk("start", messageId=st.sampled_from(["m1", "m1", "m2"])),
    chunk("text-start", META, id=IDS),
    chunk("text-delta", META, id=IDS, delta=st.sampled_from(["", "x", "yz"])),
    chunk("text-end", META, id=IDS),
    chunk("reasoning-start", META, id=IDS),
    chunk("reasoning-delta", META, id=IDS, delta=st.just("hm")),
    chunk("reasoning-end", META, id=IDS),
    chunk("tool-input-start", CALL_OPTIONS, toolCallId=IDS, toolName=NAMES),
    # The length of the next piece; `_spelled` puts the text there.
    chunk("tool-input-delta", toolCallId=IDS, inputTextDelta=st.integers(0, 12)),
    chunk("tool-input-available", CALL_OPTIONS, toolCallId=IDS, toolName=NAMES, input=VALUES),
    chunk(
        "tool-input-error",
        CALL_OPTIONS,
        toolCallId=IDS,
        toolName=NAMES,
        input=VALUES,
        errorText=st.just("bad"),
    ),
    chunk("tool-approval-request", toolCallId=IDS, approvalId=IDS),
    chunk("tool-output-available", CALL_OPTIONS, toolCallId=IDS, output=VALUES),
    chunk(
        "tool-output-available",
        toolCallId=IDS,
        output=VALUES,
        preliminary=st.booleans(),
    ),
    chunk("tool-output-error", CALL_OPTIONS, toolCallId=IDS, errorText=st.just("no")),
    chunk("tool-output-denied", toolCallId=IDS),
    chunk("file", META, url=st.just("data:,x"), mediaType=st.just("text/plain")),
    chunk("source-url", META, sourceId=IDS, url=st.just("https://a.test")),
    chunk("data-note", id=IDS, data=VALUES),
    chunk("data-note", data=VALUES, transient=st.booleans()),
    # Metadata is an object; what the SDK makes of other values is nobody's promise.
    chunk("message-metadata", messageMetadata=st.dictionaries(IDS, VALUES, max_size=2)),
    chunk("finish", messageMetadata=st.none() | st.just({"a": 1}), finishReason=st.just("stop")),
)


ARGUMENTS = r'{"k": [1, true, "x\"y", -1.5e3, null], "é\u00e9": {"a": {}, "b": [[]]}, "l": fal'


def _spelled(chunks: list[Chunk]) -> list[Chunk]:
    """Streamed arguments are the beginning of JSON; what is no JSON at all nobody promises.

    Nor do arguments of a dynamic call go on in a later step, where the SDK forgets their text.
    """
    written: dict[str, int] = {}
    dynamic: set[str] = set()
    left_behind: set[str] = set()
    made = []
    for item in chunks:
        call_id = item.get("toolCallId", "")
        if item["type"] == "tool-input-start":
            written[call_id] = 0
            left_behind.discard(call_id)
            (dynamic.add if item.get("dynamic") else dynamic.discard)(call_id)
        elif item["type"] == "start-step":
            left_behind |= dynamic
        elif item["type"] == "tool-input-delta":
            if call_id in left_behind:
                continue
            begin = written.get(call_id, 0)
            end = written[call_id] = begin + item["inputTextDelta"]
            item = {**item, "inputTextDelta": ARGUMENTS[begin:end]}
        made.append(item)
    return made


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chunks=st.lists(CHUNKS, max_size=14).map(_spelled))
def test_any_stream_builds_the_same_message_or_is_refused_by_both(
    oracle: Any, chunks: list[Chunk]
) -> None:
    """R-149."""
    agree(oracle, chunks)


def _begun(chunks: list[Chunk]) -> list[Chunk]:
    """Starts what the chunks refer to, so that random streams are seldom refused."""
    begun: list[Chunk] = []
    for call_id in ("a", "b"):
        begun.append({"type": "tool-input-start", "toolCallId": call_id, "toolName": "x"})
        begun.append({"type": "text-start", "id": call_id})
        begun.append({"type": "reasoning-start", "id": call_id})
    kept = [c for c in chunks if c["type"] not in ("finish-step", "start")]
    return begun + [c for c in kept if not c["type"].endswith("-end")]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chunks=st.lists(CHUNKS, max_size=14))
def test_a_well_formed_stream_is_never_refused_and_builds_the_same_message(
    oracle: Any, chunks: list[Chunk]
) -> None:
    begun = _spelled(_begun(chunks))
    assert not ours([START, *begun])[1]
    agree(oracle, begun)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=st.dictionaries(st.text("kä", max_size=3), VALUES, max_size=3), data=st.data())
def test_every_beginning_of_tool_input_is_read_alike(
    oracle: Any, value: dict[str, Any], data: st.DataObject
) -> None:
    """R-150."""
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    cut = data.draw(st.integers(0, len(text)))
    start = {"type": "tool-input-start", "toolCallId": "c", "toolName": "x"}
    delta = {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": text[:cut]}
    agree(oracle, [start, delta])
