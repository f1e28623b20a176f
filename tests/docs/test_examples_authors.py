"""The examples for authors, tested as their authors would: in the harness, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_apps import load, user
from pydantic_ai.messages import ModelRequest

from everturn import chat
from everturn.chat.policy import REJECTED
from everturn.testing import Call, mock_chat_agent, scripted_model

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERTURN_OFFLINE_DELAY_MS", "0")


async def test_parts_are_shown_as_they_come_and_kept_where_they_are_not_transient() -> None:
    example = load("response_parts")
    async with mock_chat_agent(example.stations, mode="submit-message") as h:
        turn = await h.send_message("how is the weather?")
        await h.settled()
        snapshot = await h.get_snapshot()
    shown = [chunk["type"] for chunk in turn.chunks]
    assert shown[0] == "data-status"
    assert shown.count("data-progress") == 3
    assert shown[-1] == "data-suggestions"
    assert turn.text == "It is 21 degrees, and the sky is clear."
    assert snapshot is not None
    kept = snapshot["messages"][-1]
    assert [part["type"] for part in kept["parts"] if part["type"] != "step-start"] == [
        "source-url", "text", "data-progress", "data-suggestions",
    ]  # fmt: skip
    assert [p["data"] for p in kept["parts"] if p["type"] == "data-progress"] == [{"percent": 100}]
    assert kept["metadata"] == {"station": "Oslo", "finished": True}


async def test_what_was_found_out_in_the_background_reaches_the_model_and_nobody_else() -> None:
    example = load("background_work")
    model = scripted_model(["I see.", "Here is 20 EUR."])
    with example.helper.override(model=model):
        async with mock_chat_agent(example.attentive, client_data={"name": "Ada"}) as h:
            await h.send_message("I want a refund")
            await h.settled()
            await h.send_message("well?")
            await h.settled()
            snapshot = await h.get_snapshot()
    told = str(model.requests[1][-1].parts[-1].content)
    assert "Ada asked for money back 1 times. Be generous." in told
    assert "generous" not in json.dumps(snapshot)
    assert example.STATISTICS == ["test-chat", "test-chat"]


async def test_a_newer_question_interrupts_the_answer_to_the_one_before() -> None:
    example = load("message_policy")
    async with mock_chat_agent(example.search) as h:
        await h.post_message("ow")
        await h.reached(lambda: h.state == "turn")
        await h.post_message("owls")
        await h.reached(lambda: h.state == "wait")
        first, second = await h.turns()
    assert second.text == "All about owls, page after page after page. "
    assert first.text != "All about ow, page after page after page. "


async def test_a_second_booking_is_refused_visibly_and_the_first_is_made() -> None:
    example = load("message_policy")
    async with mock_chat_agent(example.booking) as h:
        await h.post_message("table for two")
        await h.reached(lambda: h.state == "turn")
        await h.post_message("table for nine")
        await h.reached(lambda: h.state == "wait")
        first, second = await h.turns()
    assert first.text == "Booked: table for two. "
    assert (second.text, second.errors) == ("", [REJECTED])


async def test_an_edit_is_answered_and_undone_once_however_often_it_is_asked_for() -> None:
    example = load("history_actions")
    lengths: list[int] = []
    example.editable.on_turn_complete(lambda event: lengths.append(len(event.ui_messages)))
    async with mock_chat_agent(example.editable) as h:
        await h.send_message(user("hullo", "u1"))
        edit = {"type": "edit", "message_id": "u1", "text": "hello"}
        turn = await h.send_action(edit)
        assert "'hello'" in turn.text
        undo = {"type": "undo", "message_id": "u1"}
        await h.send_action(undo)
        await h.send_action(undo)
        answer = await h.send_message("who are you?")
        await h.settled()
    assert "turn 1" in answer.text
    assert lengths == [2, 2]


async def test_an_action_that_is_none_is_an_error_the_client_sees() -> None:
    example = load("history_actions")
    async with mock_chat_agent(example.editable) as h:
        turn = await h.send_action({"type": "explode"})
    assert len(turn.errors) == 1
    assert "explode" not in turn.errors[0].split(":")[0]


async def test_the_model_is_told_of_the_shop_and_reads_a_skill_when_it_needs_it() -> None:
    example = load("prompts_and_skills")
    model = scripted_model(
        [
            [Call("loadSkill", {"name": "refunds"})],
            [Call("readFile", {"skill": "refunds", "path": "limits.txt"})],
            "You get your 50 EUR back.",
        ]
    )
    client = {"shop": "Owl & Sons", "is_regular": True}
    with example.clerk_model.override(model=model):
        async with mock_chat_agent(example.clerk, client_data=client) as h:
            turn = await h.send_message("50 EUR back, please")
    assert turn.text == "You get your 50 EUR back."
    request = model.requests[0][-1]
    assert isinstance(request, ModelRequest)
    told = request.instructions or ""
    assert told.startswith("You are a clerk of Owl & Sons. You know this customer well.")
    assert "refunds: How to handle a customer who wants money back." in told
    outputs = [c["output"] for c in turn.chunks if c["type"] == "tool-output-available"]
    assert outputs[1] == {"content": "The limit is 100 EUR.\n"}
    settings = model.infos[0].model_settings or {}
    assert settings["temperature"] == 0.2


async def test_a_chat_lives_in_the_applications_own_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_DATABASE", str(tmp_path / "chats.sqlite"))
    example = load("own_database")
    async with mock_chat_agent(example.stored) as h:
        await h.send_message("one")
        await h.settled()
        await h.drain()
        turn = await h.send_message("two")  # another run, which finds all of it there
        await h.settled()
        assert turn.text == "That is message 3 of our conversation."
        assert await h.get_snapshot() is None
        stored = example.load("test-chat")
        with example.database() as db:
            [(cursor,)] = db.execute("SELECT last_event FROM chats")
    assert [message["role"] for message in stored] == ["user", "assistant"] * 2
    assert int(cursor) == turn.turn_complete.seq_num


async def test_what_a_tool_answered_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_DATABASE", str(tmp_path / "chats.sqlite"))
    example = load("own_database")
    call = {"type": "tool-pick", "toolCallId": "c1", "state": "input-available", "input": {}}
    asked = {"id": "a1", "role": "assistant", "parts": [call]}
    answered = {**asked, "parts": [{**call, "state": "output-available", "output": "blue"}]}
    example.save("test-chat", [user("hi", "u1"), asked])
    async with mock_chat_agent(example.stored) as h:
        await h.send_message(answered)
        await h.send_message(answered)
    with example.database() as db:
        assert db.execute("SELECT * FROM answers").fetchall() == [("c1", '"blue"')]


async def test_users_see_what_was_written_for_them_and_the_next_message_is_answered() -> None:
    example = load("failures")
    async with mock_chat_agent(example.fragile) as h:
        refused = await h.send_message("my password is 1234")
        broken = await h.send_message("crash, please")
        fine = await h.send_message("how are you?")
        await h.settled()
        history = h.event("on_turn_complete").ui_messages
    assert refused.errors == ["I do not talk about passwords."]
    assert broken.errors == ["Something went wrong. Please try again."]
    assert fine.text == "Let me see. All is well."
    assert example.REPORTED[1] == "KeyError('secret internals')"
    assert [m.text for m in history if m.role == "assistant"] == [
        "Let me see. ", "Let me see. ", "Let me see. All is well.",
    ]  # fmt: skip


async def test_an_interrupted_call_is_looked_at_before_the_chat_goes_on() -> None:
    example = load("recovery")
    call = {"type": "tool-transfer", "toolCallId": "c1", "state": "input-available", "input": {}}
    partial = {"id": "a1", "role": "assistant", "parts": [{"type": "text", "text": "I"}, call]}

    async def recovered(*done: str) -> list[list[str]]:
        example.DONE = set(done)
        lanes: list[list[str]] = []
        example.careful.on_turn_start(
            lambda event: lanes.append([chat.text_of(m) for m in event.ui_messages])
        )
        async with mock_chat_agent(example.careful, mode="continuation", start=False) as h:
            await h.seed_session_in_tail(["transfer 5 EUR"])
            await h.seed_session_out_partial(partial)
            await h.start()
            await h.settled()
            parts = [c for c in await h.all_chunks() if c["type"] == "data-recovered"]
            await h.send_message("and now?")
        assert [part["data"]["text"] for part in parts] == (
            [] if done else ["I was interrupted during: transfer"]
        )
        return lanes

    assert (await recovered())[0] == ["and now?"]
    assert (await recovered("c1"))[0] == ["transfer 5 EUR", "I", "and now?"]


async def test_an_answer_that_comes_days_later_finds_its_question() -> None:
    example = load("ask_a_person")
    async with mock_chat_agent(example.planner) as h:
        await h.send_message("ask_person, please: May I?")
        await h.settled()
        assert h.suspended
        [waiting] = example.OUTBOX
        await h.advance(6 * 86_400)
        await h.crash()  # and the machine was replaced meanwhile
        part = {
            "type": "tool-ask_person",
            "toolCallId": waiting["tool_call_id"],
            "state": "output-available",
            "output": "You may.",
        }
        answer = {"id": waiting["message_id"], "role": "assistant", "parts": [part]}
        turn = await h.send_message(answer)
        await h.settled()
        [_, message] = h.event("on_turn_complete").ui_messages
    assert turn.text.startswith("ask_person says You may.")
    assert message["id"] == waiting["message_id"]
    assert len(example.OUTBOX) == 1
