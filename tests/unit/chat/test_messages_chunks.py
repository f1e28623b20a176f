"""Chunks are checked before they are written (R-148) and made from text and messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from everturn.chat.chunks import check_chunk, text_chunks
from everturn.chat.reducer import MessageReducer
from everturn.errors import ChatChunkTooLargeError, UIMessageStreamError
from everturn.ids import RandomIds
from everturn.protocol.records import data_body
from everturn.rules import limits

pytestmark = pytest.mark.anyio


def sized(part_id: str, size: int) -> dict[str, Any]:
    """A chunk whose record body has exactly `size` bytes."""
    chunk = {"type": "data-x", "data": ""}
    base = len(data_body(msgspec.json.encode(chunk), part_id))
    return {**chunk, "data": "x" * (size - base)}


def test_the_largest_chunk_fits_and_one_byte_more_is_refused_with_type_size_and_limit() -> None:
    body = check_chunk(sized("1-7", limits.CHUNK_BYTES_MAX), part_id="1-7")
    assert len(data_body(body, "1-7")) == limits.CHUNK_BYTES_MAX

    with pytest.raises(ChatChunkTooLargeError) as refused:
        check_chunk(sized("1-7", limits.CHUNK_BYTES_MAX + 1), part_id="1-7")
    assert refused.value.chunk_type == "data-x"
    assert refused.value.chunk_size == limits.CHUNK_BYTES_MAX + 1
    assert refused.value.max_size == limits.CHUNK_BYTES_MAX == 1_047_552


@pytest.mark.parametrize("kind", ["data-restarted", "trigger:turn-complete"])
def test_authors_cannot_write_the_marks_of_the_runtime(kind: str) -> None:
    with pytest.raises(UIMessageStreamError, match="runtime only"):
        check_chunk({"type": kind, "data": {}})
    assert check_chunk({"type": kind, "data": {}}, ours=True)


def test_a_chunk_that_is_no_json_is_refused_by_name() -> None:
    with pytest.raises(UIMessageStreamError, match="data-x"):
        check_chunk({"type": "data-x", "data": object()})


def test_a_malformed_chunk_is_refused() -> None:
    with pytest.raises(UIMessageStreamError, match="`delta`"):
        check_chunk({"type": "text-delta", "id": "t"})


async def words() -> AsyncIterator[str]:
    for word in ("hello", "", " world"):
        yield word


@pytest.mark.parametrize("source", [words, lambda: ["hello", "", " world"], lambda: "hello world"])
async def test_plain_text_becomes_a_whole_answer(source: Any) -> None:
    reducer = MessageReducer()
    async for chunk in text_chunks(source(), RandomIds(seed=1), message_id="m"):
        check_chunk(chunk)
        reducer.feed(chunk)

    assert reducer.message == {
        "id": "m",
        "role": "assistant",
        "parts": [
            {"type": "step-start"},
            {"type": "text", "text": "hello world", "state": "done"},
        ],
    }
    assert reducer.finish_reason == "stop"
