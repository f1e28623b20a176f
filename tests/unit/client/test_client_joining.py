"""A message that joins the turn of another: what its sender reads (chat-agent §4.5, §5; P-3)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from client_stage import Stage, text

from everturn import AgentChat

pytestmark = pytest.mark.anyio


def chat(stage: Stage) -> AgentChat:
    return AgentChat("agent", "c/1", api=stage.api)


async def message_id(stage: Stage, seq: int) -> str:
    sent = dict(await stage.input("c/1"))
    return str(sent[seq]["payload"]["message"]["id"])


def marker(*ids: str) -> dict[str, Any]:
    return {"type": "data-pending-message-injected", "id": "j", "data": {"messageIds": list(ids)}}


def step(delta: str) -> list[dict[str, Any]]:
    """A step in the middle of an answer."""
    return [chunk for chunk in text(delta) if chunk["type"] not in ("start", "finish")]


START = {"type": "start", "messageId": "m1"}
FINISH = {"type": "finish"}


@pytest.mark.parametrize("by", ["another device", "itself"])
@pytest.mark.parametrize("begun", [True, False], ids=["after it began", "before it began"])
async def test_who_joins_a_turn_reads_it_from_there_on(stage: Stage, by: str, begun: bool) -> None:
    """One turn answers both, and neither reader is left without an answer."""
    first_device = chat(stage)
    first = await first_device.send_message("one")
    other = first_device if by == "itself" else chat(stage)
    if begun:
        await stage.write("c/1", [START, *step("before ")])
    second = await other.send_message("two")
    if not begun:
        await stage.write("c/1", [START, *step("before ")])
    await stage.write("c/1", [marker(await message_id(stage, 1)), *step("after"), FINISH])
    await stage.finish("c/1", 1)

    result = await second.result()
    assert (result.text, result.complete, result.error) == ("after", True, None)
    assert result.message is not None
    assert result.message["id"] == "m1"
    assert await first.text() == "before after"
    third = await other.send_message("three")
    await stage.answer("c/1", 2, "3")
    assert await third.text() == "3"


async def test_what_another_message_joins_is_not_shown_to_this_one(stage: Stage) -> None:
    await chat(stage).send_message("one")
    await chat(stage).send_message("two")
    third = await chat(stage).send_message("three")
    await stage.write("c/1", [START, marker(await message_id(stage, 1)), *step("12"), FINISH])
    await stage.finish("c/1", 1)
    await stage.answer("c/1", 2, "3")

    assert await third.text() == "3"


async def test_a_turn_that_is_answered_anew_is_joined_anew(stage: Stage) -> None:
    """What the dead attempt said after the joining does not count, nor what comes before it now."""
    await chat(stage).send_message("one")
    second = await chat(stage).send_message("two")
    joined = marker(await message_id(stage, 1))
    again = {"type": "data-restarted", "data": {}}
    await stage.write("c/1", [START, joined, *step("lost"), again, START, *step("before ")])
    await stage.write("c/1", [joined, *step("after"), FINISH])
    await stage.finish("c/1", 1)

    result = await second.result()
    assert (result.text, result.complete) == ("after", True)


async def test_a_message_that_had_joined_a_lost_attempt_may_get_its_own_turn(stage: Stage) -> None:
    await chat(stage).send_message("one")
    second = await chat(stage).send_message("two")
    joined, again = marker(await message_id(stage, 1)), {"type": "data-restarted", "data": {}}
    await stage.write("c/1", [START, joined, *step("lost"), again, START, *step("1"), FINISH])
    await stage.finish("c/1", 0)
    await stage.answer("c/1", 1, "2")

    assert await second.text() == "2"


async def test_a_message_that_had_joined_a_turn_that_failed_is_shown_its_own_answer_only(
    stage: Stage,
) -> None:
    """The server ended the turn for the message it began with, and said nothing of the other."""
    await chat(stage).send_message("one")
    second = await chat(stage).send_message("two")
    joined, failed = marker(await message_id(stage, 1)), {"type": "error", "errorText": "crashed"}
    await stage.write("c/1", [START, joined, *step("half"), failed])
    await stage.finish("c/1", 0)
    await stage.answer("c/1", 1, "2")

    result = await second.result()
    assert (result.text, result.error, result.complete) == ("2", None, True)


async def test_messages_of_a_joined_turn_grow_from_the_joining_on(stage: Stage) -> None:
    """`messages()` needs a beginning: the `start` that was skipped."""
    await chat(stage).send_message("one")
    second = await chat(stage).send_message("two")
    shown: list[dict[str, Any]] = []
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            shown.extend([message async for message in second.messages()])

        tasks.start_soon(read)
        await stage.write("c/1", [START, *step("before"), marker(await message_id(stage, 1))])
        await stage.write("c/1", [*step("after"), FINISH])
        await stage.finish("c/1", 1)

    assert {message["id"] for message in shown} == {"m1"}
    assert [part["text"] for part in shown[-1]["parts"] if part["type"] == "text"] == ["after"]
