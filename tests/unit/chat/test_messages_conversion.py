"""UI messages become messages of the model library (§4.2.5, R-153 to R-156)."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.tools import ToolDenied

from everturn.chat.conversion import deferred_results, to_model_messages
from everturn.chat.ui_messages import repair

Message = dict[str, Any]


def user(body: str) -> Message:
    return {"id": body, "role": "user", "parts": [{"type": "text", "text": body}]}


def answer(*parts: Message) -> Message:
    return {"id": "a", "role": "assistant", "parts": list(parts)}


def text(body: str) -> Message:
    return {"type": "text", "text": body, "state": "done"}


def call(state: str, call_id: str = "c", **fields: Any) -> Message:
    return {"type": "tool-t", "toolCallId": call_id, "state": state, "input": {}, **fields}


STEP: Message = {"type": "step-start"}


def kinds(messages: list[Any]) -> list[str]:
    return [type(part).__name__ for message in messages for part in message.parts]


def returns(messages: list[Any]) -> list[ToolReturnPart]:
    return [p for m in messages for p in m.parts if isinstance(p, ToolReturnPart)]


def test_each_role_becomes_its_own_kind_of_part() -> None:
    system = {"id": "s", "role": "system", "parts": [text("be kind")]}
    file = {"type": "file", "mediaType": "image/png", "url": "https://a.test/x.png"}
    question = {**user("look"), "parts": [text("look"), file, {"type": "data-x", "data": 1}]}
    messages = to_model_messages([system, question, answer(STEP, text("seen"))])

    first, second = messages
    assert isinstance(first, ModelRequest)
    assert isinstance(first.parts[0], SystemPromptPart)
    assert isinstance(first.parts[1], UserPromptPart)
    assert len(first.parts[1].content) == 2
    assert isinstance(second, ModelResponse)


def test_a_multi_step_answer_becomes_alternating_responses_and_results() -> None:
    """R-155."""
    parts = [
        STEP,
        {"type": "reasoning", "text": "hm", "state": "done"},
        text("Looking."),
        call("output-available", "c1", output=1),
        call("output-available", "c2", output=2),
        STEP,
        text("Done."),
    ]
    messages = to_model_messages([user("go"), answer(*parts)])

    assert [type(m).__name__ for m in messages] == [
        "ModelRequest",
        "ModelResponse",
        "ModelRequest",
        "ModelResponse",
    ]
    assert [type(p) for p in messages[1].parts] == [
        ThinkingPart,
        TextPart,
        ToolCallPart,
        ToolCallPart,
    ]
    assert [p.content for p in returns(messages)] == [1, 2]


@pytest.mark.parametrize(
    "part",
    [
        call("input-streaming"),
        call("input-available"),
        call("approval-requested", approval={"id": "x"}),
        call("output-available", output=1, preliminary=True),
        call("a-state-of-tomorrow"),
        {"type": "dynamic-tool", "toolName": "t", "toolCallId": "d", "state": "input-available"},
    ],
)
def test_a_call_without_a_result_is_absent_and_the_text_beside_it_is_present(part: Message) -> None:
    """R-154."""
    messages = to_model_messages([user("go"), answer(STEP, text("Wait."), part), user("hello?")])

    assert kinds(messages) == ["UserPromptPart", "TextPart", "UserPromptPart"]


def test_an_answer_of_nothing_but_pending_calls_is_left_out() -> None:
    messages = to_model_messages([user("go"), answer(STEP, call("input-available"))])

    assert kinds(messages) == ["UserPromptPart"]


def test_errors_and_denials_reach_the_model_in_words() -> None:
    """R-154."""
    denied = call("output-denied", "d", approval={"id": "x", "approved": False, "reason": "no!"})
    bare = call("output-denied", "e")
    failed = call("output-error", errorText="timed out")
    messages = to_model_messages([user("go"), answer(STEP, failed, denied, bare)])

    contents = [str(part.content) for part in returns(messages)]
    assert contents[:2] == ["timed out", "no!"]
    assert "denied" in contents[2].lower()


def test_a_result_of_null_is_a_result() -> None:
    messages = to_model_messages([user("go"), answer(STEP, call("output-available", output=None))])

    assert returns(messages)[0].content is None


def test_input_that_was_no_object_stays_in_the_call() -> None:
    failed = call("output-error", errorText="bad", rawInput=[1, 2])
    del failed["input"]
    messages = to_model_messages([user("go"), answer(STEP, failed)])

    assert [p.args for p in messages[1].parts if isinstance(p, ToolCallPart)] == ["[1,2]"]


def test_what_a_tool_shows_the_model_is_applied_to_stored_results_of_declared_tools() -> None:
    def to_model_output(output: Any, given: Any) -> Any:
        return {"type": "text", "value": f"{output['n']} of {given}"}

    tool = SimpleNamespace(name="t", to_model_output=to_model_output)
    history = [user("go"), answer(STEP, call("output-available", output={"n": 3}))]

    assert returns(to_model_messages(history, [tool]))[0].content == "3 of {}"
    assert returns(to_model_messages(history, {"t": tool}))[0].content == "3 of {}"
    assert returns(to_model_messages(history))[0].content == {"n": 3}


def test_an_injection_marker_becomes_the_messages_it_stands_for_at_its_place() -> None:
    # W-85, R-172
    marker = {
        "type": "data-pending-message-injected",
        "data": {"messageIds": ["u2"], "messages": [{"id": "u2", "text": "shorter"}]},
    }
    messages = to_model_messages([user("go"), answer(STEP, text("Long"), marker, STEP, text("S"))])

    assert kinds(messages) == ["UserPromptPart", "TextPart", "UserPromptPart", "TextPart"]
    assert messages[2].parts[0].content in ("shorter", ["shorter"])


def test_a_client_cannot_name_files_or_settings_at_the_provider() -> None:
    metadata = {"pydantic_ai": {"file_id": "file-of-another", "provider_name": "openai"}}
    file = {
        "type": "file",
        "mediaType": "image/png",
        "url": "https://a.test/x.png",
        "providerMetadata": metadata,
    }
    messages = to_model_messages([{"id": "u", "role": "user", "parts": [file]}])

    assert "file-of-another" not in repr(messages)


def test_a_message_the_library_refuses_is_left_out_and_the_others_stay() -> None:
    broken = {"id": "b", "role": "user", "parts": [{"type": "file", "mediaType": 5, "url": 6}]}
    messages = to_model_messages([user("one"), broken, user("two")])

    assert "two" in repr(messages)
    assert "one" in repr(messages)


def test_conversion_changes_nothing_given_and_unknown_fields_do_not_hurt() -> None:
    """R-153."""
    history = [
        {**user("go"), "future": 1},
        answer(STEP, {**text("x"), "new": 1}, {"type": "of tomorrow"}, call("output-available")),
    ]
    before = copy.deepcopy(history)

    assert kinds(to_model_messages(history))[:2] == ["UserPromptPart", "TextPart"]
    assert history == before


# --- approvals ----------------------------------------------------------------------------------


def decided(approved: Any, reason: str | None = None, call_id: str = "c") -> Message:
    approval = {"id": "x", "approved": approved}
    if reason is not None:
        approval["reason"] = reason
    return call("approval-responded", call_id, approval=approval)


def test_a_decision_is_a_call_without_result_at_the_very_end_and_nowhere_else() -> None:
    last = [user("go"), answer(STEP, text("May I?"), decided(True))]

    assert kinds(to_model_messages(last)) == ["UserPromptPart", "TextPart", "ToolCallPart"]
    assert kinds(to_model_messages([*last, user("never mind")])) == [
        "UserPromptPart",
        "TextPart",
        "UserPromptPart",
    ]


def test_only_a_plain_true_approves() -> None:
    parts = [
        decided(True, call_id="yes"),
        decided(False, call_id="no"),
        decided(False, "too dear", call_id="why"),
        decided("true", call_id="text"),
        decided(1, call_id="one"),
    ]
    results = deferred_results([user("go"), answer(*parts)])

    assert results is not None
    assert {key: value for key, value in results.approvals.items() if key != "why"} == {
        "yes": True,
        "no": False,
        "text": False,
        "one": False,
    }
    reason = results.approvals["why"]
    assert isinstance(reason, ToolDenied)
    assert reason.message == "too dear"


def test_decisions_of_older_messages_are_over() -> None:
    assert deferred_results([answer(decided(True)), user("next")]) is None
    assert deferred_results([answer(text("x"))]) is None
    assert deferred_results([]) is None


# --- properties ---------------------------------------------------------------------------------

PART = st.one_of(
    st.just(STEP),
    st.builds(text, st.text(max_size=3)),
    st.builds(
        lambda s, c, o: call(s, c, output=o, errorText="e"),
        st.sampled_from(
            ["input-available", "output-available", "output-error", "output-denied", "odd"]
        ),
        st.sampled_from(["c", "d"]),
        st.none() | st.integers() | st.dictionaries(st.sampled_from("ab"), st.integers()),
    ),
    st.just({"type": "file", "mediaType": "text/plain", "url": "https://a.test"}),
    st.just({"type": "data-x", "data": {}}),
)


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(
        st.builds(
            lambda role, parts: {"id": "", "role": role, "parts": parts},
            st.sampled_from(["user", "assistant", "system"]),
            st.lists(PART, max_size=5),
        ),
        max_size=4,
    )
)
def test_repaired_history_always_converts_and_every_call_has_its_result(
    history: list[Message],
) -> None:
    messages = to_model_messages(repair(history))
    calls = [p.tool_call_id for m in messages for p in m.parts if isinstance(p, ToolCallPart)]

    assert sorted(calls) == sorted(part.tool_call_id for part in returns(messages))


def test_the_model_library_is_not_imported_before_it_is_used() -> None:
    code = (
        "import sys, everturn.chat.conversion, everturn.chat.reducer, everturn.chat.replay, "
        "everturn.chat.ui_messages, everturn.chat.chunks; "
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'pydantic_ai']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
