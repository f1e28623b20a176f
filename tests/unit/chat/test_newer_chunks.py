"""What `ai` 7 has added to messages: built, turned back into chunks, and told to the model."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from everturn.chat.chunks import message_chunks
from everturn.chat.conversion import to_model_messages
from everturn.chat.reducer import MessageReducer
from everturn.chat.replay import replay_out
from everturn.errors import UIMessageStreamError
from everturn.protocol.records import Record, data_body

STEERED: dict[str, Any] = {
    "type": "steering-message",
    "id": "u2",
    "parts": [{"type": "text", "text": "in Fahrenheit please"}, "no part"],
}
ANSWER: dict[str, Any] = {
    "id": "m1",
    "role": "assistant",
    "parts": [
        {"type": "step-start"},
        {"type": "text", "text": "Warm.", "state": "done", "citations": [{"sourceId": "s"}]},
        STEERED,
        {"type": "custom", "kind": "p.thing"},
        {"type": "reasoning-file", "url": "data:,x", "mediaType": "text/plain"},
        {
            "type": "tool-send",
            "toolCallId": "c",
            "state": "approval-responded",
            "input": {},
            "approval": {
                "id": "a",
                "requestReason": "costs money",
                "isAutomatic": True,
                "approved": False,
                "reason": "no",
            },
        },
    ],
}


def test_a_message_of_newer_parts_is_built_again_by_its_chunks() -> None:
    reducer = MessageReducer()
    for chunk in message_chunks(ANSWER):
        reducer.feed(chunk)

    assert reducer.message == ANSWER


def test_a_message_steered_in_is_what_the_user_said_at_its_place() -> None:
    told: list[Any] = to_model_messages(
        [ANSWER, {"id": "u3", "role": "user", "parts": [text("and now?")]}]
    )

    said = [part.content for message in told for part in message.parts]
    assert said == ["Warm.", "in Fahrenheit please", "and now?"]


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "custom"},
        {"type": "reasoning-file", "url": 1, "mediaType": "a/b"},
        {"type": "steering-message", "id": "u", "parts": "text"},
        {"type": "tool-approval-response", "approvalId": "nobody", "approved": True},
    ],
)
def test_a_newer_chunk_without_what_it_needs_is_refused(chunk: dict[str, Any]) -> None:
    reducer = MessageReducer()
    with pytest.raises(UIMessageStreamError):
        reducer.feed(chunk)
    assert reducer.message["parts"] == []


def test_only_a_plain_true_in_an_approval_approves() -> None:
    reducer = MessageReducer()
    reducer.feed({"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {}})
    reducer.feed({"type": "tool-approval-request", "toolCallId": "c", "approvalId": "a"})
    reducer.feed({"type": "tool-approval-response", "approvalId": "a", "approved": "yes"})

    assert reducer.message["parts"][0]["approval"] == {"id": "a", "approved": False}


def test_what_a_step_has_taken_back_is_neither_in_history_nor_open() -> None:
    chunks = [
        {"type": "start", "messageId": "m1"},
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "void"},
        {"type": "reset-step"},
        {"type": "data-kept", "data": 1},
    ]
    replay = replay_out([record(n, chunk) for n, chunk in enumerate(chunks)], [])

    assert replay.open_text_ids == ()
    assert replay.partial is not None
    assert replay.partial["parts"] == [{"type": "step-start"}, {"type": "data-kept", "data": 1}]


def record(seq_num: int, chunk: dict[str, Any]) -> Record:
    body = data_body(msgspec.json.encode(chunk), f"0-{seq_num}")
    return Record(seq_num, 0, (), body)
