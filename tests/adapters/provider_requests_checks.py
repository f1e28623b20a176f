"""What a chat asks of a provider, in the requests themselves. Run by `test_adapter_releases`.

The providers' own packages make the requests; only the wire is played. Also here: streams of
frameworks that the plain road takes without an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from library_environments import code_of_page
from pydantic_ai import Agent
from pydantic_ai.messages import CachePoint, ModelRequest, UserPromptPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from everturn import Compaction, chat
from everturn.tasks import registry
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


class Wire:
    """Answers every request with the same stream, and keeps what was asked."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._events = events
        self.client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(json.loads(request.content))
        text = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in self._events)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=text)


#: No model there is: the packages warn about those that will not be there for ever.
CLAUDE = "claude-of-this-test"
ANTHROPIC = [
    {
        "type": "message_start",
        "message": {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": CLAUDE,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 3,
                "output_tokens": 1,
                "cache_read_input_tokens": 40,
                "cache_creation_input_tokens": 7,
            },
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi."}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 5},
    },
    {"type": "message_stop"},
]


def anthropic() -> tuple[Wire, Agent[None, str]]:
    wire = Wire(ANTHROPIC)
    provider = AnthropicProvider(api_key="none", http_client=wire.client)
    return wire, Agent(AnthropicModel(CLAUDE, provider=provider))


def look_up(city: str) -> str:
    """Look."""
    return "cold"


def asking(agent: Agent[None, str], **options: Any) -> Any:
    @chat.agent("asking", tools=[look_up])
    async def made(turn: chat.Turn[Any]) -> Any:
        chat.prompt.set("You are brief.", provider_options=options.get("stored"))
        given = {name: value for name, value in options.items() if name != "stored"}
        return turn.stream(agent, **chat.run_options(tools=turn.tools, **given))

    return made


@pytest.mark.parametrize(("ttl", "said"), [(None, "5m"), ("5m", "5m"), ("1h", "1h")])
async def test_the_shorthand_caches_instructions_and_tools_and_not_the_conversation(
    ttl: str | None, said: str
) -> None:
    wire, agent = anthropic()
    control = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
    async with mock_chat_agent(asking(agent, cache_control=control)) as h:
        assert (await h.send_message("hello")).text == "Hi."
    [body] = wire.bodies

    assert body["system"][-1]["text"] == "You are brief."
    assert body["system"][-1]["cache_control"] == {"type": "ephemeral", "ttl": said}
    assert body["tools"][-1]["cache_control"]["type"] == "ephemeral"
    assert "cache_control" not in json.dumps(body["messages"])


@pytest.mark.parametrize("how", ["system_provider_options", "stored"])
async def test_a_providers_own_setting_reaches_its_request(how: str) -> None:
    wire, agent = anthropic()
    setting = {"anthropic_cache_instructions": "1h"}
    async with mock_chat_agent(asking(agent, **{how: setting})) as h:
        await h.send_message("hello")
    [body] = wire.bodies

    assert body["system"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert "cache_control" not in json.dumps(body["tools"])


async def test_without_being_asked_for_nothing_is_cached() -> None:
    wire, agent = anthropic()
    async with mock_chat_agent(asking(agent)) as h:
        await h.send_message("hello")

    assert "cache_control" not in json.dumps(wire.bodies)


async def test_the_instructions_are_the_same_bytes_in_every_request() -> None:
    wire, agent = anthropic()
    async with mock_chat_agent(asking(agent, cache_control={"type": "ephemeral"})) as h:
        await h.send_message("one")
        await h.send_message("two")
        await h.settled()
        await h.crash()
        await h.restart()
        await h.send_message("three")
    prefixes = {json.dumps([body["system"], body["tools"]]) for body in wire.bodies}

    assert len(wire.bodies) == 3
    assert len(prefixes) == 1


async def test_what_was_read_from_and_written_to_the_cache_is_in_the_usage() -> None:
    _, agent = anthropic()
    made = asking(agent, cache_control={"type": "ephemeral"})
    usages: list[Any] = []
    made.on_turn_complete(lambda event: usages.append(event.usage))
    async with mock_chat_agent(made) as h:
        await h.send_message("hello")
    [usage] = usages

    assert usage.input_token_details.cache_read == 40
    assert usage.input_token_details.cache_write == 7
    assert usage.input_token_details.no_cache == 3


async def test_a_breakpoint_on_the_last_message_is_set_also_after_compaction() -> None:
    wire, agent = anthropic()
    reasons: list[str] = []

    @chat.agent(
        "compacting",
        compaction=Compaction(should_compact=lambda event: True, summarize=lambda event: "short"),
    )
    async def compacting(turn: chat.Turn[Any]) -> Any:
        return turn.stream(agent)

    @compacting.prepare_messages
    def mark(event: chat.PrepareMessagesEvent) -> list[Any]:
        reasons.append(event.reason)
        *before, last = event.messages
        content = [part.content for part in last.parts]
        return [*before, ModelRequest([UserPromptPart([*content, CachePoint()])])]

    async with mock_chat_agent(compacting) as h:
        await h.send_message("one")
        await h.send_message("two")

    assert reasons == ["run", "run"]
    for body in wire.bodies:
        assert body["messages"][-1]["content"][-1]["cache_control"]["type"] == "ephemeral"
    assert "[Conversation summary]" in json.dumps(wire.bodies[1]["messages"])


MESSAGE = {
    "type": "message",
    "id": "m",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
}
PLACE = {"item_id": "m", "output_index": 0, "content_index": 0}
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 0,
    "model": "gpt-5",
    "status": "completed",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [MESSAGE],
    "usage": {
        "input_tokens": 50,
        "output_tokens": 5,
        "total_tokens": 55,
        "input_tokens_details": {"cached_tokens": 40},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}
OPENAI = [
    {
        "type": "response.output_item.added",
        "sequence_number": 0,
        "output_index": 0,
        "item": {**MESSAGE, "content": []},
    },
    {
        "type": "response.output_text.delta",
        "sequence_number": 1,
        "delta": "Hi.",
        "logprobs": [],
        **PLACE,
    },
    {
        "type": "response.output_item.done",
        "sequence_number": 2,
        "output_index": 0,
        "item": MESSAGE,
    },
    {"type": "response.completed", "sequence_number": 3, "response": RESPONSE},
]


async def test_settings_of_openai_reach_its_request() -> None:
    wire = Wire(OPENAI)
    provider = OpenAIProvider(api_key="none", http_client=wire.client)
    agent = Agent(OpenAIResponsesModel("gpt-5", provider=provider))
    settings = {"openai_prompt_cache_key": "desk", "openai_prompt_cache_retention": "24h"}
    async with mock_chat_agent(asking(agent, system_provider_options=settings)) as h:
        turn = await h.send_message("hello")
    [body] = wire.bodies

    assert turn.errors == []
    assert (body["prompt_cache_key"], body["prompt_cache_retention"]) == ("desk", "24h")


# --- LangGraph, through the plain road ----------------------------------------------------------------


async def test_tokens_of_a_langgraph_graph_are_an_answer() -> None:
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph

    model = GenericFakeChatModel(messages=iter([AIMessage(content="Hello from a graph.")]))

    async def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("speak", speak)
    builder.add_edge(START, "speak")
    graph: Any = builder.compile()

    page = {"graph": graph}
    exec(code_of_page("graph"), page)  # the page's own code

    async with mock_chat_agent(page["talk"]) as h:
        turn = await h.send_message("hello")

    assert turn.errors == []
    assert turn.text == "Hello from a graph."
    assert sum(chunk["type"] == "text-delta" for chunk in turn.chunks) > 1
