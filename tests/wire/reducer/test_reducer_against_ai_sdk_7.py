"""Our reducer beside that of `ai` 7, which knows chunks that `ai` 6 ignores.

Where the two majors differ about an older chunk, ours is the older one's, which every client shows:

* `ai` 7 lets text go on after the end of its step. Ours refuses it, as `ai` 6 does.
* `ai` 7 keeps the bad input of a declared tool in `input`, `ai` 6 in `rawInput`. A reader of `ai` 7
  takes both.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Oracle
from driver import CLIENTS, installed, node_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_reducer_against_ai_sdk import (
    CHUNKS,
    META,
    SHOW,
    START,
    WRITTEN,
    Chunk,
    _begun,
    _spelled,
    chunk,
    ours,
)

pytestmark = pytest.mark.timeout(300)  # packages are installed within the first test's time


@pytest.fixture(scope="module")
def newest() -> Iterator[Oracle]:
    """What `ai` 7 makes of chunks."""
    folder = installed(CLIENTS["4.8.3 with ai 7"])
    shutil.copy(Path(__file__).parent / "reduce.mjs", folder / "reduce.mjs")
    with subprocess.Popen(
        [node_of(folder), "reduce.mjs"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Oracle(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def agree(oracle: Oracle, chunks: list[Chunk]) -> None:
    chunks = [START, *chunks, SHOW]
    message, refused = ours(chunks)
    theirs, theirs_refused = oracle.reduce(chunks)
    assert refused == theirs_refused
    if not refused:
        assert [_bad_input_moved(part) for part in message["parts"]] == theirs["parts"]
        assert {**message, "parts": 0} == {**theirs, "parts": 0}


def _bad_input_moved(part: Chunk) -> Chunk:
    if part.get("state") != "output-error" or part["type"] == "dynamic-tool":
        return part
    return {("input" if key == "rawInput" else key): value for key, value in part.items()}


CALL: Chunk = {"type": "tool-input-available", "toolCallId": "c", "toolName": "x", "input": {}}
ASKED: Chunk = {"type": "tool-approval-request", "toolCallId": "c", "approvalId": "a"}

NEW: dict[str, list[Chunk]] = {
    "citations at the end of a text": [
        {"type": "text-start", "id": "t"},
        {"type": "text-end", "id": "t", "citations": [{"sourceId": "s"}]},
    ],
    "custom content and files of reasoning": [
        {"type": "custom", "kind": "p.thing", "providerMetadata": {"p": {"a": 1}}},
        {"type": "custom", "kind": "p.other"},
        {"type": "reasoning-file", "url": "data:,x", "mediaType": "text/plain"},
    ],
    "an approval that was asked for and given": [
        CALL,
        {**ASKED, "reason": "costs money", "isAutomatic": True, "signature": "s"},
        {
            "type": "tool-approval-response",
            "approvalId": "a",
            "approved": True,
            "reason": "fine",
            "providerExecuted": True,
            "providerMetadata": {"p": {"a": 1}},
        },
        {"type": "tool-output-available", "toolCallId": "c", "output": 1},
    ],
    "an approval that was not automatic, and denied": [
        CALL,
        {**ASKED, "isAutomatic": False},
        {"type": "tool-approval-response", "approvalId": "a", "approved": False},
        {"type": "tool-output-denied", "toolCallId": "c"},
    ],
    "an answer to what nobody asked": [
        CALL,
        {"type": "tool-approval-response", "approvalId": "a", "approved": True},
    ],
    "a message that was steered in": [
        {"type": "start-step"},
        {"type": "steering-message", "id": "u", "parts": [{"type": "text", "text": "faster"}]},
    ],
    "a step that is begun anew": [
        {"type": "start-step"},
        {"type": "data-kept", "data": 1},
        {"type": "start-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "void"},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "x"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "{"},
        {"type": "reset-step"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "anew"},
    ],
    "a reset without a step": [
        {"type": "data-void", "data": 1},
        {"type": "reset-step"},
        {"type": "reset-step"},
    ],
    "a delta for what was taken back": [
        {"type": "text-start", "id": "t"},
        {"type": "reset-step"},
        {"type": "text-delta", "id": "t", "delta": "x"},
    ],
}


@pytest.mark.parametrize("chunks", NEW.values(), ids=NEW.keys())
def test_a_stream_of_newer_chunks_builds_the_same_message(
    newest: Oracle, chunks: list[Chunk]
) -> None:
    agree(newest, chunks)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(chunks, id=name)
        for name, chunks in WRITTEN.items()
        if "end of its step" not in name
    ],
)
def test_a_stream_of_older_chunks_builds_the_same_message(
    newest: Oracle, chunks: list[Chunk]
) -> None:
    agree(newest, chunks)


IDS = st.sampled_from(["a", "b"])
NEWER = st.one_of(
    CHUNKS.filter(lambda made: made["type"] != "tool-input-error"),
    chunk("custom", META, kind=st.just("p.x")),
    chunk("reasoning-file", META, url=st.just("data:,x"), mediaType=st.just("image/png")),
    chunk("steering-message", id=IDS, parts=st.just([])),
    chunk("tool-approval-response", META, approvalId=IDS, approved=st.booleans()),
    chunk("reset-step"),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chunks=st.lists(NEWER, max_size=14))
def test_any_stream_of_them_builds_the_same_message_or_is_refused_by_both(
    newest: Oracle, chunks: list[Chunk]
) -> None:
    chunks = [START, *_spelled(_begun(chunks)), SHOW]
    message, refused = ours(chunks)
    theirs, theirs_refused = newest.reduce(chunks)
    assert refused == theirs_refused
    if not refused:
        assert message == theirs
