"""Tools over the turn loop: which ones a turn has, what the model sees later, being stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import ai, chat
from everturn.chat.definition import ChatAgent
from everturn.errors import ConfigurationError, NotInRunError
from everturn.tasks.definition import task
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Nothing(BaseModel):
    """No arguments."""


class Model:
    """Calls the tool that the newest message names, if the turn has it; keeps what came back."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.offered: list[list[str]] = []

    async def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        self.offered.append([tool.name for tool in info.function_tools])
        parts = [part for message in messages for part in message.parts]
        self.results = [part.content for part in parts if isinstance(part, ToolReturnPart)]
        prompts = [place for place, part in enumerate(parts) if isinstance(part, UserPromptPart)]
        wanted = str(parts[prompts[-1]].content)  # type: ignore[union-attr]  # a prompt has it
        called = any(isinstance(part, ToolReturnPart) for part in parts[prompts[-1] :])
        if wanted in self.offered[-1] and not called:
            yield {0: DeltaToolCall(name=wanted, json_args="{}", tool_call_id=f"{wanted}-1")}
        else:
            yield "done"


def an_agent(model: Model, tools: Any, *, declared: bool = True, **options: Any) -> ChatAgent[Any]:
    library = Agent(FunctionModel(stream_function=model))
    with collecting(Registry()):

        @chat.agent("tools", tools=tools if declared else None, **options)
        async def agent(turn: chat.Turn[Any]) -> Any:
            given = turn.tools if declared else tools
            return turn.stream(library, **chat.run_options(tools=given))

    return agent


@chat.tool
async def weigh(nothing: Nothing) -> dict[str, Any]:
    """Weigh something."""
    return {"grams": 7, "picture": "data:…"}


def heavy(output: Any) -> str:
    return f"{output['grams']} g"


async def test_tools_are_chosen_for_each_turn_by_its_client_data() -> None:
    def for_turn(event: chat.ResolveToolsEvent) -> list[chat.Tool]:
        return [weigh] if event.client_data["admin"] else []

    model = Model()
    async with mock_chat_agent(an_agent(model, for_turn), client_data={"admin": False}) as harness:
        await harness.send_message("weigh")
        await harness.send_message("weigh", metadata={"admin": True})

    assert model.offered == [[], ["weigh"], ["weigh"]]


async def test_tools_that_cannot_be_chosen_fail_the_turn() -> None:
    def for_turn(event: chat.ResolveToolsEvent) -> list[chat.Tool]:
        raise LookupError("no tools today")

    async with mock_chat_agent(an_agent(Model(), for_turn)) as harness:
        assert (await harness.send_message("weigh")).errors == ["no tools today"]


async def test_a_turn_without_tools_has_an_empty_list() -> None:
    async with mock_chat_agent(an_agent(Model(), None)) as harness:
        await harness.send_message("hello")

        assert harness.event("run").tools == []
        assert "toolsets" not in chat.run_options(tools=[])


@pytest.mark.parametrize(("declared", "later"), [(True, "7 g"), (False, None)])
async def test_r156_results_of_earlier_turns_are_transformed_if_the_agent_declares_the_tool(
    declared: bool, later: str | None
) -> None:
    model = Model()
    scale = chat.tool(weigh.function, name="weigh", to_model_output=heavy)  # type: ignore[arg-type]  # it has one
    async with mock_chat_agent(an_agent(model, [scale], declared=declared)) as harness:
        await harness.send_message("weigh")
        assert model.results == ["7 g"]
        await harness.send_message("hello")

    assert model.results == [later if later is not None else {"grams": 7, "picture": "data:…"}]


