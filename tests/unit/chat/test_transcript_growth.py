"""What a turn stores of the history: what changed in it, and never less (design §5, B-9)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.chat.transcript import Transcript, document_of
from everturn.chat.ui_messages import UIMessage
from everturn.clock import Clock
from everturn.errors import Fenced, Unavailable
from everturn.protocol import history
from everturn.protocol.records import InputCursor
from everturn.rules import limits
from everturn.tasks.runtime import StoredSnapshot
from everturn.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


class Store:
    """The three calls of a runtime that a transcript makes, and what they carried."""

    def __init__(self, data: bytes | None = None) -> None:
        self.clock: Clock = VirtualClock()
        self.data = data
        self.patched_bytes = 0
        self.loads = 0
        self.patches: list[bytes] = []
        self.wholes: list[bytes] = []
        #: Raised by the next write, before it is carried out or after.
        self.refuses: Exception | None = None
        self.loses_answer: Exception | None = None

    async def load_snapshot(self) -> StoredSnapshot:
        self.loads += 1
        return StoredSnapshot(self.data, self.patched_bytes)

    async def save_snapshot(self, data: bytes) -> None:
        self._before()
        self.wholes.append(data)
        self.data, self.patched_bytes = data, 0
        self._after()

    async def patch_snapshot(self, data: bytes) -> None:
        self._before()
        self.patches.append(data)
        self.data = history.compose(self.data, [data])
        self.patched_bytes += len(data)
        self._after()

    def _before(self) -> None:
        error, self.refuses = self.refuses, None
        if error is not None:
            raise error

    def _after(self) -> None:
        error, self.loses_answer = self.loses_answer, None
        if error is not None:
            raise error

    @property
    def texts(self) -> list[str]:
        assert self.data is not None
        return [m["parts"][0]["text"] for m in msgspec.json.decode(self.data)["messages"]]


def message(text: str) -> UIMessage:
    return UIMessage(id=f"m-{text[:20]}", role="user", parts=[{"type": "text", "text": text}])


async def save(transcript: Transcript, messages: list[Any], seq_num: int = 0) -> bool:
    return await transcript.save(messages, last_out=seq_num, cursor=InputCursor(seq_num))


def transcript_of(store: Any) -> Transcript:
    return Transcript(store)


async def test_a_turn_of_a_long_conversation_stores_what_it_added() -> None:
    messages = [message(str(n)) for n in range(5_000)]
    whole = msgspec.json.encode({"version": 1, "messages": messages})
    store = Store(whole)
    transcript = transcript_of(store)
    await transcript.load()
    await save(transcript, [*messages, message("new")], 7)

    assert store.wholes == []
    assert msgspec.json.decode(store.patches[0])["keep"] == 5_000
    assert len(store.patches[0]) < 300
    assert store.texts[-2:] == ["4999", "new"]


async def test_what_an_author_changed_in_place_is_stored() -> None:
    store = Store()
    transcript = transcript_of(store)
    messages = [message(text) for text in "abc"]
    await save(transcript, messages)
    messages[1]["parts"][0]["text"] = "changed"
    await save(transcript, messages)

    assert store.texts == ["a", "changed", "c"]


async def test_cursors_are_stored_when_no_message_changed() -> None:
    store = Store()
    transcript = transcript_of(store)
    await save(transcript, [message("a")], 3)
    await save(transcript, [message("a")], 9)

    assert store.data is not None
    stored = msgspec.json.decode(store.data)
    assert (stored["lastOutEventId"], stored["lastInEventId"]) == ("9", "9")


async def test_all_writing_is_in_proportion_to_what_was_said() -> None:
    store = Store()
    transcript = transcript_of(store)
    messages: list[UIMessage] = []
    for n in range(800):
        messages.append(message(f"{n} " + "x" * 1_600))
        await save(transcript, messages, n)

    said = len(msgspec.json.encode(messages))
    written = sum(map(len, store.patches)) + sum(map(len, store.wholes))
    assert written < 4 * said
    assert 2 <= len(store.wholes) < 10
    assert store.texts == [m["parts"][0]["text"] for m in messages]


async def test_runs_that_last_one_turn_each_write_no_more_than_one_run() -> None:
    """A successor counts on from the patches it finds."""
    store = Store()
    messages: list[UIMessage] = []
    for n in range(300):
        messages.append(message(f"{n} " + "x" * 1_600))
        transcript = transcript_of(store)
        await transcript.load()
        await save(transcript, messages, n)

    assert 2 <= len(store.wholes) < 10
    assert store.patched_bytes <= len(store.wholes[-1]) + limits.HISTORY_PATCH_BYTES_MAX


async def test_what_is_too_large_for_a_record_is_stored_with_the_whole() -> None:
    store = Store()
    transcript = transcript_of(store)
    await save(transcript, [message("x" * limits.HISTORY_PATCH_BYTES_MAX)])

    assert (len(store.patches), len(store.wholes)) == (0, 1)


@pytest.mark.parametrize("fault", ["refuses", "loses_answer"])
async def test_after_an_error_nothing_is_added_to_what_nobody_knows(fault: str) -> None:
    store = Store()
    transcript = transcript_of(store)
    await save(transcript, [message("a")])
    setattr(store, fault, Unavailable("gone"))

    assert not await save(transcript, [message("a"), message("b")])
    assert await save(transcript, [message("A"), message("b"), message("c")])
    assert store.loads == 1
    assert store.texts == ["A", "b", "c"]


async def test_a_run_that_lost_its_session_hears_of_it() -> None:
    store = Store()
    store.refuses = Fenced("another run")

    with pytest.raises(Fenced):
        await save(transcript_of(store), [message("a")])


async def test_what_is_no_message_in_a_stored_list_does_not_shift_the_others() -> None:
    store = Store(
        msgspec.json.encode({"version": 1, "messages": [7, message("a"), None, message("b")]})
    )
    transcript = transcript_of(store)
    found = await transcript.load()
    assert found is not None
    await save(transcript, [*found.messages, message("c")])

    assert store.texts == ["a", "b", "c"]


async def test_a_document_of_another_version_is_replaced() -> None:
    store = Store(msgspec.json.encode({"version": 2, "messages": [message("a")]}))
    transcript = transcript_of(store)
    assert await transcript.load() is None
    await save(transcript, [message("b")])

    assert store.texts == ["b"]


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "c", "d" * 70_000]), max_size=5),
            st.sampled_from(["", "", "refuses", "loses_answer", "successor"]),
        ),
        max_size=10,
    )
)
async def test_what_is_stored_is_what_was_saved_last(steps: list[tuple[list[str], str]]) -> None:
    store = Store()
    transcript = transcript_of(store)
    expected: list[str] | None = None
    for texts, event in steps:
        if event == "successor":
            transcript = transcript_of(store)
            await transcript.load()
        elif event:
            setattr(store, event, Unavailable("gone"))
        if await save(transcript, [message(text) for text in texts]):
            expected = texts
            assert store.texts == expected


def test_a_document_names_its_members_as_the_wire_does() -> None:
    from everturn.chat.transcript import Snapshot

    made = document_of(Snapshot([], 4, InputCursor(2, frozenset({5, 4})), 9))

    assert made == {
        "version": 1,
        "savedAt": 9,
        "messages": [],
        "lastOutEventId": "4",
        "lastInEventId": "2",
        "lastInDecided": [4, 5],
    }
