"""Deferred work and injected messages (chat-agent §4.4; R-162 to R-166)."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import chat
from everturn.chat.background import Background, Deferred, ends_in_calls
from everturn.chat.state import current_run
from everturn.errors import ChatContextError, TooLarge
from everturn.rules import limits
from everturn.testing.clock import VirtualClock
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Listener:
    """A model that answers `ok` and remembers what it was told, as text."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.calls: list[DeltaToolCall] = []

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> Any:
            self.requests.append(said(messages))
            if self.calls:
                yield {0: self.calls.pop()}
            else:
                yield "ok"

        self.agent = Agent(FunctionModel(stream_function=answer))


def said(messages: list[ModelMessage]) -> list[str]:
    return [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(getattr(part, "content", None), str)
    ]


def user(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


class TestDefer:
    async def test_work_runs_beside_the_answer_and_ends_before_the_turn_completes(self) -> None:
        """R-162."""
        order: list[str] = []
        streamed = anyio.Event()

        @chat.agent("defers")
        async def agent(turn: Any) -> Any:
            async def work() -> None:
                order.append("begun")
                await streamed.wait()
                await anyio.wait_all_tasks_blocked()
                order.append("done")

            chat.defer(work())
            yield "a"
            await anyio.wait_all_tasks_blocked()
            order.append("streamed")
            streamed.set()

        agent.on_before_turn_complete(lambda: order.append("before"))
        async with mock_chat_agent(agent) as h:
            await h.send_message("go")
        assert order == ["begun", "streamed", "done", "before"]

    async def test_work_that_takes_longer_than_5_s_is_left_behind(self) -> None:
        """R-162."""
        deferred = anyio.Event()

        @chat.agent("slow")
        async def agent(turn: Any) -> str:
            async def work() -> None:
                deferred.set()
                await anyio.sleep_forever()

            chat.defer(work)
            return "a"

        async with mock_chat_agent(agent) as h:
            await h.post_message("go")
            await deferred.wait()
            await anyio.wait_all_tasks_blocked()
            assert await h.turns() == []
            await h.advance(limits.DEFERRED_S_MAX)
            await h.settled()
            assert [turn.text for turn in await h.turns()] == ["a"]

    async def test_failing_work_does_not_fail_the_turn(self) -> None:
        """R-162."""

        @chat.agent("fails")
        async def agent(turn: Any) -> str:
            async def work() -> None:
                raise ValueError("no")

            def plain() -> None:
                raise ValueError("no")

            chat.defer(work)
            chat.defer(plain)
            return "a"

        async with mock_chat_agent(agent) as h:
            turn = await h.send_message("go")
            assert (turn.text, turn.errors) == ("a", [])

    async def test_work_deferred_on_completion_delays_neither_this_turn_nor_the_next(self) -> None:
        """R-163."""
        go_on = anyio.Event()
        done = anyio.Event()

        @chat.agent("later")
        async def agent(turn: Any) -> str:
            return "a"

        @agent.on_turn_complete
        def complete(event: Any) -> None:
            async def work() -> None:
                await go_on.wait()
                done.set()

            if event.turn == 0:
                chat.defer(work)

        async with mock_chat_agent(agent) as h:
            await h.send_message("1")
            assert (await h.send_message("2")).text == "a"
            assert not done.is_set()
            go_on.set()
            await done.wait()

    async def test_work_deferred_before_the_first_turn_is_waited_for_with_it(self) -> None:
        """D-20."""
        go_on = anyio.Event()

        @chat.agent("early")
        async def agent(turn: Any) -> str:
            return "a"

        @agent.on_boot
        def boot() -> None:
            chat.defer(go_on.wait())

        async with mock_chat_agent(agent) as h:
            await h.post_message("go")
            await anyio.wait_all_tasks_blocked()
            assert await h.turns() == []
            go_on.set()
            await h.settled()
            assert len(await h.turns()) == 1

    async def test_work_may_be_deferred_between_turns(self) -> None:
        done: list[int] = []

        @chat.agent("between", idle_timeout=0)
        async def agent(turn: Any) -> str:
            return "a"

        agent.on_chat_suspend(lambda: chat.defer(lambda: done.append(1)))
        async with mock_chat_agent(agent) as h:
            await h.send_message("go")
            await h.settled()
        assert done

    async def test_it_cannot_be_called_outside_of_a_run(self) -> None:
        with pytest.raises(ChatContextError):
            chat.defer(lambda: None)
        with pytest.raises(ChatContextError):
            chat.inject("hi")

    async def test_how_much_runs_at_a_time_is_bounded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "DEFERRED_MAX", 1)
        async with anyio.create_task_group() as tasks:
            background, joins = Background(tasks), Deferred()
            first = anyio.Event()
            background.defer(first.wait, joins)
            with pytest.raises(TooLarge):
                background.defer(anyio.lowlevel.checkpoint(), joins)
            first.set()
            await joins.settle(VirtualClock())
            background.defer(lambda: None, None)


