"""The document and its patches: whatever a conversation does, the two say the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import ProtocolError
from everturn.protocol import history


def document(*texts: str, **members: Any) -> bytes:
    messages = [{"id": text} for text in texts]
    return msgspec.json.encode({"version": 1, "savedAt": 7, "messages": messages, **members})


def patch(keep: int, *texts: str, **members: Any) -> bytes:
    return msgspec.json.encode(
        history.patch(keep, msgspec.json.decode(document(*texts, **members)))
    )


def texts_of(data: bytes | None) -> list[str]:
    assert data is not None
    return [message["id"] for message in msgspec.json.decode(data)["messages"]]


def test_nothing_stored_and_nothing_added_is_nothing() -> None:
    assert history.compose(None, []) is None


def test_a_document_without_patches_is_handed_out_as_it_was_stored() -> None:
    stored = b'{"messages": [ ], "version": 1 , "other": true}'

    assert history.compose(stored, []) is stored


def test_patches_alone_make_a_document() -> None:
    assert texts_of(history.compose(None, [patch(0, "a"), patch(1, "b", "c")])) == ["a", "b", "c"]


def test_the_newest_members_count() -> None:
    made = history.compose(
        document("a", lastOutEventId="3", lastInDecided=[9]), [patch(1, lastOutEventId="8")]
    )

    assert made is not None
    assert msgspec.json.decode(made) == {
        "version": 1,
        "savedAt": 7,
        "messages": [{"id": "a"}],
        "lastOutEventId": "8",
    }


@pytest.mark.parametrize("stored", [b"", b"no", b"[]", b'{"version":2,"messages":[{}]}'])
def test_what_is_no_document_counts_as_an_empty_one(stored: bytes) -> None:
    assert texts_of(history.compose(stored, [patch(0, "a")])) == ["a"]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"keep":1}', b'{"keep":"1","messages":[]}', b"\xff"]
)
def test_what_is_no_patch_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        history.compose(document("a"), [data])


def test_a_patch_may_be_applied_twice() -> None:
    added = patch(1, "b", "c")

    assert texts_of(history.compose(document("a"), [added, added])) == ["a", "b", "c"]


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=8))
def test_patches_lead_to_every_history_from_the_one_before(histories: list[list[str]]) -> None:
    stored: list[str] = []
    patches = []
    for wanted in histories:
        keep = 0
        while keep < min(len(stored), len(wanted)) and stored[keep] == wanted[keep]:
            keep += 1
        patches.append(patch(keep, *wanted[keep:]))
        stored = wanted
        assert texts_of(history.compose(None, patches)) == wanted
