"""Agents of the OpenAI Agents SDK in a chat. Run by `test_adapter_releases`, beside the SDK.

The SDK and everturn cannot share the suite's own environment, so nothing here is collected there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from agents import Agent, RunConfig, Runner, Usage, function_tool, handoff, set_tracing_disabled
from agents.testing import ModelStep, ScriptedModel, assistant_message
from agents.testing import function_call as item_of_call
from library_environments import code_of_page

from everturn import AgentChat, chat
from everturn.chat.adapters.openai_agents import agents_chunks, last_agent, run_agent
from everturn.chat.adapters.openai_items import DENIED
from everturn.client.config import ClientConfig, use
from everturn.protocol.chunks import chunk_problem
from everturn.tasks import registry
from everturn.testing.harness import ChatHarness, mock_chat_agent
from everturn.testing.processes import System

pytestmark = pytest.mark.anyio
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "openai_agents.py"
set_tracing_disabled(True)


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


def function_call(name: str, arguments: dict[str, Any], *, call_id: str = "c0") -> Any:
    return item_of_call(name, arguments, call_id=call_id)


def kinds(chunks: list[dict[str, Any]]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


def chatting(agent: Agent[Any], **options: Any) -> Any:
    @chat.agent("sdk")
    async def made(turn: chat.Turn[Any]) -> Any:
        return run_agent(agent, turn, **options)

    return mock_chat_agent(made)


def weather_agent(*steps: Any, **options: Any) -> tuple[Agent[Any], ScriptedModel]:
    model = ScriptedModel(steps)

    @function_tool
    def weather(city: str) -> dict[str, Any]:
        """Look."""
        return {"city": city, "degrees": -3}

    return Agent(name="Weather", model=model, tools=[weather], **options), model


def tool_part(message: dict[str, Any], name: str) -> dict[str, Any]:
    return next(part for part in message["parts"] if part["type"] == f"tool-{name}")


async def stored(harness: ChatHarness) -> list[dict[str, Any]]:
    """The history as it is kept."""
    await harness.settled()
    snapshot = await harness.get_snapshot()
    assert snapshot is not None
    found: list[dict[str, Any]] = snapshot["messages"]
    return found


# --- a run ----------------------------------------------------------------------------------------


async def test_a_run_with_a_tool_is_one_answer_of_two_steps() -> None:
    agent, _ = weather_agent(
        [assistant_message("Let me look."), function_call("weather", {"city": "Oslo"})],
        [assistant_message("It is cold.")],
    )
    async with chatting(agent) as h:
        turn = await h.send_message("weather in Oslo?")

    assert turn.errors == []
    assert all(chunk_problem(chunk) is None for chunk in turn.chunks)
    found = kinds(turn.chunks)
    assert (found.count("start"), found.count("finish")) == (1, 1)
    assert found.count("start-step") == found.count("finish-step") == 2
    assert "text-delta" in found
    part = tool_part(turn.message, "weather")
    assert (part["state"], part["input"]) == ("output-available", {"city": "Oslo"})
    assert part["output"] == {"city": "Oslo", "degrees": -3}
    assert turn.text == "Let me look.It is cold."
    assert turn.chunks[-1]["finishReason"] == "stop"


async def test_what_a_run_costs_is_counted_over_its_responses() -> None:
    spent = Usage(requests=1, input_tokens=5, output_tokens=2, total_tokens=7)
    agent, _ = weather_agent(
        ModelStep(output=[function_call("weather", {"city": "Oslo"})], usage=spent),
        ModelStep(output=[assistant_message("Cold.")], usage=spent),
    )
    stream = agents_chunks(Runner.run_streamed(agent, "weather?"))
    async for _ in stream:
        pass

    assert stream.usage is not None
    assert (stream.usage.input_tokens, stream.usage.total_tokens) == (10, 14)


async def test_the_second_turn_hears_what_the_first_said_and_did() -> None:
    agent, model = weather_agent(
        [function_call("weather", {"city": "Oslo"}, call_id="c1")],
        [assistant_message("Cold.")],
        [assistant_message("I said cold.")],
    )
    async with chatting(agent) as h:
        await h.send_message("weather in Oslo?")
        await h.send_message("what did you say?")
    last = model.last_call
    assert last is not None

    assert last.input == [
        {"role": "user", "content": [{"type": "input_text", "text": "weather in Oslo?"}]},
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "weather",
            "arguments": '{"city": "Oslo"}',
        },
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": '{"city": "Oslo", "degrees": -3}',
        },
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": [{"type": "input_text", "text": "what did you say?"}]},
    ]


async def test_too_many_turns_fail_the_turn_and_the_chat_goes_on() -> None:
    agent, _ = weather_agent(
        [function_call("weather", {"city": "Oslo"})],
        [assistant_message("Here again.")],
    )
    async with chatting(agent, max_turns=1) as h:
        turn = await h.send_message("weather in Oslo?")
        again = await h.send_message("and now?")

    assert "Max turns" in turn.errors[0]
    assert tool_part(turn.message, "weather")["state"] == "output-available"
    assert again.text == "Here again."


async def test_a_model_that_fails_fails_the_turn() -> None:
    agent, _ = weather_agent(ConnectionError("reset"))
    async with chatting(agent) as h:
        turn = await h.send_message("weather in Oslo?")

    assert turn.errors == ["reset"]


# --- stop -----------------------------------------------------------------------------------------


async def test_a_stop_cancels_the_run_and_the_tool_in_it() -> None:
    waiting, ended = anyio.Event(), anyio.Event()

    @function_tool
    async def dig() -> str:
        """Dig for a long time."""
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return "never"

    model = ScriptedModel([[function_call("dig", {})], [assistant_message("Hello again.")]])
    async with chatting(Agent(name="Digger", model=model, tools=[dig])) as h:
        async with anyio.create_task_group() as tasks:
            turn: list[Any] = []

            async def send() -> None:
                turn.append(await h.send_message("dig"))

            tasks.start_soon(send)
            await waiting.wait()
            await h.send_stop()
        with anyio.fail_after(5):
            await ended.wait()
        again = await h.send_message("hello?")

    assert kinds(turn[0].chunks)[-1] == "abort"
    assert again.text == "Hello again."
    assert model.remaining_steps == 0


async def test_a_stream_that_is_left_early_ends_its_run() -> None:
    waiting, ended = anyio.Event(), anyio.Event()

    @function_tool
    async def dig() -> str:
        """Dig for a long time."""
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return "never"

    model = ScriptedModel([[function_call("dig", {})]])
    result = Runner.run_streamed(Agent(name="Digger", model=model, tools=[dig]), "dig")
    stream = agents_chunks(result)
    async for chunk in stream:
        if chunk["type"] == "tool-input-available":
            await waiting.wait()
            break
    with anyio.fail_after(5):
        await stream.aclose()

    assert ended.is_set()


# --- handoff --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [lambda agent: agent, handoff], ids=["an agent", "a handoff"])
async def test_a_conversation_stays_with_the_agent_it_was_handed_to(how: Any) -> None:
    second = ScriptedModel([[assistant_message("Refunds here.")], [assistant_message("Still I.")]])
    refunds = Agent(name="Refunds", model=second)
    first = ScriptedModel([[function_call("transfer_to_refunds", {})]])
    desk = Agent(name="Desk", model=first, handoffs=[how(refunds)])
    async with chatting(desk) as h:
        turn = await h.send_message("my money!")
        again = await h.send_message("well?")
        history = await stored(h)

    handed = tool_part(turn.message, "transfer_to_refunds")
    assert handed["output"] == '{"assistant": "Refunds"}'
    assert (turn.text, again.text) == ("Refunds here.", "Still I.")
    assert last_agent(desk, history) is refunds


# --- approvals ------------------------------------------------------------------------------------


class Silo:
    """An agent whose one tool must not be called without a yes."""

    def __init__(self, *steps: Any, calls: int = 1) -> None:
        self.launched: list[str] = []

        @function_tool(needs_approval=True)
        def launch(where: str) -> str:
            """Launch."""
            self.launched.append(where)
            return f"launched at {where}"

        asked = [function_call("launch", {"where": f"x{n}"}, call_id=f"c{n}") for n in range(calls)]
        self.model = ScriptedModel([[assistant_message("I ask."), *asked], *steps])
        self.agent: Agent[Any] = Agent(name="Silo", model=self.model, tools=[launch])


def decide(message: dict[str, Any], *decisions: tuple[str, bool, str | None]) -> dict[str, Any]:
    parts = []
    given = {call: (approved, reason) for call, approved, reason in decisions}
    for part in message["parts"]:
        if part.get("toolCallId") in given:
            approved, reason = given[part["toolCallId"]]
            approval = {"id": part["approval"]["id"], "approved": approved}
            if reason:
                approval["reason"] = reason
            part = {**part, "state": "approval-responded", "approval": approval}
        parts.append(part)
    return {**message, "parts": parts}


async def test_a_tool_that_needs_approval_ends_the_turn_with_its_question() -> None:
    silo = Silo()
    async with chatting(silo.agent) as h:
        turn = await h.send_message("launch")

    assert tool_part(turn.message, "launch")["state"] == "approval-requested"
    assert turn.chunks[-1]["finishReason"] == "tool-calls"
    assert silo.launched == []


async def test_an_approved_call_is_carried_out_once_and_the_answer_goes_on() -> None:
    silo = Silo([assistant_message("Done.")])
    async with chatting(silo.agent) as h:
        asked = await h.send_message("launch")
        turn = await h.send_message(decide(asked.message, ("c0", True, None)))
        answer = (await stored(h))[-1]

    assert silo.launched == ["x0"]
    part = tool_part(answer, "launch")
    assert (part["state"], part["output"]) == ("output-available", "launched at x0")
    assert answer["id"] == asked.message["id"]
    assert chat.text_of(answer) == "I ask.Done."
    assert "tool-input-start" not in kinds(turn.chunks)
    last = silo.model.last_call
    assert last is not None
    assert [item.get("type") for item in last.input] == [
        None,
        None,
        "function_call",
        "function_call_output",
    ]


@pytest.mark.parametrize(("reason", "told"), [("too loud", "too loud"), (None, DENIED)])
async def test_a_refused_call_is_not_carried_out_and_the_model_is_told(
    reason: str | None, told: str
) -> None:
    silo = Silo([assistant_message("As you wish.")])
    async with chatting(silo.agent) as h:
        asked = await h.send_message("launch")
        turn = await h.send_message(decide(asked.message, ("c0", False, reason)))
        answer = (await stored(h))[-1]

    assert silo.launched == []
    assert tool_part(answer, "launch")["state"] == "output-denied"
    assert turn.text == "As you wish."
    last = silo.model.last_call
    assert last is not None
    assert last.input[-1]["output"] == told


async def test_of_two_calls_one_may_be_approved_and_the_other_refused() -> None:
    silo = Silo([assistant_message("Half.")], calls=2)
    async with chatting(silo.agent) as h:
        asked = await h.send_message("launch both")
        await h.send_message(decide(asked.message, ("c0", False, None), ("c1", True, None)))
        answer = (await stored(h))[-1]

    assert silo.launched == ["x1"]
    states = [part["state"] for part in answer["parts"] if part["type"] == "tool-launch"]
    assert states == ["output-denied", "output-available"]


async def test_a_decision_may_come_in_another_process() -> None:
    """Nothing of the run is kept but the chat's history."""
    silo = Silo([assistant_message("Done.")])
    async with chatting(silo.agent) as h:
        asked = await h.send_message("launch")
        await h.settled()
        await h.crash()
        await h.restart()
        turn = await h.send_message(decide(asked.message, ("c0", True, None)))

    assert silo.launched == ["x0"]
    assert turn.text == "Done."


