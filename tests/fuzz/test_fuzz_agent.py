"""An agent that is sent anything at all answers each message or says that it cannot, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from fuzz_targets import EXAMPLES, inputs, json_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.protocol.records import TURN_COMPLETE, Record, parse_input
from everturn.tasks import registry
from everturn.testing.harness import ChatHarness, mock_chat_agent
from everturn.testing.virtual_loop import run_virtual

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=EXAMPLES <= 150,
)


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


@pytest.fixture
def agent() -> ChatAgent[Any]:
    @chat.agent("echo")
    async def echo(turn: Any) -> str:
        return f"echo: {turn.text}"

    return echo


_payloads = st.fixed_dictionaries(
    {},
    optional={
        "trigger": st.sampled_from(
            ["submit-message", "regenerate-message", "action", "close", "preload", "nothing"]
        )
        | json_values,
        "message": json_values
        | st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "x"])},
            optional={"id": json_values, "parts": st.lists(json_values, max_size=3)},
        ),
        "messages": json_values,
        "metadata": json_values,
        "action": json_values,
        "messageId": json_values,
        "chatId": json_values,
        "targetSeq": json_values,
    },
)
_chunks = (
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["message", "stop", "handover", "handover-skip", "x"])},
        optional={
            "payload": _payloads | json_values,
            "message": json_values,
            "targetSeq": st.integers(-2, 5) | json_values,
            "partialAssistantMessage": json_values,
        },
    )
    .map(msgspec.json.encode)
    .map(bytes.decode)
)
_texts = _chunks | inputs.map(lambda data: data.decode("utf-8", "replace"))


def play(work: Callable[[], Any]) -> None:
    """In virtual time: nothing here waits for a clock."""
    run_virtual(work)


async def told(h: ChatHarness, texts: list[str]) -> None:
    for text in texts:
        await h.world.post(text)
    await h._ensure_run()
    await h.settled()


def waits_for_an_answer(records: list[Record]) -> int:
    return sum(parse_input(record).needs_answer for record in records)


@bounded
@given(texts=st.lists(_texts, min_size=1, max_size=5))
def test_whatever_is_appended_the_next_message_is_answered(
    agent: ChatAgent[Any], texts: list[str]
) -> None:
    """P-3, P-8: each record that asks for a turn has one, and none of them spoils the history."""

    async def scene() -> None:
        async with mock_chat_agent(agent) as h:
            await told(h, texts)
            turn = await h.send_message("are you there?")
            assert turn.text == "echo: are you there?", turn.errors
            asked = waits_for_an_answer(await h.records("in"))
            done = [r for r in await h.records("out") if r.control == TURN_COMPLETE]
            assert len(done) == asked

    play(scene)


@bounded
@given(texts=st.lists(_texts, min_size=1, max_size=3))
def test_whatever_was_stored_a_successor_boots_from_it(
    agent: ChatAgent[Any], texts: list[str]
) -> None:
    """P-8: what one run has swallowed does not choke the next."""

    async def scene() -> None:
        async with mock_chat_agent(agent) as h:
            await told(h, texts)
            if h.alive:
                await h.crash()
            turn = await h.send_message("still there?")
            assert turn.text == "echo: still there?", turn.errors

    play(scene)
