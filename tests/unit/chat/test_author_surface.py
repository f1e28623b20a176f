"""What authors are offered beyond the turn loop's own tests (chat-agent §3.3, §3.4, §8.3)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelRequest, ModelResponse

from everturn import chat, tasks
from everturn.errors import ChatContextError, ConfigurationError, Fenced
from everturn.tasks import hooks
from everturn.testing import mock_chat_agent, scripted_model

pytestmark = pytest.mark.anyio


def kinds(messages: list[Any]) -> list[str]:
    return [message.kind for message in messages]


class TestEvents:
    async def test_hooks_see_the_history_in_the_form_of_the_model_library_too(self) -> None:
        seen: dict[str, Any] = {}

        @chat.agent("seeing")
        async def seeing(turn: chat.Turn[Any]) -> str:
            return "ok"

        @seeing.on_turn_start
        def start(event: chat.TurnStartEvent) -> None:
            seen["start"] = kinds(event.messages)

        @seeing.on_action
        def act(event: chat.ActionEvent) -> None:
            seen["action"] = kinds(event.messages)

        @seeing.on_turn_complete
        def complete(event: chat.TurnCompleteEvent) -> None:
            seen["complete"] = kinds(event.messages)
            seen["new"] = kinds(event.new_messages)

        @seeing.on_chat_suspend
        def suspend(event: chat.ChatSuspendEvent) -> None:
            seen["suspend"] = kinds(event.messages)

        async with mock_chat_agent(seeing, mode="submit-message") as h:
            await h.send_message("one")
            await h.send_message("two")
            await h.settled()
            await h.send_action({})
            await h.advance(30)
        assert seen == {
            "start": ["request", "response", "request"],
            "complete": ["request", "response", "request", "response"],
            "new": ["request", "response"],
            "action": ["request", "response", "request", "response"],
            "suspend": ["request", "response", "request", "response"],
        }

    async def test_a_failed_turn_added_nothing_for_the_model(self) -> None:
        events: list[chat.TurnCompleteEvent] = []

        @chat.agent("failing", on_turn_complete=events.append)
        async def failing(turn: chat.Turn[Any]) -> str:
            raise ValueError("no")

        async with mock_chat_agent(failing) as h:
            await h.send_message("one")
            await h.settled()
        assert events[0].new_messages == []
        assert kinds(events[0].messages) == ["request"]
        assert str(events[0].error) == "no"

    async def test_a_suspended_preload_has_no_history_to_show(self) -> None:
        events: list[chat.ChatSuspendEvent] = []

        @chat.agent("waiting", on_chat_suspend=events.append)
        async def waiting(turn: chat.Turn[Any]) -> str:
            return "ok"

        async with mock_chat_agent(waiting) as h:
            await h.advance(30)
        assert [(e.phase, e.messages, e.ui_messages) for e in events] == [("preload", [], None)]


class TestRunHooks:
    async def test_they_come_once_per_run_around_everything_else(self) -> None:
        said: list[str] = []

        @chat.agent("hooked", on_complete=lambda result: said.append(f"complete {result['ok']}"))
        async def hooked(turn: chat.Turn[Any]) -> str:
            said.append("turn")
            return "ok"

        hooked.on_start(lambda ctx: said.append(f"start {ctx.attempt.number}"))
        hooked.on_boot(lambda: said.append("boot"))
        hooked.on_success(lambda: said.append("success"))
        async with mock_chat_agent(hooked) as h:
            await h.send_message("one")
            await h.send_message("two")
            await h.settled()
            await h.send_close()
            await h.settled()
            assert [how for _, how in h.outcomes] == ["completed"]
        assert said == ["start 1", "boot", "turn", "turn", "success", "complete True"]

    async def test_a_run_that_fails_tells_why_and_a_turn_that_fails_is_none(self) -> None:
        said: list[str] = []

        @chat.agent("hooked", on_failure=lambda error: said.append(str(error)))
        async def hooked(turn: chat.Turn[Any]) -> str:
            raise ValueError("in a turn")

        boots: list[int] = []

        @hooked.on_boot
        def boot(event: chat.BootEvent) -> None:
            boots.append(1)
            if len(boots) == 2:
                raise ValueError("at boot")

        async with mock_chat_agent(hooked) as h:
            await h.send_message("one")
            await h.drain()
            assert said == []
            await h.post_message("two")
            await h.reached(lambda: not h.alive)
            assert [how for _, how in h.outcomes] == ["completed", "failed"]
        assert said == ["at boot"]

    async def test_a_failing_start_fails_the_run_before_the_chat_is_looked_at(self) -> None:
        @chat.agent("hooked")
        async def hooked(turn: chat.Turn[Any]) -> str:
            return "ok"

        def fail() -> None:
            raise ValueError("no database")

        hooked.on_start(fail)
        async with mock_chat_agent(hooked) as h:
            await h.reached(lambda: not h.alive)
            assert [how for _, how in h.outcomes] == ["failed"]
            assert h.hook_calls == []

    async def test_waits_are_told_of_and_hooks_of_the_app_are_for_agents_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr(hooks.hooks, "_hooks", {})
        tasks.on_start(lambda: said.append("of the app"))

        @chat.agent("hooked")
        async def hooked(turn: chat.Turn[Any]) -> str:
            return "ok"

        hooked.on_wait(lambda wait: said.append(f"wait {wait['type']}"))
        hooked.on_resume(lambda: said.append("resume"))
        async with mock_chat_agent(hooked) as h:
            await h.advance(30)
            await h.send_message("one")
        assert said == ["of the app", "wait session", "resume"]

    async def test_custom_agents_have_them_and_copies_keep_them(self) -> None:
        said: list[str] = []

        @chat.custom_agent("loop", on_complete=lambda: said.append("complete"))
        async def loop(payload: Any) -> dict[str, Any]:
            await chat.messages.wait()
            await chat.write_turn_complete()
            return {"done": True}

        async with mock_chat_agent(loop.copy("other"), mode="submit-message") as h:
            await h.send_message("one")
            await h.reached(lambda: not h.alive)
        assert said == ["complete"]
        with pytest.raises(ConfigurationError, match="on_turn_start"):
            loop.on_turn_start(lambda: None)

    async def test_an_attempt_that_ran_out_of_memory_is_repeated_on_the_machine_named(self) -> None:
        @chat.agent("hungry", oom_machine="large-1x")
        async def hungry(turn: chat.Turn[Any]) -> str:
            return "ok"

        @chat.agent("modest")
        async def modest(turn: chat.Turn[Any]) -> str:
            return "ok"

        assert hungry.declaration().config["retry"] == {
            "maxAttempts": 2,
            "outOfMemory": {"machine": "large-1x"},
        }
        assert modest.declaration().config["retry"] == {"maxAttempts": 1}


class TestModelRuns:
    async def test_an_action_may_run_a_model_without_a_turn(self) -> None:
        model = scripted_model(["hello", "a summary"])
        assistant = Agent(model)

        @chat.agent("summing")
        async def summing(turn: chat.Turn[Any]) -> Any:
            assert turn.deferred_tool_results is None
            return turn.stream(assistant)

        @summing.on_action
        def summarise(event: chat.ActionEvent) -> Any:
            return chat.stream_agent(assistant, messages=event.ui_messages, user_prompt="sum up")

        async with mock_chat_agent(summing) as h:
            await h.send_message("hi")
            assert (await h.send_action("summary")).text == "a summary"
        assert [type(message) for message in model.requests[1]] == [
            ModelRequest,
            ModelResponse,
            ModelRequest,
        ]


def test_turns_and_events_take_the_type_of_the_client_data() -> None:
    for kind in (chat.Turn, chat.LoopTurn, chat.BootEvent, chat.TurnStartEvent, chat.ActionEvent):
        assert kind[int] is not None


def test_the_history_can_be_inspected_where_there_is_none() -> None:
    assert copy.copy(chat.history) is not None
    assert "remove" in dir(chat.history)
    with pytest.raises(ChatContextError):
        chat.history.all()


async def test_a_run_that_somebody_else_took_over_tells_no_hook_that_it_failed() -> None:
    said: list[str] = []

    @chat.agent("superseded", on_failure=lambda error: said.append(str(error)))
    async def superseded(turn: chat.Turn[Any]) -> str:
        await h.world.next_fence()
        return "too late"

    superseded.middleware(passing)
    async with mock_chat_agent(superseded) as h:
        await h.post_message("one")
        await h.reached(lambda: not h.alive)
        assert isinstance(h.error, Fenced)
    assert said == []


async def passing(next: Any) -> None:
    await next()