async def test_an_approval_works_with_a_model_of_the_run_config_too() -> None:
    silo = Silo([assistant_message("Done.")])
    agent = silo.agent.clone(model=None)
    async with chatting(agent, run_config=RunConfig(model=silo.model)) as h:
        asked = await h.send_message("launch")
        turn = await h.send_message(decide(asked.message, ("c0", True, None)))

    assert silo.launched == ["x0"]
    assert turn.text == "Done."


async def test_an_approval_reaches_the_agent_that_asked() -> None:
    silo = Silo([assistant_message("Done.")])
    first = ScriptedModel([[function_call("transfer_to_silo", {}, call_id="h0")]])
    async with chatting(Agent(name="Desk", model=first, handoffs=[silo.agent])) as h:
        asked = await h.send_message("launch")
        turn = await h.send_message(decide(asked.message, ("c0", True, None)))

    assert silo.launched == ["x0"]
    assert turn.text == "Done."


async def test_a_question_of_an_agent_inside_a_tool_fails_visibly() -> None:
    inner = Silo([assistant_message("never")])
    tool = inner.agent.as_tool("silo", "Launches.")
    model = ScriptedModel([[function_call("silo", {"input": "launch"}, call_id="s0")]])
    async with chatting(Agent(name="Outer", model=model, tools=[tool])) as h:
        turn = await h.send_message("launch")

    assert "asks for approval" in turn.errors[0]
    assert inner.launched == []


