"""Stream options in a chat, and how answers of every kind end (R-060, R-061, R-065, R-147)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage

from everturn import chat
from everturn.chat.adapters.usage import Usage
from everturn.chat.output import add_usage
from everturn.chat.streamables import is_streamable
from everturn.chat.ui_messages import UIMessage
from everturn.rules import limits
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio

SOURCE = {"type": "source-url", "sourceId": "s", "url": "https://a.test"}


def thinking_agent(error: Exception | None = None) -> Agent[None, str]:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> Any:
        yield {0: DeltaThinkingPart(content="hm")}
        yield "so"
        if error is not None:
            raise error

    return Agent(FunctionModel(stream_function=answer))


class Waiting:
    """A model that says something and then waits."""

    def __init__(self) -> None:
        self.said = anyio.Event()

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> Any:
            yield "begun"
            self.said.set()
            await anyio.sleep_forever()

        self.agent = Agent(FunctionModel(stream_function=answer))


def kinds(turn: Any) -> list[str]:
    return [chunk["type"] for chunk in turn.chunks]


class TestOptions:
    async def test_reasoning_can_be_left_out_for_good_and_for_one_turn(self) -> None:
        """R-147, R-065."""

        @chat.agent("hides", stream_options=chat.UIStreamOptions(send_reasoning=False))
        async def agent(turn: Any) -> Any:
            if turn.turn == 1:
                chat.set_stream_options(send_reasoning=True)
            return turn.stream(thinking_agent())

        async with mock_chat_agent(agent) as h:
            turns = [await h.send_message(str(n)) for n in range(3)]
            stored = h.event("run").ui_messages
        shown = [any("reasoning" in kind for kind in kinds(turn)) for turn in turns]
        assert shown == [False, True, False]
        assert [turn.text for turn in turns] == ["so"] * 3
        # What is not shown is not part of the message either.
        assert "reasoning" not in [part.type for part in stored[1].parts]
        assert "reasoning" in [part.type for part in stored[3].parts]

    async def test_options_are_used_up_by_the_stream_and_dropped_with_the_turn(self) -> None:
        """R-065."""

        @chat.agent("uses-up")
        async def agent(turn: Any) -> Any:
            chat.set_stream_options(send_finish=False)
            if turn.turn == 0:
                await chat.pipe(["one"])
                await chat.pipe(["two"])
            return None if turn.turn == 1 else "last"

        agent.on_boot(lambda: chat.set_stream_options(send_start=False))
        async with mock_chat_agent(agent) as h:
            first = await h.send_message("1")
            second = await h.send_message("2")
            third = await h.send_message("3")
        assert kinds(first).count("start") == 1
        assert kinds(first).count("finish") == 1
        assert kinds(second) == []
        assert (kinds(third).count("start"), kinds(third).count("finish")) == (1, 0)

    async def test_metadata_ids_and_a_left_out_finish_reach_the_message(self) -> None:
        options = chat.UIStreamOptions(
            message_metadata=lambda part: {part["type"]: part.get("usage") is not None},
            generate_message_id=lambda: "mine",
        )

        @chat.agent("metadata", stream_options=options)
        async def agent(turn: Any) -> Any:
            if turn.turn == 1:
                chat.set_stream_options(
                    send_start=False, send_finish=False, generate_message_id=lambda: "other"
                )
            return turn.stream(thinking_agent())

        agent.on_turn_complete(lambda event: None)
        async with mock_chat_agent(agent) as h:
            first = await h.send_message("1")
            second = await h.send_message("2")
            await h.settled()
            event = h.event("on_turn_complete")
        assert first.message["id"] == "mine"
        assert first.message["metadata"] == {"start": False, "finish": True}
        assert not {"start", "finish"} & set(kinds(second))
        assert (event.response_message.id, event.finish_reason) == ("other", "stop")

    async def test_sources_of_a_model_are_asked_for_and_those_an_author_writes_are_shown(
        self,
    ) -> None:
        """R-147."""

        @chat.agent("sources")
        async def agent(turn: Any) -> Any:
            yield SOURCE

        async with mock_chat_agent(agent) as h:
            assert SOURCE in (await h.send_message("1")).chunks
        assert chat.UIStreamOptions().shown(SOURCE) is None

    async def test_on_error_decides_what_clients_read_of_a_failed_model(self) -> None:
        """R-060, R-061."""

        @chat.agent("plain-errors")
        async def plain(turn: Any) -> Any:
            return turn.stream(thinking_agent(ValueError("inner")))

        @chat.agent(
            "sanitised", stream_options=chat.UIStreamOptions(on_error=lambda error: "sorry")
        )
        async def sanitised(turn: Any) -> Any:
            if turn.turn == 1:
                raise ValueError("inner")
            if turn.turn == 2:
                chat.set_stream_options(on_error=lambda error: f"once {error}")
            return turn.stream(thinking_agent(ValueError("inner")))

        plain.on_turn_complete(lambda event: None)
        async with mock_chat_agent(plain) as h:
            assert (await h.send_message("1")).errors == ["inner"]
            await h.settled()
            assert h.event("on_turn_complete").finish_reason == "error"
            assert h.event("on_turn_complete").error is None
        async with mock_chat_agent(sanitised) as h:
            errors = [(await h.send_message(str(n))).errors for n in range(4)]
        assert errors == [["sorry"], ["sorry"], ["once inner"], ["sorry"]]

    async def test_an_override_holds_for_failing_turns_and_tools_too(self) -> None:
        @chat.tool(description="Fails.")
        async def broken() -> str:
            raise ValueError("inner")

        @chat.agent("overrides", on_error=lambda error: "sorry")
        async def agent(turn: Any) -> Any:
            chat.set_stream_options(on_error=lambda error: f"once {error}")
            if turn.turn == 0:
                raise ValueError("inner")
            return turn.stream(Agent(TestModel()), **chat.run_options(tools=[broken]))

        async with mock_chat_agent(agent) as h:
            assert (await h.send_message("0")).errors == ["once inner"]
            turn = await h.send_message("1")
        assert turn.errors == []
        told = [c["errorText"] for c in turn.chunks if c["type"] == "tool-output-error"]
        assert told == ["once inner"]

    async def test_an_on_error_that_fails_leaves_a_general_sentence(self) -> None:
        def fails(error: BaseException) -> str:
            raise KeyError("oops")

        @chat.agent("fails-twice", on_error=fails)
        async def agent(turn: Any) -> Any:
            if turn.turn == 0:
                raise ValueError("inner")
            return turn.stream(thinking_agent(ValueError("inner")))

        async with mock_chat_agent(agent) as h:
            for text in ("0", "1"):
                assert (await h.send_message(text)).errors == ["An error occurred."]

    async def test_an_option_that_does_not_exist_is_refused(self) -> None:
        @chat.agent("typo")
        async def agent(turn: Any) -> Any:
            with pytest.raises(TypeError):
                chat.set_stream_options(send_everything=True)
            return "ok"

        async with mock_chat_agent(agent) as h:
            assert (await h.send_message("1")).errors == []


class TestStopping:
    async def test_a_stopped_model_closes_its_text_before_the_abort(self) -> None:
        waiting = Waiting()

        @chat.agent("model")
        async def agent(turn: Any) -> Any:
            return turn.stream(waiting.agent)

        turn = await stopped(agent, waiting.said)
        assert kinds(turn)[-3:] == ["text-delta", "text-end", "abort"]
        assert turn.message["parts"][-1]["state"] == "done"

    async def test_a_stopped_generator_has_its_text_closed_before_the_abort(self) -> None:
        said, cleaned = anyio.Event(), anyio.Event()

        @chat.agent("generator")
        async def agent(turn: Any) -> Any:
            try:
                yield "begun"
                said.set()
                await anyio.sleep_forever()
            finally:
                cleaned.set()

        turn = await stopped(agent, said)
        assert kinds(turn)[-3:] == ["text-delta", "text-end", "abort"]
        assert turn.message["parts"][-1]["state"] == "done"
        assert cleaned.is_set()

    async def test_a_model_that_does_not_stop_is_cut_off(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "STOP_S_MAX", 0.01)
        said = anyio.Event()

        class Stubborn:
            """A run that does not end when it is told to."""

            def accompany(self, stop: Any, on_error: Any) -> None: ...

            async def __aiter__(self) -> Any:
                yield {"type": "start"}
                yield {"type": "text-start", "id": "1"}
                yield {"type": "text-delta", "id": "1", "delta": "begun"}
                said.set()
                await anyio.sleep_forever()

        @chat.agent("stubborn")
        async def agent(turn: Any) -> Any:
            return Stubborn()

        turn = await stopped(agent, said)
        assert kinds(turn)[-3:] == ["text-delta", "text-end", "abort"]

    async def test_a_run_of_the_library_that_an_author_returns_can_be_stopped(self) -> None:
        waiting = Waiting()

        @chat.agent("library")
        async def agent(turn: Any) -> Any:
            return waiting.agent.run_stream_events(turn.text)

        turn = await stopped(agent, waiting.said)
        assert "text-end" in kinds(turn)
        assert kinds(turn)[-1] == "abort"


async def stopped(agent: Any, said: anyio.Event) -> Any:
    async with mock_chat_agent(agent) as h:
        await h.post_message("go")
        await said.wait()
        await arrived(h)
        await h.send_stop("enough")
        await h.settled()
        (turn,) = await h.turns()
        assert turn.errors == []
        return turn


async def arrived(h: ChatHarness) -> None:
    """Return when the text is on `.out`."""
    while not any(chunk["type"] == "text-delta" for chunk in await h.all_chunks()):
        await anyio.wait_all_tasks_blocked()


class TestStreamables:
    async def test_results_and_unentered_runs_of_the_library_are_streamed(self) -> None:
        model = Agent("test")

        @chat.agent("results")
        async def agent(turn: Any) -> Any:
            if turn.turn == 0:
                return await model.run(turn.text)
            return model.run_stream_events(turn.text)

        agent.on_turn_complete(lambda event: None)
        async with mock_chat_agent(agent) as h:
            for n in range(2):
                turn = await h.send_message("hello")
                assert (turn.errors, turn.text) == ([], "success (no tool calls)")
                await h.settled()
                usage = h.event("on_turn_complete").usage
                assert isinstance(usage, Usage), n
        assert not is_streamable(model)
        assert not is_streamable(None)

    def test_usages_add_up_whoever_counted_them(self) -> None:
        library = RunUsage(input_tokens=2, output_tokens=3)
        ours = Usage(input_tokens=1, output_tokens=1, total_tokens=2)

        for total, usage in ((library, ours), (ours, library), (library, library)):
            made = add_usage(total, usage)
            assert made.total_tokens in (7, 10)
        assert add_usage(None, ours) == ours
        assert add_usage(library, None) is library


class TestMessages:
    async def test_messages_handed_to_hooks_and_turns_allow_attribute_access(self) -> None:
        """Rulings §5.5."""
        texts: list[Any] = []

        @chat.agent("attributes")
        async def agent(turn: Any) -> str:
            texts.append((turn.message.parts[0].text, turn.ui_messages[-1].role))
            return "ok"

        @agent.on_validate_messages
        def validate(event: Any) -> Any:
            assert event.messages[0].parts[0].text == "hi"
            return [dict(message) for message in event.messages]

        @agent.on_turn_start
        def start(event: Any) -> None:
            chat.history.set([dict(message) for message in chat.history.all()])
            assert chat.history.all()[0].role == "user"

        @agent.on_turn_complete
        def complete(event: Any) -> None:
            texts.append(event.response_message.parts[-1].text)
            texts.append([message.role for message in event.new_ui_messages])
            for message in (*event.ui_messages, *event.new_ui_messages):
                assert isinstance(message, UIMessage)
            assert event.raw_response_message.role == "assistant"

        async with mock_chat_agent(agent) as h:
            assert (await h.send_message("hi")).errors == []
            await h.settled()
        assert texts == [("hi", "user"), "ok", ["user", "assistant"]]