class TestInject:
    async def test_what_is_injected_between_turns_is_in_the_next_request_and_nowhere_else(
        self,
    ) -> None:
        """R-164."""
        listener = Listener()

        @chat.agent("told")
        async def agent(turn: Any) -> Any:
            return turn.stream(listener.agent)

        @agent.on_turn_complete
        def complete(event: Any) -> None:
            if event.turn == 0:
                chat.inject({"role": "system", "content": "be brief"}, "said beside")

        async with mock_chat_agent(agent) as h:
            await h.send_message(user("one", "u1"))
            await h.send_message(user("two", "u2"))
            await h.settled()
            snapshot = await h.get_snapshot()
            chunks = await h.all_chunks()
            await h.send_message(user("three", "u3"))
            shown = h.event("run").ui_messages
        assert listener.requests[0] == ["one"]
        assert listener.requests[1][:3] == ["one", "ok", "two"]
        # The library marks a system message in the middle of a conversation as one.
        assert "be brief" in listener.requests[1][3]
        assert listener.requests[1][4:] == ["said beside"]
        # The run goes on hearing it, at its place.
        assert listener.requests[2] == [*listener.requests[1], "ok", "three"]
        assert "beside" not in str(snapshot)
        assert "beside" not in str(chunks)
        assert "beside" not in str(shown)

    async def test_the_next_run_does_not_hear_of_it(self) -> None:
        listener = Listener()

        @chat.agent("forgets")
        async def agent(turn: Any) -> Any:
            return turn.stream(listener.agent)

        @agent.on_turn_start
        def start(event: Any) -> None:
            if not event.continuation:
                chat.inject("aside")

        async with mock_chat_agent(agent) as h:
            await h.send_message("one")
            await h.settled()
            await h.crash()
            await h.restart()
            await h.send_message("two")
        assert listener.requests == [["one", "aside"], ["one", "ok", "two"]]

    async def test_it_is_gone_with_the_message_it_came_after(self) -> None:
        listener = Listener()

        @chat.agent("rolls-back")
        async def agent(turn: Any) -> Any:
            return turn.stream(listener.agent)

        @agent.on_turn_start
        def start(event: Any) -> None:
            if event.turn == 1:
                chat.inject("aside")
            if event.turn == 2:
                chat.history.remove("u2")

        async with mock_chat_agent(agent) as h:
            for id in ("u1", "u2", "u3"):
                await h.send_message(user(id, id))
        assert listener.requests[1] == ["u1", "ok", "u2", "aside"]
        assert listener.requests[2] == ["u1", "ok", "ok", "u3"]

    async def test_after_tool_results_it_waits_for_a_step_boundary(self) -> None:
        """R-166."""
        call = {
            "type": "tool-ask",
            "toolCallId": "c",
            "state": "output-available",
            "input": {},
            "output": "yes",
        }
        answered = {"id": "a", "role": "assistant", "parts": [{"type": "step-start"}, call]}
        after = [{"type": "step-start"}, {"type": "text", "text": "so"}]
        spoken = {**answered, "parts": [*answered["parts"], *after]}
        assert ends_in_calls([user("q", "u"), answered])
        assert not ends_in_calls([user("q", "u"), spoken])
        assert not ends_in_calls([answered, user("q", "u")])
        assert not ends_in_calls([])

        async with anyio.create_task_group() as tasks:
            background = Background(tasks)
            background.inject(["aside"])
            background.place([user("q", "u"), answered])
            assert background.lane([user("q", "u"), answered], lambda part, newest: []) == []
            taken = background.take([user("q", "u"), answered])
        assert said(taken) == ["aside"]

    async def test_behind_a_message_without_an_id_it_is_heard_for_one_turn(self) -> None:
        async with anyio.create_task_group() as tasks:
            background = Background(tasks)
            background.inject(["aside"])
            background.place([user("q", "")])
            assert said(background.lane([user("q", "")], lambda part, newest: [])) == ["aside"]
            background.place([user("q", "")])
            assert background.lane([user("q", "")], lambda part, newest: []) == []

    async def test_a_step_boundary_takes_what_waits_and_later_turns_keep_it(self) -> None:
        """R-165, the seam."""
        listener = Listener()

        @chat.agent("steps")
        async def agent(turn: Any) -> Any:
            if turn.turn == 0:
                chat.inject("aside")
                run = current_run()
                assert said(run.background.take(run.lane.messages)) == ["aside"]
                assert run.background.take(run.lane.messages) == []
            return turn.stream(listener.agent)

        async with mock_chat_agent(agent) as h:
            await h.send_message("one")
            await h.send_message("two")
        assert listener.requests[1] == ["one", "aside", "ok", "two"]

    async def test_what_a_tool_injects_is_in_the_next_request_of_the_same_turn(self) -> None:
        """R-165."""
        listener = Listener()

        @chat.tool(description="Tells the model something.")
        async def tell() -> str:
            chat.inject("aside")
            return "told"

        listener.calls.append(DeltaToolCall(name="tell", json_args="{}"))

        @chat.agent("tool-injects")
        async def agent(turn: Any) -> Any:
            return turn.stream(listener.agent, **chat.run_options(tools=[tell]))

        async with mock_chat_agent(agent) as h:
            assert (await h.send_message("one")).errors == []
            await h.send_message("two")
        assert listener.requests[:2] == [["one"], ["one", "told", "aside"]]
        assert listener.requests[2].count("aside") == 1

    async def test_messages_of_the_library_and_ui_messages_are_taken_and_others_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "INJECTED_MAX", 4)
        response = ModelResponse(parts=[TextPart("b")])
        async with anyio.create_task_group() as tasks:
            background = Background(tasks)
            for wrong in (1, {"role": "user"}, {"content": "x"}):
                with pytest.raises(TypeError):
                    background.inject([wrong])
            for wrong in ({"role": "tool", "content": "x"}, response):
                with pytest.raises(ValueError, match="assistant"):
                    background.inject(["fine", wrong])
            background.inject([ModelRequest.user_text_prompt("a"), response, user("c", "u")])
            with pytest.raises(TooLarge):
                background.inject(["d", "e"])
            assert said(background.take([])) == ["a", "b", "c"]