# --- the example ----------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    spec = importlib.util.spec_from_file_location("example_openai_agents", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_example_answers_hands_over_asks_and_pays(example: Any) -> None:
    async with mock_chat_agent(example.desk) as h:
        assert (await h.send_message("where is my order?")).text == "Well, order 7 is on its way."
        asked = await h.send_message("I want a refund for order 7")
        part = tool_part(asked.message, "refund")
        assert part["state"] == "approval-requested"
        done = await h.send_message(decide(asked.message, (part["toolCallId"], True, None)))
        assert done.text == "Well, order 7 is paid back."
        assert (await h.send_message("thanks")).text == "Well, you said: thanks."


async def test_the_agent_of_the_documentation_asks_before_it_pays() -> None:
    page: dict[str, Any] = {}
    exec(code_of_page("agents"), page)  # the page's own code
    page["desk"].model = ScriptedModel([[function_call("transfer_to_refunds", {}, call_id="h")]])
    page["refunds"].model = ScriptedModel([[function_call("refund", {"order": 7})]])
    async with mock_chat_agent(page["answer"]) as h:
        asked = await h.send_message("refund order 7")

    assert asked.errors == []
    assert tool_part(asked.message, "refund")["state"] == "approval-requested"


async def test_the_example_runs_on_a_real_server_and_worker(tmp_path: Path) -> None:
    """The SDK holds websockets back to 16; the link of server and worker works with that too."""
    system = await anyio.to_thread.run_sync(
        lambda: System(tmp_path, EXAMPLE, environment={"OPENAI_API_KEY": ""}).__enter__()
    )
    try:
        with use(ClientConfig(url=system.url, secret_key=system.key)):
            async with AgentChat("desk") as talk:
                answer = await (await talk.send_message("where is my order?")).text()
    finally:
        await anyio.to_thread.run_sync(system.close)

    assert answer == "Well, order 7 is on its way."
