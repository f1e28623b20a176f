"""What an author chooses in `on_recovery_boot`, and what readers see of it (§2.3, P-3).

A message is answered by one turn, or fails visibly: also the one that the hook leaves out, and the
one that a lost run had half answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.chat.policy import CUT_OFF, DROPPED
from everturn.tasks import registry
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return ["".join(p.get("text", "") for p in m["parts"]) for m in messages]


def half_answering() -> tuple[ChatAgent[Any], list[list[str]]]:
    """An agent that hangs in the middle of its first answer; and the history of each turn."""
    lanes: list[list[str]] = []

    @chat.agent("half")
    async def half(turn: Any) -> Any:
        lanes.append(texts(turn.ui_messages))
        yield f"half {turn.text}"
        if len(lanes) == 1:
            await anyio.sleep_forever()
        yield " whole"

    return half, lanes


async def killed_in_its_first_answer(h: ChatHarness, *messages: str) -> None:
    for message in messages:
        await h.post_message(message)
    await anyio.wait_all_tasks_blocked()
    await h.crash()


def wanting(*wanted: str, chain: bool = False) -> Any:
    """The hook that keeps the messages of these texts, and the settled chain if it is told to."""

    def recovery(event: chat.RecoveryBootEvent) -> chat.RecoveryOverrides:
        return chat.RecoveryOverrides(
            chain=event.settled_messages if chain else None,
            recovered_turns=[m for m in event.in_flight_users if m.text in wanted],
        )

    return recovery


async def endings(h: ChatHarness) -> list[tuple[int | None, list[str], str]]:
    """`(committed number, errors, text)` of each turn that readers have seen the end of."""
    return [(t.cursor.seq_num, t.errors, t.text) for t in await h.turns()]


@pytest.mark.parametrize("attempt", [None, 2], ids=["a continuation", "the next attempt"])
async def test_a_message_that_the_hook_drops_fails_visibly(attempt: int | None) -> None:
    """P-3, R-119: nobody waits for an answer that will not come, and none comes later."""
    agent, lanes = half_answering()
    agent.on_recovery_boot(wanting(chain=True))
    async with mock_chat_agent(agent) as h:
        await killed_in_its_first_answer(h, "m1", "m2")
        await h.restart(attempt)
        await h.settled()
        seen = await endings(h)
        await h.send_message("m3")
        after = await endings(h)
    # A continuation never answers m1 again: what it was told ends with the next turn-complete.
    own_end = [] if attempt is None else [(0, [DROPPED], "half m1")]
    assert seen == [*own_end, (1, [DROPPED], "" if own_end else "half m1")]
    assert lanes[1:] == [["m3"]]
    assert [number for number, _, _ in after[len(seen) :]] == [2]


async def test_messages_are_dropped_and_answered_in_the_order_they_came_in() -> None:
    """A reader that takes the next turn-complete for its own is not told of another's."""
    agent, _ = half_answering()
    agent.on_recovery_boot(wanting("m1", "m3"))
    async with mock_chat_agent(agent) as h:
        await killed_in_its_first_answer(h, "m1", "m2", "m3")
        await h.restart(attempt=2)
        await h.settled()
        seen = await endings(h)
    assert [(number, errors) for number, errors, _ in seen] == [(0, []), (1, [DROPPED]), (2, [])]


@pytest.mark.parametrize("on_busy", ["queue", "steer", "latest", "reject"])
async def test_a_message_policy_takes_no_dropped_message_for_one_that_waits(on_busy: Any) -> None:
    """Neither into another turn, nor in place of one, nor as what the chat is busy with."""
    library = Agent(TestModel(custom_output_text="whole"))
    hung: list[str] = []

    async def hanging() -> Any:
        yield "half"
        await anyio.sleep_forever()

    @chat.agent("half", on_busy=on_busy)
    async def half(turn: Any) -> Any:
        hung.append(turn.text)
        return hanging() if len(hung) == 1 else turn.stream(library, **chat.run_options())

    half.on_recovery_boot(wanting("m2", chain=True))
    async with mock_chat_agent(half) as h:
        await killed_in_its_first_answer(h, "m1")
        await h.seed_in("m2", "m3")
        await h.restart(attempt=2)
        await h.settled()
        seen = await endings(h)
    assert seen == [(0, [DROPPED], "half"), (1, [], "whole"), (2, [DROPPED], "")]


async def test_a_dropped_message_stays_out_of_history_after_a_crash_at_any_point() -> None:
    """Rulings §1.13: what the author chose is stored before the record that commits it."""
    agent, lanes = half_answering()
    agent.on_recovery_boot(wanting(chain=True))
    async with mock_chat_agent(agent) as h:
        await killed_in_its_first_answer(h, "m1")
        await h.restart(attempt=2)
        await h.reached(lambda: "TC" in h.timeline)
        await h.crash()
        await h.restart()
        await h.settled()
        await h.send_message("m2")
    assert h.timeline.index("SN") < h.timeline.index("TC")
    assert lanes[1:] == [["m2"]]


async def test_a_message_half_answered_by_a_lost_run_fails_visibly_with_what_it_was_told() -> None:
    """P-3, P-8, R-114: where the server has not closed it, the continuation does."""
    agent, lanes = half_answering()
    async with mock_chat_agent(agent) as h:
        await killed_in_its_first_answer(h, "m1")
        await h.restart()
        await h.settled()
        seen = await endings(h)
        await h.send_message("m2")
    assert seen == [(0, [CUT_OFF], "half m1")]
    assert lanes[1:] == [["m1", "half m1", "m2"]]


async def test_a_half_answered_message_that_the_hook_wants_is_answered_again() -> None:
    """It keeps its record and its client data, so that a crash in its turn finds it open."""
    agent, lanes = half_answering()
    agent.on_recovery_boot(wanting("m1", "m2", chain=True))
    async with mock_chat_agent(agent) as h:
        await killed_in_its_first_answer(h, "m1", "m2")
        await h.restart()
        await h.settled()
        turns = await h.turns()
        first = (await h.all_chunks())[0]["messageId"]
    assert [t.cursor.seq_num for t in turns] == [0, 1]
    assert [t.errors for t in turns] == [[], []]
    assert [c["type"] for c in turns[0].chunks].count("data-restarted") == 1
    assert turns[0].message["id"] == first
    assert lanes[1:] == [["m1"], ["m1", "half m1 whole", "m2"]]
