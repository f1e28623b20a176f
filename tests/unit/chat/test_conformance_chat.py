"""Clauses of the chat agent that no other test names."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from talkers import Chat, Dying, texts

from everturn import chat
from everturn.protocol.records import open_envelope
from everturn.testing import scripted_model
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


def user(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


async def test_end_marks_of_streams_and_libraries_are_never_stored() -> None:
    """R-019: neither what a model stream ends with, nor what an author passes on."""
    model = Agent(scripted_model(["hello"]))

    @chat.agent("modelled")
    async def modelled(turn: Any) -> Any:
        return turn.stream(model)

    @chat.agent("foreign")
    async def foreign(turn: Any) -> Any:
        yield {"type": "start"}
        yield {"type": "done"}

    for agent in (modelled, foreign):
        async with mock_chat_agent(agent) as h:
            await h.send_message("hi")
            opened = [open_envelope(r.body) for r in await h.records() if r.is_data]
        kinds = [found[0]["type"] for found in opened if found is not None]
        assert len(kinds) == len(opened)
        assert not {"done", "[DONE]"} & set(kinds)


async def test_a_preloaded_run_says_so_on_every_turn_and_its_successor_does_not() -> None:
    """R-029."""
    seeing = Chat()
    async with mock_chat_agent(seeing.agent, mode="preload") as h:
        await h.send_message("one")
        await h.send_message("two")
        assert [turn.preloaded for turn in seeing.turns] == [True, True]
        await h.settled()
        await h.drain()
        await h.send_message("three")
    assert not seeing.turns[-1].preloaded
    assert seeing.turns[-1].continuation


async def test_the_friendly_session_id_is_known_on_every_turn() -> None:
    """R-063, D-16."""
    seeing = Chat()
    async with mock_chat_agent(seeing.agent) as h:
        await h.send_message("one")
        await h.send_message("two")
    assert [turn.session_id for turn in seeing.turns] == ["session_test"] * 2


@pytest.mark.parametrize("lands", ["before boot reads", "after boot has read"])
async def test_the_message_that_starts_a_continuation_is_answered_once(lands: str) -> None:
    """R-033: the tail read and the live tail both bring it, and never both."""
    seeing = Chat()
    async with mock_chat_agent(seeing.agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.drain()
        if lands == "before boot reads":
            await h.seed_in("m2")
        else:

            @seeing.agent.on_boot
            async def booted(event: Any) -> None:
                await h.seed_in("m2")

        await h.restart()
        await h.settled()
        turns = await h.turns()
    assert [turn.text for turn in turns] == ["re m1", "re m2"]
    assert [turn.cursor.seq_num for turn in turns] == [0, 1]


async def test_tools_that_cannot_be_chosen_fail_the_turn_and_no_boot() -> None:
    """R-035: whoever boots with a history converts it without them."""
    broken: list[bool] = []

    def tools(event: Any) -> list[Any]:
        if broken:
            raise ValueError("no tools today")
        return []

    seeing = Chat(tools=tools)
    async with mock_chat_agent(seeing.agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.drain()
        broken.append(True)
        await h.restart()
        await h.settled()
        assert h.alive
        failed = await h.send_message("m2")
        broken.clear()
        again = await h.send_message("m3")
    assert failed.errors == ["no tools today"]
    assert again.text == "re m3"
    assert seeing.lanes[-1] == ["m1", "re m1", "m2", "m3"]


async def test_prepare_changes_what_the_model_gets_and_nothing_that_clients_see() -> None:
    """R-045."""
    got: list[int] = []
    reasons: list[str] = []

    @chat.agent("prepared")
    async def prepared(turn: Any) -> str:
        got.append(len(turn.messages))
        return "ok"

    @prepared.prepare_messages
    def nothing_old(event: Any) -> Any:
        reasons.append(event.reason)
        return event.messages[-1:]

    async with mock_chat_agent(prepared) as h:
        await h.send_message("m1")
        await h.send_message("m2")
        await h.settled()
        shown = h.event("on_turn_complete") if "on_turn_complete" in h.hook_calls else None
        snapshot = await h.get_snapshot()
    assert (got, reasons, shown) == ([1, 1], ["run", "run"], None)
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["m1", "ok", "m2", "ok"]


async def test_running_out_of_memory_fails_the_run_and_the_chat_goes_on() -> None:
    """R-112."""
    fails = [True]

    @chat.agent("hungry")
    async def hungry(turn: Any) -> str:
        if fails and fails.pop():
            raise MemoryError
        return f"ok {turn.text}"

    async with mock_chat_agent(hungry) as h:
        await h.post_message("m1")
        await h.reached(lambda: not h.alive)
        assert [how for _, how in h.outcomes] == ["failed"]
        await h.post_message("m2")
        await h.settled()
        turns = await h.turns()
    assert [turn.text for turn in turns] == ["ok m1", "ok m2"]


@pytest.mark.parametrize("lands", ["long after", "after boot has read"])
async def test_a_message_after_a_death_finds_the_partial_whenever_it_comes(lands: str) -> None:
    """R-115: the chain of R-114. Without m2 the boot itself says that m1 was cut off (P-3)."""
    dying = Dying()
    async with mock_chat_agent(dying.agent) as h:
        await h.post_message("m1")
        await h.reached(lambda: dying.hung)
        await anyio.wait_all_tasks_blocked()
        await h.crash()
        if lands == "long after":
            await h.advance(86_400)
            await h.post_message("m2")
        else:

            @dying.agent.on_boot
            async def booted(event: Any) -> None:
                await h.seed_in("m2")

            await h.restart()
        await h.settled()
        *cut_off, turn = await h.turns()
    assert dying.lanes[-1] == ["m1", "half m1", "m2"]
    assert [end.cursor.seq_num for end in cut_off] == ([] if lands == "long after" else [0])
    assert turn.cursor.seq_num == 1


async def test_a_message_that_is_recovered_and_in_the_boot_payload_runs_once() -> None:
    """R-124."""
    seeing = Chat()
    message = user("m1", "u1")
    async with mock_chat_agent(seeing.agent, start=False) as h:
        await h.seed_in(message)
        await h.start(
            payload={"continuation": True, "trigger": "submit-message", "message": message}
        )
        await h.settled()
        await h.send_message("m2")
    assert seeing.lanes == [["m1"], ["m1", "re m1", "m2"]]
