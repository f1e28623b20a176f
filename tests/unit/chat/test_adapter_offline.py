"""The offline model: an answer that depends on the conversation only."""

from __future__ import annotations

import pytest
from pydantic_ai import Agent

from everturn.chat.adapters.offline import _delay_ms, offline_model

pytestmark = pytest.mark.anyio


async def test_it_repeats_the_question_and_names_the_turn() -> None:
    agent = Agent(offline_model(delay_ms=0))
    first = await agent.run("hello there")
    second = await agent.run("and again", message_history=first.all_messages())

    assert "'hello there'" in first.output
    assert "turn 1" in first.output
    assert "'and again'" in second.output
    assert "turn 2" in second.output


async def test_it_streams_word_by_word_what_it_says_at_once() -> None:
    agent = Agent(offline_model(delay_ms=0))
    async with agent.run_stream("hello") as result:
        words = [word async for word in result.stream_text(delta=True, debounce_by=None)]
    whole = await agent.run("hello")

    assert len(words) > 10
    assert "".join(words) == whole.output


@pytest.mark.parametrize("question", ["what time is it?", "call current_time", "the current time"])
async def test_it_calls_a_declared_tool_once_when_the_question_names_it(question: str) -> None:
    agent = Agent(offline_model(delay_ms=0))
    calls = []

    @agent.tool_plain
    def current_time() -> str:
        calls.append(1)
        return "noon"

    result = await agent.run(question)

    assert calls == [1]
    assert "current_time says noon" in result.output


async def test_it_calls_nothing_that_is_not_declared() -> None:
    result = await Agent(offline_model(delay_ms=0)).run("what time is it?")

    assert "You said" in result.output


@pytest.mark.parametrize(
    ("setting", "delay"), [(None, 30), ("0", 0), ("12.5", 12.5), ("-4", 0), ("soon", 30)]
)
def test_its_pace_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, delay: float
) -> None:
    monkeypatch.delenv("EVERTURN_OFFLINE_DELAY_MS", raising=False)
    if setting is not None:
        monkeypatch.setenv("EVERTURN_OFFLINE_DELAY_MS", setting)

    assert _delay_ms() == delay
