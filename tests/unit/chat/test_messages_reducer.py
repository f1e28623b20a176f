"""Chunks become the message a browser would show (§4.2.4).

That the message equals the AI SDK's is shown in `tests/wire/reducer`; here is what it promises
beyond that.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.chat.chunks import message_chunks
from everturn.chat.reducer import MessageReducer
from everturn.errors import UIMessageStreamError

Chunk = dict[str, Any]


def reduce(*chunks: Chunk, seed: Chunk | None = None) -> MessageReducer:
    reducer = MessageReducer(seed)
    for chunk in chunks:
        reducer.feed(chunk)
    return reducer


def text(part_id: str, *deltas: str, end: bool = True) -> list[Chunk]:
    chunks: list[Chunk] = [{"type": "text-start", "id": part_id}]
    chunks += [{"type": "text-delta", "id": part_id, "delta": delta} for delta in deltas]
    return [*chunks, {"type": "text-end", "id": part_id}] if end else chunks


def test_text_is_streaming_until_its_end_and_done_after() -> None:
    reducer = reduce(*text("t", "he", "llo", end=False))
    assert reducer.message["parts"] == [{"type": "text", "text": "hello", "state": "streaming"}]
    assert reducer.open_text_ids == ("t",)

    reducer.feed({"type": "text-end", "id": "t"})
    assert reducer.message["parts"][0]["state"] == "done"
    assert reducer.open_text_ids == ()


def test_open_ids_are_told_apart_and_forgotten_at_the_end_of_a_step() -> None:
    reducer = reduce(*text("t", end=False), {"type": "reasoning-start", "id": "r"})
    assert (reducer.open_text_ids, reducer.open_reasoning_ids) == (("t",), ("r",))

    reducer.feed({"type": "finish-step"})
    assert (reducer.open_text_ids, reducer.open_reasoning_ids) == ((), ())


def test_feed_says_whether_a_client_would_see_a_change() -> None:
    reducer = MessageReducer()
    assert reducer.feed({"type": "start", "messageId": "m"})
    assert not reducer.feed({"type": "start-step"})
    assert reducer.feed({"type": "text-start", "id": "t"})
    assert not reducer.feed({"type": "data-x", "data": 1, "transient": True})
    assert not reducer.feed({"type": "finish", "finishReason": "stop"})
    assert not reducer.feed({"type": "a-type-of-tomorrow"})


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "text-delta", "id": "t", "delta": "x"},
        {"type": "text-end", "id": "t"},
        {"type": "reasoning-delta", "id": "t", "delta": "x"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "x"},
        {"type": "tool-output-available", "toolCallId": "c", "output": 1},
        {"type": "tool-output-error", "toolCallId": "c", "errorText": "x"},
        {"type": "tool-output-denied", "toolCallId": "c"},
        {"type": "tool-approval-request", "toolCallId": "c", "approvalId": "a"},
        {"type": "text-start"},
        {"type": "text-start", "id": ["t"]},
        {"no": "type"},
    ],
)
def test_a_chunk_out_of_place_is_refused_and_changes_nothing(chunk: Chunk) -> None:
    reducer = reduce({"type": "start", "messageId": "m"})
    before = reducer.snapshot()

    with pytest.raises(UIMessageStreamError):
        reducer.feed(chunk)
    assert reducer.message == before


def test_streamed_tool_input_is_shown_after_every_delta() -> None:
    """R-150."""
    reducer = reduce({"type": "tool-input-start", "toolCallId": "c", "toolName": "t"})
    seen = []
    for delta in ('{"city": "Be', 'rlin", "days": [1', ", 2]}"):
        reducer.feed({"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": delta})
        seen.append(reducer.message["parts"][0]["input"])

    assert seen == [
        {"city": "Be"},
        {"city": "Berlin", "days": [1]},
        {"city": "Berlin", "days": [1, 2]},
    ]


def test_input_that_is_no_json_is_shown_as_text_when_the_tool_says_so() -> None:
    reducer = reduce(
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "sql", "inputEncoding": "text"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "select 1"},
    )
    assert reducer.message["parts"][0]["input"] == "select 1"


def test_a_final_output_clears_the_preliminary_mark() -> None:
    """R-152."""
    call = {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": {}}
    output = {"type": "tool-output-available", "toolCallId": "c"}
    reducer = reduce(call, {**output, "output": 1, "preliminary": True})
    assert reducer.message["parts"][0]["preliminary"] is True

    reducer.feed({**output, "output": 2})
    assert reducer.message["parts"][0]["output"] == 2
    assert "preliminary" not in reducer.message["parts"][0]


def test_an_output_of_null_is_an_output() -> None:
    reducer = reduce(
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": None},
        {"type": "tool-output-available", "toolCallId": "c", "output": None},
    )
    assert reducer.message["parts"][0]["input"] is None
    assert reducer.message["parts"][0]["output"] is None


def test_data_before_the_first_start_stays_and_a_later_start_of_another_id_begins_afresh() -> None:
    reducer = reduce({"type": "data-x", "data": 1}, {"type": "start", "messageId": "m1"})
    assert reducer.message == {
        "id": "m1",
        "role": "assistant",
        "parts": [{"type": "data-x", "data": 1}],
    }

    reducer.feed({"type": "start", "messageId": "m2"})
    assert reducer.message == {"id": "m2", "role": "assistant", "parts": []}


def test_a_start_of_the_same_id_goes_on_with_the_message() -> None:
    start = {"type": "start", "messageId": "m"}
    reducer = reduce(start, *text("t", "x"), start, *text("t", "y"))
    assert [part["text"] for part in reducer.message["parts"]] == ["x", "y"]


def test_the_first_start_names_the_message_that_is_continued() -> None:
    seed = {"id": "old", "role": "assistant", "parts": [{"type": "text", "text": "a"}]}
    reducer = reduce({"type": "start", "messageId": "new"}, *text("t", "b"), seed=seed)
    assert reducer.message["id"] == "new"
    assert len(reducer.message["parts"]) == 2


def test_a_seed_is_copied_and_keeps_what_nobody_knows() -> None:
    """R-153."""
    seed = {
        "id": "m",
        "role": "assistant",
        "future": {"key": [1]},
        "parts": [{"type": "tool-t", "toolCallId": "c", "state": "input-available", "x": 1}],
    }
    kept = copy.deepcopy(seed)
    reducer = reduce({"type": "tool-output-available", "toolCallId": "c", "output": 1}, seed=seed)

    assert seed == kept
    assert reducer.message["future"] == {"key": [1]}
    assert reducer.message["parts"][0]["x"] == 1


def test_a_value_nested_too_deep_to_copy_breaks_nothing() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    part = {"type": "tool-t", "toolCallId": "c", "state": "output-available", "output": deep}
    reducer = reduce(seed={"id": "m", "role": "assistant", "parts": [part]})

    assert reducer.snapshot()["parts"][0]["output"] is deep


def test_a_snapshot_does_not_change_with_later_chunks() -> None:
    reducer = reduce(*text("t", "a", end=False))
    snapshot = reducer.snapshot()
    reducer.feed({"type": "text-delta", "id": "t", "delta": "b"})

    assert snapshot["parts"][0]["text"] == "a"
    assert reducer.message["parts"][0]["text"] == "ab"


def test_errors_aborts_and_reasons_are_remembered_beside_the_message() -> None:
    reducer = reduce(
        {"type": "error", "errorText": "broke"},
        {"type": "abort"},
        {"type": "finish", "finishReason": "length"},
    )
    assert (reducer.error, reducer.aborted, reducer.finish_reason) == ("broke", True, "length")
    assert reducer.message["parts"] == []


def test_two_data_parts_of_one_type_and_id_are_one_part_with_the_newer_data() -> None:
    reducer = reduce(
        {"type": "data-x", "id": "1", "data": 1},
        {"type": "data-y", "id": "1", "data": 2},
        {"type": "data-x", "id": "1", "data": 3},
    )
    assert [part["data"] for part in reducer.message["parts"]] == [3, 2]


PART = st.one_of(
    st.just({"type": "step-start"}),
    st.builds(
        lambda kind, body: {"type": kind, "text": body, "state": "done"},
        st.just("text"),
        st.text(max_size=5),
    ),
    st.builds(lambda value: {"type": "data-x", "data": value}, st.integers()),
    st.builds(
        lambda url: {"type": "source-url", "sourceId": "s", "url": url, "title": "T"},
        st.text(max_size=3),
    ),
)


def _tool(number: int, state: str) -> Chunk:
    part: Chunk = {
        "type": "tool-t" if number % 2 else "dynamic-tool",
        "toolCallId": f"c{number}",
        "state": state,
        "input": {"n": number},
    }
    if part["type"] == "dynamic-tool":
        part["toolName"] = "t"
    extra = {"output-available": {"output": None}, "output-error": {"errorText": "e"}}
    part.update(extra.get(state, {}))
    return part


TOOL = st.builds(
    _tool,
    st.integers(0, 1000),
    st.sampled_from(["input-available", "output-available", "output-error", "output-denied"]),
)


@settings(deadline=None)
@given(
    parts=st.lists(PART | TOOL, max_size=8, unique_by=lambda p: p.get("toolCallId", id(p))),
    metadata=st.none() | st.just({"a": 1}),
)
def test_the_chunks_of_a_message_build_that_message(
    parts: list[Chunk], metadata: Chunk | None
) -> None:
    message: Chunk = {"id": "m", "role": "assistant", "parts": parts}
    if metadata is not None:
        message["metadata"] = metadata

    assert reduce(*message_chunks(message)).message == message
