"""The union of chunks: what is known is checked, what is not known passes (§4.2.1)."""

from __future__ import annotations

from typing import Any

import pytest

from everturn.protocol.chunks import CHUNKS, chunk_problem, shape_of

VALUES: dict[str, Any] = {
    "str": "x",
    "bool": True,
    "object": {},
    "json": None,
    "encoding": "text",
    "finish": "stop",
}


def whole(kind: str) -> dict[str, Any]:
    shape = CHUNKS[kind]
    fields = {**shape.required, **shape.optional}
    return {"type": kind, **{name: VALUES[wanted] for name, wanted in fields.items()}}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_with_all_its_fields_is_fine(kind: str) -> None:
    assert chunk_problem(whole(kind)) is None


@pytest.mark.parametrize("kind", [kind for kind, shape in CHUNKS.items() if shape.required])
def test_a_chunk_without_a_required_field_is_named(kind: str) -> None:
    for name in CHUNKS[kind].required:
        chunk = whole(kind)
        del chunk[name]
        assert f"`{name}`" in (chunk_problem(chunk) or "")


def test_a_field_of_the_wrong_kind_is_named_and_never_quoted() -> None:
    problem = chunk_problem({"type": "text-delta", "id": "t", "delta": {"secret": 1}})

    assert problem == "`delta` of a 'text-delta' chunk is a string"


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "of-tomorrow", "anything": 1},
        {"type": "data-note", "data": None},
        {"type": "text-end", "id": "t", "new": "field"},
        {"type": "finish"},
    ],
)
def test_what_a_newer_client_may_send_passes(chunk: dict[str, Any]) -> None:
    assert chunk_problem(chunk) is None


@pytest.mark.parametrize(
    "chunk", [None, [], "text", {}, {"type": 1}, {"type": ""}, {"type": "data-x"}]
)
def test_what_is_no_chunk_is_refused(chunk: Any) -> None:
    assert chunk_problem(chunk) is not None


def test_a_finish_reason_is_one_the_browser_knows() -> None:
    assert chunk_problem({"type": "finish", "finishReason": "bored"}) is not None
    assert chunk_problem({"type": "finish", "finishReason": ["stop"]}) is not None


def test_every_data_type_has_the_same_shape() -> None:
    assert shape_of("data-a") is shape_of("data-b")
    assert shape_of("unheard-of") is None
