"""Spans of a chat (§4.14): what there is, what hangs under what, and what it costs without an SDK."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.instrumented import InstrumentationSettings

from everturn import Compaction, PendingMessages, chat
from everturn.chat import tracing
from everturn.chat.adapters.offline import offline_model
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


class Spans:
    """What was recorded."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def one(self, name: str) -> ReadableSpan:
        [found] = [span for span in self.all if span.name == name]
        return found

    def ancestors(self, name: str) -> list[str]:
        """The names above a span, from its parent up."""
        by_id = {span.context.span_id: span for span in self.all if span.context is not None}
        found: list[str] = []
        span = self.one(name)
        while span.parent is not None:
            span = by_id[span.parent.span_id]
            found.append(span.name)
        return found


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A provider for this test. The one of the process can be set only once, so it is patched."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return Spans(exporter)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class City(BaseModel):
    name: str


def telling_agent(**options: Any) -> Any:
    def look_up(given: City) -> str:
        return "cold"

    tools = [chat.tool(look_up, name="look_up", description="Look.", input=City)]

    @chat.agent("traced", tools=tools, **options)
    async def agent(turn: chat.Turn[Any]) -> Any:
        model = Agent(offline_model(delay_ms=0))
        return turn.stream(model, **chat.run_options(tools=turn.tools))

    @agent.on_turn_start
    async def start(event: Any) -> None:
        pass

    @agent.on_turn_complete
    async def complete(event: Any) -> None:
        pass

    return agent


async def test_a_turn_is_a_span_and_what_it_does_hangs_under_it(spans: Spans) -> None:
    async with mock_chat_agent(telling_agent()) as h:
        await h.send_message("look up Oslo")
        await h.settled()

    assert spans.ancestors("on_turn_start") == ["chat turn 1"]
    assert spans.ancestors("stream response") == ["chat turn 1"]
    assert spans.ancestors("execute_tool look_up") == ["stream response", "chat turn 1"]
    assert spans.ancestors("on_turn_complete") == ["chat turn 1"]
    assert spans.ancestors("snapshot.write") == ["chat turn 1"]


async def test_every_span_names_the_conversation(spans: Spans) -> None:
    async with mock_chat_agent(telling_agent()) as h:
        await h.send_message("look up Oslo")
        await h.settled()
    ids = {attributes(span).get(tracing.CONVERSATION) for span in spans.all}

    assert len(spans.all) >= 7
    assert len(ids) == 1
    assert None not in ids


async def test_usage_stands_on_the_turn_its_own_and_that_of_the_run_so_far(spans: Spans) -> None:
    async with mock_chat_agent(telling_agent()) as h:
        await h.send_message("hello")
        await h.send_message("hello again")
        await h.settled()
    first, second = (attributes(spans.one(f"chat turn {n}")) for n in (1, 2))

    name = "total_tokens"
    assert first[f"gen_ai.usage.{name}"] == first[f"gen_ai.usage.cumulative_{name}"] > 0
    assert second[f"gen_ai.usage.cumulative_{name}"] == (
        first[f"gen_ai.usage.{name}"] + second[f"gen_ai.usage.{name}"]
    )
    assert (first["turn.number"], second["turn.number"]) == (1, 2)
    assert second["gen_ai.response.finish_reasons"] == ("stop",)


async def test_boot_and_waits_are_spans_of_their_own(spans: Spans) -> None:
    async with mock_chat_agent(telling_agent()) as h:
        await h.send_message("hello")
        await h.settled()
        await h.crash()
        await h.restart()
        await h.send_message("hello again")
        await h.settled()
    boots = [attributes(span) for span in spans.all if span.name == "chat.boot"]

    assert "waiting for next message" in spans.names
    assert boots[-1]["chat.boot.snapshot.count"] == 2
    for read in ("snapshot", "replay.out", "replay.in"):
        assert boots[-1][f"chat.boot.{read}.duration_ms"] >= 0
        assert boots[-1][f"chat.boot.{read}.count"] >= 0


async def test_a_turn_that_fails_is_a_span_with_an_error(spans: Spans) -> None:
    @chat.agent("failing")
    async def agent(turn: chat.Turn[Any]) -> Any:
        raise RuntimeError("no")

    async with mock_chat_agent(agent) as h:
        await h.send_message("hello")
        await h.settled()
    turn = spans.one("chat turn 1")

    assert turn.status.status_code is trace.StatusCode.ERROR
    assert [event.name for event in turn.events] == ["exception"]


