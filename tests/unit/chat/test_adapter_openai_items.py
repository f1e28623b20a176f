"""History as input of OpenAI's responses interface (§4.2.5)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from everturn.chat.adapters.openai_items import DENIED, to_items


def message(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": role[0], "role": role, "parts": list(parts)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def call(id: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"type": "tool-look", "toolCallId": id, "state": state, "input": {"n": 1}, **fields}


STEP = {"type": "step-start"}


def test_people_say_text_images_and_files() -> None:
    items = to_items(
        [
            message("system", text("Be brief.")),
            message(
                "user",
                text("look"),
                {"type": "file", "mediaType": "image/png", "url": "https://x.test/a.png"},
                {"type": "file", "mediaType": "text/plain", "url": "https://x.test/a.txt"},
                {
                    "type": "file",
                    "mediaType": "text/plain",
                    "url": "data:text/plain;base64,YQ==",
                    "filename": "a.txt",
                },
            ),
        ]
    )

    assert items[0] == {
        "role": "system",
        "content": [{"type": "input_text", "text": "Be brief."}],
    }
    assert items[1]["content"] == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "https://x.test/a.png", "detail": "auto"},
        {"type": "input_file", "file_url": "https://x.test/a.txt"},
        {"type": "input_file", "file_data": "data:text/plain;base64,YQ==", "filename": "a.txt"},
    ]


def test_the_calls_of_a_step_come_before_their_results_and_steps_in_order() -> None:
    items = to_items(
        [
            message(
                "assistant",
                STEP,
                text("Let me look."),
                call("1", "output-available", output={"a": 1}),
                call("2", "output-error", errorText="broke"),
                STEP,
                {"type": "reasoning", "text": "hm"},
                text("Done."),
            )
        ]
    )
    kinds = [item.get("type") or item["role"] for item in items]

    assert kinds == [
        "assistant",
        *["function_call"] * 2,
        *["function_call_output"] * 2,
        "assistant",
    ]
    assert items[1] == {
        "type": "function_call",
        "call_id": "1",
        "name": "look",
        "arguments": '{"n": 1}',
    }
    assert [item["output"] for item in items[3:5]] == ['{"a": 1}', "broke"]


def test_refusals_are_said_and_calls_nobody_answered_are_left_out() -> None:
    items = to_items(
        [
            message(
                "assistant",
                call("1", "output-denied", approval={"id": "1", "approved": False}),
                call("2", "output-denied", approval={"id": "2", "approved": False, "reason": "no"}),
                call("3", "approval-requested", approval={"id": "3"}),
                call("4", "input-available"),
                call("5", "output-available", output="half", preliminary=True),
                call("6", "approval-responded", approval={"id": "6", "approved": True}),
            )
        ]
    )

    assert [item["call_id"] for item in items] == ["1", "2", "1", "2"]
    assert [item["output"] for item in items[2:]] == [DENIED, "no"]


def test_what_joined_an_answer_is_said_at_its_place() -> None:
    joined = {"type": "data-pending-message-injected", "data": {"uiMessages": []}}
    joined["data"]["uiMessages"] = [message("user", text("and me"))]  # type: ignore[index]  # ours
    items = to_items([message("assistant", text("one"), joined, text("two"))])

    assert [item["role"] for item in items] == ["assistant", "user", "assistant"]


def test_stored_results_pass_through_what_the_tool_makes_of_them_for_a_model() -> None:
    tool = SimpleNamespace(name="look", to_model_output=lambda output: f"{len(output)} rows")
    items = to_items([message("assistant", call("1", "output-available", output=[1, 2]))], [tool])

    assert items[-1]["output"] == "2 rows"
