"""History is merged by id, overlaid with answers only, and repaired when it is loaded (§2.17)."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everturn.chat.ui_messages import (
    UIMessage,
    accumulate,
    clean_aborted_parts,
    find,
    find_by_tool_call,
    merge_by_id,
    new_message_id,
    overlay,
    repair,
    text_of,
    tool_call_ids,
)
from everturn.ids import RandomIds

Message = dict[str, Any]


def user(message_id: str, body: str = "hi") -> Message:
    return {"id": message_id, "role": "user", "parts": [{"type": "text", "text": body}]}


def answer(message_id: str, *parts: Message) -> Message:
    return {"id": message_id, "role": "assistant", "parts": list(parts)}


def call(call_id: str, state: str, **fields: Any) -> Message:
    return {"type": "tool-t", "toolCallId": call_id, "state": state, "input": {}, **fields}


# --- merging by id ------------------------------------------------------------------------------

SOME = st.lists(
    st.builds(lambda i, n: user(i, str(n)), st.sampled_from(["", "a", "b", "c"]), st.integers()),
    max_size=6,
)


def unique(messages: list[Message]) -> list[Message]:
    return merge_by_id([], messages)


def test_a_known_message_is_replaced_in_place_and_others_are_appended_in_order() -> None:
    """R-135."""
    merged = merge_by_id([user("a"), user("b")], [user("c"), user("a", "new"), user("")])

    assert [m["id"] for m in merged] == ["a", "b", "c", ""]
    assert text_of(merged[0]) == "new"


@settings(deadline=None)
@given(a=SOME.map(unique), b=SOME.map(unique))
def test_merging_keeps_the_order_of_the_first_and_lets_the_second_win(
    a: list[Message], b: list[Message]
) -> None:
    """R-135."""
    merged = merge_by_id(a, b)

    assert [m["id"] for m in merged[: len(a)]] == [m["id"] for m in a]
    assert all(message in merged for message in b)
    named = [m["id"] for m in merged if m["id"]]
    assert len(named) == len(set(named))


@settings(deadline=None)
@given(a=SOME.map(unique))
def test_merging_nothing_changes_nothing_and_merging_itself_repeats_only_the_nameless(
    a: list[Message],
) -> None:
    assert merge_by_id(a, []) == a
    named = [m for m in a if m["id"]]
    assert merge_by_id(named, named) == named


@settings(deadline=None)
@given(a=SOME.map(unique), b=SOME.map(unique), c=SOME.map(unique))
def test_merging_is_associative(a: list[Message], b: list[Message], c: list[Message]) -> None:
    assert merge_by_id(merge_by_id(a, b), c) == merge_by_id(a, merge_by_id(b, c))


# --- overlay ------------------------------------------------------------------------------------


def test_an_answer_brings_state_and_output_and_nothing_else() -> None:
    """R-137."""
    stored = answer("m", {"type": "text", "text": "mine"}, call("c", "input-available"))
    incoming = answer(
        "m",
        {"type": "text", "text": "forged"},
        call("c", "output-available", output=42, input={"forged": 1}, title="forged"),
    )

    assert overlay(stored, incoming) == answer(
        "m", {"type": "text", "text": "mine"}, call("c", "output-available", output=42)
    )


@pytest.mark.parametrize("state", ["output-available", "output-error", "output-denied"])
def test_a_call_that_has_its_result_never_changes(state: str) -> None:
    """R-137."""
    stored = answer("m", call("c", state, output=1))

    assert overlay(stored, answer("m", call("c", "output-available", output=2))) is stored


@pytest.mark.parametrize("state", ["input-available", "input-streaming", "approval-requested"])
def test_a_client_cannot_put_a_call_into_a_state_that_is_no_answer(state: str) -> None:
    """R-137."""
    stored = answer("m", call("c", "approval-requested", approval={"id": "a"}))

    assert overlay(stored, answer("m", call("c", state))) is stored


def test_a_decision_brings_its_approval() -> None:
    stored = answer("m", call("c", "approval-requested", approval={"id": "a"}))
    decision = {"id": "a", "approved": False, "reason": "no"}
    result = overlay(stored, answer("m", call("c", "approval-responded", approval=decision)))

    assert result["parts"][0]["approval"] == decision
    assert result["parts"][0]["state"] == "approval-responded"


def test_a_decision_nobody_asked_for_changes_nothing() -> None:
    stored = answer("m", call("c", "input-available"))
    decision = {"id": "a", "approved": True}

    assert (
        overlay(stored, answer("m", call("c", "approval-responded", approval=decision))) is stored
    )


STATES = st.sampled_from(
    ["input-available", "approval-requested", "approval-responded", "output-available"]
)
ANSWERS = st.lists(
    st.builds(call, st.sampled_from(["a", "b"]), STATES, output=st.integers(0, 3)), max_size=4
).map(lambda parts: answer("m", *parts))


@settings(deadline=None)
@given(stored=ANSWERS, incoming=ANSWERS)
def test_overlaying_twice_is_overlaying_once_and_changes_nothing_given(
    stored: Message, incoming: Message
) -> None:
    before = copy.deepcopy((stored, incoming))
    once = overlay(stored, incoming)

    assert overlay(once, incoming) == once
    assert (stored, incoming) == before
    assert [p["toolCallId"] for p in once["parts"]] == [p["toolCallId"] for p in stored["parts"]]


# --- accumulating -------------------------------------------------------------------------------


def test_sending_a_known_user_message_again_does_not_double_it() -> None:
    chain = [user("u", "first")]

    assert accumulate(chain, user("u", "edited"), "submit-message") == chain


def test_an_answer_with_an_unknown_id_lands_on_the_message_of_its_call() -> None:
    """R-138."""
    chain = [user("u"), answer("m", call("c", "input-available"))]
    result = accumulate(
        chain, answer("regenerated", call("c", "output-available", output=1)), "submit-message"
    )

    assert [m["id"] for m in result] == ["u", "m"]
    assert result[1]["parts"][0]["state"] == "output-available"


def test_regenerating_drops_the_trailing_answer() -> None:
    chain = [user("u"), answer("m"), answer("n")]

    assert accumulate(chain, None, "regenerate-message") == [user("u")]


@pytest.mark.parametrize("trigger", ["action", "preload", "close", ""])
def test_other_triggers_leave_history_alone(trigger: str) -> None:
    assert accumulate([user("u")], user("v"), trigger) == [user("u")]


# --- cleaning -----------------------------------------------------------------------------------


def test_a_cut_off_message_keeps_its_text_and_loses_calls_that_never_ran() -> None:
    cut = answer(
        "m",
        {"type": "reasoning", "text": "hm", "state": "streaming"},
        {"type": "text", "text": "half", "state": "streaming"},
        call("a", "input-streaming"),
        call("b", "input-available"),
        call("c", "approval-requested", approval={"id": "x"}),
        call("d", "output-available", output=1),
        {"type": "data-x", "data": 1},
    )
    cleaned = clean_aborted_parts(cut)

    assert [part.get("toolCallId") for part in cleaned["parts"]] == [None, None, "c", "d", None]
    assert {part.get("state") for part in cleaned["parts"][:2]} == {"done"}


# --- repair -------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [None, 7, "text", b"bytes", {}, [None, 1, "x", [], {}]])
def test_what_is_no_history_is_an_empty_one(history: Any) -> None:
    assert repair(history) == []


def test_repair_mends_what_a_crash_left_and_keeps_what_waits_for_an_answer() -> None:
    broken = [
        user("u"),
        answer(
            "m",
            {"type": "text", "text": "half", "state": "streaming"},
            call("half-written", "input-streaming"),
            {"type": "tool-t", "state": "output-available", "output": "of no call"},
            call("c", "input-available"),
            call("c", "output-available", output=1),
            call("waiting", "input-available"),
            {"no": "type"},
            {"type": "a-part-of-tomorrow", "x": [1]},
        ),
        {"id": "x", "role": "tool", "parts": []},
        user("u", "twice"),
    ]
    mended = repair(broken)

    assert [m["id"] for m in mended] == ["u", "m"]
    assert text_of(mended[0]) == "twice"
    assert mended[1]["parts"] == [
        {"type": "text", "text": "half", "state": "done"},
        call("c", "output-available", output=1),
        call("waiting", "input-available"),
        {"type": "a-part-of-tomorrow", "x": [1]},
    ]


def test_a_message_in_an_older_form_keeps_its_text() -> None:
    mended = repair([{"role": "user", "content": "hi"}])

    assert mended[0]["parts"] == [{"type": "text", "text": "hi"}]


JUNK = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "text", "tool-t", "user", "input-streaming"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "role", "parts", "type", "text", "state", "toolCallId", "zz"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
MESSAGES = st.lists(
    st.one_of(
        JUNK,
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "parts": st.lists(JUNK, max_size=3)},
            optional={"id": st.sampled_from(["a", "b", "", 7])},
        ),
        ANSWERS,
    ),
    max_size=5,
)


@settings(deadline=None)
@given(history=MESSAGES)
def test_repair_never_fails_and_doing_it_twice_changes_nothing_more(history: Any) -> None:
    before = copy.deepcopy(history)
    mended = repair(history)

    assert repair(mended) == mended
    assert history == before


@settings(deadline=None)
@given(history=MESSAGES)
def test_repaired_history_can_be_used_by_everything_else(history: Any) -> None:
    for message in repair(history):
        text_of(message)
        tool_call_ids(message)
        clean_aborted_parts(message)
        overlay(message, message)


# --- looking ------------------------------------------------------------------------------------


def test_messages_are_found_by_id_and_by_tool_call() -> None:
    chain = [answer("m", call("c", "input-available")), answer("n", call("d", "input-available"))]

    assert find(chain, "m") is chain[0]
    assert find(chain, "") is None
    assert find_by_tool_call(chain, ["d"]) is chain[1]
    assert find_by_tool_call(chain, []) is None


def test_new_ids_come_from_the_given_source() -> None:
    assert new_message_id(RandomIds(seed=1)) == new_message_id(RandomIds(seed=1))


# --- UIMessage ----------------------------------------------------------------------------------


def test_a_message_is_a_dict_that_also_has_attributes() -> None:
    message = UIMessage(answer("m", call("c", "input-available"), {"type": "text", "text": "hi"}))

    assert message.id == "m"
    assert message.parts[0].tool_call_id == message["parts"][0]["toolCallId"] == "c"
    assert message.text == message.parts[1].text == "hi"
    message.parts[0].state = "output-available"
    message.parts[0].tool_call_id = "d"
    message.metadata = {"a": {"b": 1}}

    assert message["parts"][0]["state"] == "output-available"
    assert message["parts"][0]["toolCallId"] == "d"
    assert message.metadata.a.b == 1
    assert isinstance(message, dict)


def test_a_message_encodes_as_the_json_it_came_from() -> None:
    plain = answer("m", call("c", "output-available", output={"deep": [1, None]}))

    assert msgspec.json.decode(msgspec.json.encode(UIMessage(plain))) == plain


def test_a_missing_attribute_says_what_there_is() -> None:
    message = UIMessage(user("u"))

    with pytest.raises(AttributeError, match="id, parts, role"):
        _ = message.nothing
    assert getattr(message, "metadata", None) is None
    del message.id
    assert "id" not in message