async def test_an_action_is_a_span_that_is_no_turn(spans: Spans) -> None:
    agent = telling_agent()

    @agent.on_action
    async def act(event: Any) -> None:
        pass

    async with mock_chat_agent(agent) as h:
        await h.send_action({"do": "it"})
        await h.settled()

    assert spans.ancestors("on_action") == ["chat action"]
    assert "turn.number" not in attributes(spans.one("chat action"))


async def test_compaction_is_a_span_of_the_turn_it_happens_in(spans: Spans) -> None:
    compaction = Compaction(should_compact=lambda event: True, summarize=lambda event: "short")
    async with mock_chat_agent(telling_agent(compaction=compaction)) as h:
        await h.send_message("hello")
        await h.settled()

    assert spans.ancestors("context compaction") == ["chat turn 1"]
    assert attributes(spans.one("context compaction"))["compaction.source"] == "outer"


async def test_messages_that_join_a_turn_are_a_span_of_it(spans: Spans) -> None:
    steering = PendingMessages(should_inject=lambda batch: True)
    agent = telling_agent(pending_messages=steering)

    @agent.on_turn_start
    async def more(event: Any) -> None:
        if event.turn == 0:
            await h.post_message("and this")

    async with mock_chat_agent(agent) as h:
        await h.send_message("hello")
        await h.settled()

    assert spans.ancestors("pending message injected") == ["stream response", "chat turn 1"]


async def test_the_model_librarys_own_spans_hang_under_the_turn(spans: Spans) -> None:
    provider = trace.get_tracer_provider()
    settings = InstrumentationSettings(tracer_provider=provider)

    @chat.agent("instrumented")
    async def agent(turn: chat.Turn[Any]) -> Any:
        model = Agent(offline_model(delay_ms=0), capabilities=[Instrumentation(settings=settings)])

        @model.tool_plain
        def look_up() -> str:
            return "cold"

        return turn.stream(model)

    async with mock_chat_agent(agent) as h:
        await h.send_message("look up")
        await h.settled()
    tool = next(name for name in spans.names if "look_up" in name)
    above = spans.ancestors(tool)
    model_spans = [span for span in spans.all if span.name.startswith(("chat offline", "invoke"))]

    assert above[-2:] == ["stream response", "chat turn 1"]
    assert len(model_spans) == 3
    chat_id = attributes(spans.one("chat turn 1"))[tracing.CONVERSATION]
    assert {attributes(span)[tracing.CONVERSATION] for span in model_spans} == {chat_id}


async def test_a_tool_of_ours_has_one_span_also_when_the_library_is_instrumented(
    spans: Spans,
) -> None:
    settings = InstrumentationSettings(tracer_provider=trace.get_tracer_provider())

    @chat.agent("both", tools=telling_agent().options.tools)
    async def agent(turn: chat.Turn[Any]) -> Any:
        model = Agent(offline_model(delay_ms=0), capabilities=[Instrumentation(settings=settings)])
        return turn.stream(model, tools=turn.tools)

    async with mock_chat_agent(agent) as h:
        await h.send_message("look up Oslo")
        await h.settled()

    assert sum("look_up" in name for name in spans.names) == 1


async def test_turns_of_an_authors_loop_are_spans_with_their_streams_under_them(
    spans: Spans,
) -> None:
    @chat.custom_agent("looping")
    async def agent(payload: Any) -> None:
        async with chat.create_session(payload) as session:
            async for turn in session:
                await turn.complete(turn.stream(Agent(offline_model(delay_ms=0))))

    async with mock_chat_agent(agent) as h:
        await h.send_message("hello")
        await h.send_message("hello again")
        await h.settled()

    turns = [span for span in spans.all if span.name.startswith("chat turn")]
    streams = [span for span in spans.all if span.name == "stream response"]
    assert [span.name for span in turns] == ["chat turn 1", "chat turn 2"]
    assert [span.parent.span_id for span in streams if span.parent is not None] == [
        span.context.span_id for span in turns if span.context is not None
    ]
    assert attributes(turns[0])["gen_ai.usage.total_tokens"] > 0


async def test_what_people_and_models_say_is_on_no_span_of_ours(spans: Spans) -> None:
    async with mock_chat_agent(telling_agent()) as h:
        await h.send_message("my secret 4711, look up Oslo")
        await h.settled()

    said = " ".join(str(attributes(span)) + str(span.events) for span in spans.all)
    assert "4711" not in said
    assert "cold" not in said


async def test_without_an_sdk_a_span_is_no_object_and_costs_next_to_nothing() -> None:
    run: Any = None  # not even looked at

    assert tracing.span(run, "one") is tracing.span(run, "another")
