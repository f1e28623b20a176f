"""The harness as its users see it: drivers, seeds, locals, models, tasks, the fixture (§7)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import chat, sessions, streams, testing
from everturn.chat.definition import ChatAgent
from everturn.errors import EverturnError, InvalidRequest
from everturn.tasks import registry
from everturn.tasks.context import current_context
from everturn.testing import Call, Pause, ScriptExhausted, scripted_model
from everturn.testing.plugin import chat_harness as chat_harness  # as its entry point does

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


class Order(BaseModel):
    number: int


def echoing(id: str = "echo") -> ChatAgent[Any]:
    @chat.agent(id)
    async def echo(turn: Any) -> str:
        return f"echo: {turn.text}"

    return echo


class TestLife:
    async def test_the_fixture_starts_agents_by_id_and_closes_them(
        self, chat_harness: Callable[..., Awaitable[testing.ChatHarness]]
    ) -> None:
        """R-261: two of them at once, each with its own chat."""
        echoing()
        one = await chat_harness("echo", chat_id="one")
        two = await chat_harness("echo", chat_id="two")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.send_message, "a")
            tasks.start_soon(two.send_message, "b")
        assert [turn.text for turn in await one.turns()] == ["echo: a"]
        assert [turn.text for turn in await two.turns()] == ["echo: b"]

    async def test_an_agent_nobody_registered_is_a_lookup_error(self) -> None:
        """R-263."""
        with pytest.raises(LookupError, match="nobody"):
            async with testing.mock_chat_agent("nobody"):
                pass

    async def test_a_hung_agent_is_left_within_a_second_and_leaves_no_task(self) -> None:
        """R-262."""

        @chat.agent("hung")
        async def hung(turn: Any) -> None:
            await anyio.sleep_forever()

        begun = time.monotonic()
        async with testing.mock_chat_agent(hung) as h:
            await h.post_message("hi")
            await h.reached(lambda: h.state == "turn")
        assert time.monotonic() - begun < 1.5
        assert len(anyio.get_running_tasks()) <= 2

    async def test_leaving_closes_an_idle_chat_as_a_client_would(self) -> None:
        ended: list[str] = []
        async with testing.mock_chat_agent(echoing()) as h:
            await h.send_message("hi")
            await h.settled()
            await h.close()
            ended.extend(how for _, how in h.outcomes)
        assert ended == ["completed"]

    async def test_loading_the_plugin_imports_no_agent_code(self) -> None:
        code = (
            "import sys, everturn.testing.plugin, everturn.testing;"
            "print([m for m in sys.modules if m.startswith(('pydantic', 'everturn.chat',"
            " 'everturn.storage', 'anyio'))])"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert told.stdout.strip() == "[]", told.stderr

    async def test_messages_that_come_at_once_start_one_run(self) -> None:
        async with testing.mock_chat_agent(echoing(), mode="submit-message") as h:
            async with anyio.create_task_group() as tasks:
                for text in "abc":
                    tasks.start_soon(h.post_message, text)
            await h.settled()
            assert [turn.text for turn in await h.turns()] == ["echo: a", "echo: b", "echo: c"]
            assert (h.hook_calls.count("run"), h.outcomes) == (3, [])


class TestSeeds:
    async def test_a_snapshot_is_seeded_for_the_next_boot_and_then_the_agents(self) -> None:
        """R-260."""
        old = {"id": "u0", "role": "user", "parts": [{"type": "text", "text": "old"}]}
        seen: list[int] = []

        @chat.agent("seeing")
        async def seeing(turn: Any) -> str:
            seen.append(len(turn.ui_messages))
            return "ok"

        async with testing.mock_chat_agent(seeing) as h:
            await h.send_message("m1")
            await h.settled()
            await h.send_message("m2")
            await h.settled()
            stored = await h.get_snapshot()
            assert stored is not None
            await h.seed_snapshot({**stored, "messages": [old]})
            assert await h.get_snapshot() == stored
            assert len(stored["messages"]) == 4
            await h.drain()
            await h.send_message("m3")
        assert seen == [1, 3, 2]

    async def test_what_waits_on_both_channels_is_found_by_the_next_boot(self) -> None:
        """R-260, R-259: a partial and an open message give the chain of R-114."""
        lanes: list[list[str]] = []

        @chat.agent("seeing")
        async def seeing(turn: Any) -> str:
            lanes.append([chat.text_of(m) for m in turn.ui_messages])
            return "ok"

        partial = {"id": "a1", "role": "assistant", "parts": [{"type": "text", "text": "half"}]}
        async with testing.mock_chat_agent(seeing, mode="continuation", start=False) as h:
            await h.seed_session_in_tail(["m1", "m2"])
            await h.seed_session_out_partial(partial)
            await h.start()
            await h.settled()
            (turn,) = await h.turns()
        assert lanes == [["m1", "half", "m2"]]
        assert turn.cursor.seq_num == 2

    async def test_locals_are_set_before_boot_and_context_is_as_the_test_says(self) -> None:
        """R-260."""
        config = chat.local("config", dict)
        seen: list[Any] = []
        agent = echoing()

        @agent.on_boot
        def booted(event: Any) -> None:
            seen.append((config.get(), event.ctx.attempt.number, event.ctx.run.tags))

        async def setup(set: Any) -> None:
            set(config, {"fake": True})

        context = {"attempt.number": 2, "run": {"tags": ["t"]}}
        async with testing.mock_chat_agent(agent, setup_locals=setup, task_context=context) as h:
            await h.settled()
        assert seen == [({"fake": True}, 2, ("t",))]

    async def test_a_head_start_begins_a_run(self) -> None:
        async with testing.mock_chat_agent(echoing()) as h:
            with pytest.raises(EverturnError, match="start=False"):
                await h.send_head_start([])

    async def test_waits_and_swaps_can_be_looked_at(self) -> None:
        """R-258: a day passes at once."""
        async with testing.mock_chat_agent(echoing()) as h:
            begun = time.monotonic()
            await h.send_message("hi")
            await h.advance(86_400)
            assert time.monotonic() - begun < 5
            assert not h.alive
            assert len(h.waitpoints) == 1
            assert h.continued == []


class TestTurns:
    @pytest.mark.parametrize("approved", [True, False])
    async def test_a_message_that_went_on_is_shown_whole(self, approved: bool) -> None:
        @chat.tool(needs_approval=True)
        async def pay(order: Order) -> str:
            """Pay."""
            return f"paid {order.number}"

        model = Agent(scripted_model([["One moment.", Call("pay", {"number": 7})], "Done."]))

        @chat.agent("paying", tools=[pay])
        async def paying(turn: chat.Turn[Any]) -> Any:
            return turn.stream(model, **chat.run_options(tools=turn.tools))

        async with testing.mock_chat_agent(paying) as h:
            asked = (await h.send_message("pay")).message
            call = dict(asked["parts"][-1], state="approval-responded")
            call["approval"] = {**call["approval"], "approved": approved}
            turn = await h.send_message({**asked, "parts": [call]})
            again = (await h.session.turns())[-1]
        assert chat.text_of(turn.message) == "One moment.Done."
        states = [p["state"] for p in turn.message["parts"] if p["type"] == "tool-pay"]
        assert states == ["output-available" if approved else "output-denied"]
        assert turn.message["id"] == asked["id"]
        assert again.message == turn.message


class TestClientData:
    async def test_a_fake_reaches_the_agent_as_it_is_over_runs_too(self) -> None:
        fake = object()
        seen: list[Any] = []

        @chat.agent("seeing")
        async def seeing(turn: chat.Turn[Any]) -> str:
            seen.append((turn.client_data["model"] is fake, turn.client_data["user"]))
            return "ok"

        seeing.on_boot(lambda event: seen.append(event.client_data["model"] is fake))
        data = {"model": fake, "user": "ada"}
        async with testing.mock_chat_agent(seeing, client_data=data) as h:
            await h.send_message("one")
            await h.drain()
            await h.send_message("two", metadata={"model": fake, "user": "bob"})
        assert seen == [True, (True, "ada"), True, (True, "bob")]

    async def test_a_model_is_sent_as_a_client_sends_it(self) -> None:
        class Client(BaseModel):
            user: str

        @chat.agent("seeing", client_data=Client)
        async def seeing(turn: chat.Turn[Client]) -> str:
            return turn.client_data.user

        async with testing.mock_chat_agent(seeing, client_data=Client(user="ada")) as h:
            assert (await h.send_message("hi")).text == "ada"


class TestModels:
    async def test_a_script_is_streamed_step_by_step_and_requests_are_kept(self) -> None:
        model = scripted_model(
            [["Let me ", Pause(5), "see.", Call("time")], lambda asked: f"{len(asked)} said", "x"]
        )
        agent = Agent(model)

        @agent.tool_plain
        def time() -> str:
            return "noon"

        @chat.agent("scripted")
        async def scripted(turn: Any) -> Any:
            return turn.stream(agent)

        async with testing.mock_chat_agent(scripted) as h:
            await h.post_message("hi")
            await h.advance(5)
            await h.settled()
            (turn,) = await h.turns()
        assert turn.text == "Let me see.3 said"
        assert [call["toolCallId"] for call in turn.tool_calls] == ["call-1-1"]
        assert [len(request) for request in model.requests] == [1, 3]

    async def test_an_error_of_the_script_and_its_end_are_errors_of_the_turn(self) -> None:
        agent = Agent(scripted_model([["half", ValueError("overloaded")]]))

        @chat.agent("scripted")
        async def scripted(turn: Any) -> Any:
            return turn.stream(agent)

        async with testing.mock_chat_agent(scripted) as h:
            failed = await h.send_message("hi")
            ended = await h.send_message("again")
        assert failed.errors == ["overloaded"]
        assert ended.errors == ["request 2: the script has 1 entries"]

    async def test_a_script_answers_without_streaming_too(self) -> None:
        agent = Agent(scripted_model(["whole"]))
        assert (await agent.run("hi")).output == "whole"
        with pytest.raises(ScriptExhausted):
            await agent.run("again")


class TestTasks:
    async def test_code_of_a_task_runs_with_its_streams_locals_and_context(self) -> None:
        config = chat.local("config of a task", dict)

        async def work(task: testing.MockTask) -> str:
            task.locals.set(config, {"fake": True})
            await task.inputs.send("in", {"city": "Oslo"})
            handle = sessions.open(task.session)
            asked = (await handle.in_.wait(timeout="1h")).unwrap()
            await handle.out.append({"about": asked["city"]})
            await streams.append({"done": 1}, "progress")
            assert await task.outputs.chunks() == [{"about": "Oslo"}]
            assert await task.outputs.chunks("progress") == [{"done": 1}]
            assert current_context().attempt.number == task.ctx.attempt.number == 3
            return str(config.fake)

        assert await testing.run_in_mock_task_context(work, ctx={"attempt.number": 3}) == "True"

    async def test_what_the_code_raises_comes_out_as_it_was(self) -> None:
        async def work(task: testing.MockTask) -> None:
            with pytest.raises(InvalidRequest):
                await task.inputs.send("other", 1)
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await testing.run_in_mock_task_context(work)

    async def test_a_context_has_the_members_it_has(self) -> None:
        async def work(task: testing.MockTask) -> None:
            raise AssertionError

        with pytest.raises(InvalidRequest, match="nope"):
            await testing.run_in_mock_task_context(work, ctx={"run.nope": 1})