async def test_the_context_of_a_call_is_that_of_its_turn() -> None:
    found: list[chat.ToolContext] = []

    @chat.tool
    async def look(nothing: Nothing, ctx: chat.ToolContext) -> str:
        found.append(ctx)
        chat.response.data("looked", {"by": ctx.tool_call_id})
        return "seen"

    agent = an_agent(Model(), [look])
    async with mock_chat_agent(agent, chat_id="c7", client_data={"u": 1}) as harness:
        await harness.send_message("hello")
        turn = await harness.send_message("look")

    (ctx,) = found
    assert (ctx.chat_id, ctx.tool_call_id, ctx.client_data, ctx.turn) == (
        "c7",
        "look-1",
        {"u": 1},
        1,
    )
    assert {"type": "data-looked", "data": {"by": "look-1"}} in turn.chunks


async def test_a_tools_error_shows_what_the_agent_says_of_errors() -> None:
    @chat.tool
    async def look(nothing: Nothing) -> str:
        raise RuntimeError("password=hunter2")

    agent = an_agent(Model(), [look], on_error=lambda error: "Sorry.")
    async with mock_chat_agent(agent) as harness:
        turn = await harness.send_message("look")

    assert [c["errorText"] for c in turn.chunks if c["type"] == "tool-output-error"] == ["Sorry."]
    assert turn.errors == []
    assert turn.text == "done"


async def test_a_stop_aborts_the_signal_lets_a_tool_clean_up_and_keeps_what_it_showed() -> None:
    working, cleaned = anyio.Event(), anyio.Event()

    @chat.streaming_tool(name="work", description="Work.", input=Nothing)
    async def work(nothing: Nothing, ctx: chat.ToolContext) -> AsyncIterator[str]:
        try:
            yield "half"
            working.set()
            await anyio.sleep_forever()
        finally:
            assert ctx.signal.aborted
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            cleaned.set()

    async with mock_chat_agent(an_agent(Model(), [work])) as harness:
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                await working.wait()
                await anyio.wait_all_tasks_blocked()
                await harness.send_stop("enough")

            tasks.start_soon(stop)
            turn = await harness.send_message("work")
        await cleaned.wait()
        await harness.settled()

        assert turn.chunks[-1] == {"type": "abort", "reason": "enough"}
        kept = harness.event("run").ui_messages[-1]["parts"][-1]
        assert (kept["output"], kept["preliminary"]) == ("half", True)
        assert (await harness.send_message("hello")).text == "done"


async def test_running_out_of_memory_inside_a_tool_ends_the_attempt_and_not_the_turn() -> None:
    @chat.tool
    async def look(nothing: Nothing) -> str:
        raise MemoryError

    async with mock_chat_agent(an_agent(Model(), [look])) as harness:
        await harness.post_message("look")
        await harness.reached(lambda: not harness.alive)

        assert isinstance(harness.error, MemoryError)
        assert await harness.turns() == []


# --- tasks as tools -------------------------------------------------------------------------------


async def test_a_task_that_nobody_serves_is_an_error_of_its_call() -> None:
    with collecting(Registry()):

        @task(id="brew", description="Brew it.")
        async def brew(payload: Nothing) -> str:
            return "tea"

        tool = chat.tool(ai.tool_execute(brew))
    assert (tool.name, tool.description, tool.input) == ("brew", "Brew it.", Nothing)

    async with mock_chat_agent(an_agent(Model(), [tool])) as harness:
        turn = await harness.send_message("brew")

    (error,) = [c["errorText"] for c in turn.chunks if c["type"] == "tool-output-error"]
    assert "brew" in error
    assert turn.text == "done"


async def test_a_task_tool_needs_a_model_and_a_run_around_it() -> None:
    with collecting(Registry()):

        @task(id="loose")
        async def loose(payload: Any) -> None: ...

        @task(id="tight")
        async def tight(payload: Nothing) -> None: ...

    with pytest.raises(ConfigurationError, match="no payload model"):
        ai.tool_execute(loose)
    with pytest.raises(NotInRunError):
        await ai.tool_execute(tight)(
            Nothing(), chat.ToolContext(chat_id=None, tool_call_id="c", signal=chat_signal())
        )
    assert ai.current_tool_options() is None
    assert ai.tool_call_id() is None
    assert ai.chat_context() is None


def chat_signal() -> Any:
    from everturn import Signal

    return Signal()
