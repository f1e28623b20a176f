"""What prompts and skills give to a call of the model (§4.8; R-189, R-190)."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import chat
from everturn.chat.prompts import ResolvedPrompt
from everturn.chat.skills import ResolvedSkill
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio

PROMPT = ResolvedPrompt(prompt_id="p", text="Be kind.", model="small", config={"temperature": 0.25})


def skill(path: Any) -> ResolvedSkill:
    frontmatter = {"name": "pdf", "description": "Reads PDF files"}
    return ResolvedSkill(
        id="pdf", skill_md="", frontmatter=frontmatter, body="Read.", path=str(path)
    )


class Seen:
    """A model that keeps what it was given."""

    def __init__(self) -> None:
        self.instructions: list[str | None] = []
        self.infos: list[AgentInfo] = []
        self.calls: list[Any] = []

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> Any:
            self.infos.append(info)
            request = next(m for m in reversed(messages) if isinstance(m, ModelRequest))
            self.instructions.append(request.instructions)
            if len(self.infos) == 1 and self.calls:
                yield {0: self.calls[0]}
            else:
                yield "ok"

        self.model = FunctionModel(stream_function=answer)
        self.agent = Agent(self.model)


async def test_a_prompt_gives_instructions_settings_and_its_model() -> None:
    seen, small = Seen(), Seen()

    @chat.agent("prompted")
    async def agent(turn: Any) -> Any:
        chat.prompt.set(PROMPT, provider_options={"top_p": 0.5})
        registry = {"small": small.model} if turn.turn == 1 else None
        return turn.stream(seen.agent, **chat.run_options(registry=registry))

    async with mock_chat_agent(agent) as h:
        assert (await h.send_message("1")).text == "ok"
        assert (await h.send_message("2")).text == "ok"
    for who in (seen, small):
        assert who.instructions == ["Be kind."]
        settings = who.infos[0].model_settings
        assert settings is not None
        assert (settings["temperature"], settings["top_p"]) == (0.25, 0.5)


async def test_skills_add_a_preamble_after_a_blank_line_and_tools_the_model_can_call(
    tmp_path: Any,
) -> None:
    seen = Seen()
    seen.calls.append(DeltaToolCall(name="loadSkill", json_args='{"name": "pdf"}'))

    @chat.agent("skilled")
    async def agent(turn: Any) -> Any:
        chat.prompt.set("Be kind.")
        chat.skills.set([skill(tmp_path)])
        return turn.stream(seen.agent, **chat.run_options())

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("1")
    assert turn.errors == []
    (call,) = [p for p in turn.message["parts"] if p["type"] == "tool-loadSkill"]
    assert call["output"]["body"] == "Read."
    assert (seen.instructions[0] or "").startswith("Be kind.\n\nYou have skills")
    assert {t.name for t in seen.infos[0].function_tools} == {"loadSkill", "readFile", "bash"}


async def test_a_tool_of_the_caller_takes_the_place_of_a_skill_tool_of_its_name(
    tmp_path: Any,
) -> None:
    """R-189."""
    seen = Seen()

    @chat.tool(name="bash", description="mine")
    async def mine() -> str:
        return "mine"

    @chat.agent("own-bash")
    async def agent(turn: Any) -> Any:
        chat.skills.set([skill(tmp_path)])
        return turn.stream(seen.agent, **chat.run_options(tools=[mine]))

    async with mock_chat_agent(agent) as h:
        assert (await h.send_message("1")).errors == []
    tools = {tool.name: tool.description for tool in seen.infos[0].function_tools}
    assert tools["bash"] == "mine"
    assert sorted(tools) == ["bash", "loadSkill", "readFile"]


async def test_without_prompt_and_skills_only_the_step_hook_is_there() -> None:
    """R-189."""
    found: list[Any] = []

    @chat.agent("plain")
    async def agent(turn: Any) -> str:
        found.append(chat.run_options())
        found.append(chat.run_options(cache_control={"type": "ephemeral"}, telemetry={"a": 1}))
        return "ok"

    async with mock_chat_agent(agent) as h:
        assert (await h.send_message("1")).errors == []
    assert list(found[0]) == ["capabilities", "cancellation_token"]
    assert found[1]["model_settings"] == {"cache": {"messages": False}}
    assert found[1]["metadata"] == {"a": 1}
