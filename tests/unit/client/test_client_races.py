"""`AgentChat` when answers come late, cursors are old and several write to one session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest
from client_stage import Stage, text

from everturn import AgentChat, Signal
from everturn.client.api import Api

pytestmark = pytest.mark.anyio


def chat(stage: Stage, **options: Any) -> AgentChat:
    return AgentChat("agent", "c/1", api=stage.api, **options)


class Counted:
    """An abort signal that tells how many callbacks wait for it."""

    aborted = False

    def __init__(self) -> None:
        self.waiting = 0

    def on_abort(self, callback: Callable[[str], object]) -> Callable[[], None]:
        self.waiting += 1

        def undo() -> None:
            self.waiting -= 1

        return undo


async def test_a_cursor_in_the_middle_of_a_turn_does_not_mix_the_answers_behind_it(
    stage: Stage,
) -> None:
    """Two messages were on their way when the process ended: neither answers the third."""
    gone = chat(stage)
    stream = await gone.send_message("one")
    await gone.send_message("two")
    await stage.write("c/1", text("1", id="m1")[:4])
    async with stream:
        assert (await anext(aiter(stream)))["type"] == "start"

    back = chat(stage, session=gone.session)
    third = await back.send_message("three")
    await stage.answer_rest("c/1", text("1")[4:], 0)
    await stage.answer("c/1", 1, "2")
    await stage.answer("c/1", 2, "3")

    assert await third.text() == "3"


async def test_a_cursor_in_the_middle_of_a_later_turn_finds_the_end_of_the_one_before(
    stage: Stage,
) -> None:
    gone = chat(stage)
    first = await gone.send_message("one")
    await stage.answer("c/1", 0, "1")
    assert await first.text() == "1"
    stream = await gone.send_message("two")
    await gone.send_message("three")
    await stage.write("c/1", text("2")[:4])
    async with stream:
        chunks = aiter(stream)
        for _ in range(3):
            await anext(chunks)

    back = chat(stage, session=gone.session)
    fourth = await back.send_message("four")
    await stage.answer_rest("c/1", text("2")[4:], 1)
    await stage.answer("c/1", 2, "3")
    await stage.answer("c/1", 3, "4")

    assert await fourth.text() == "4"


async def test_what_an_agent_writes_between_turns_does_not_swallow_the_next_answer(
    stage: Stage,
) -> None:
    """Written by a child, or after the turn's end: no turn is under way that could end first."""
    before = chat(stage)
    first = await before.send_message("one")
    await stage.answer("c/1", 0, "1")
    assert await first.text() == "1"
    await stage.write("c/1", [{"type": "data-note", "data": 1}])

    for number, agent in enumerate([chat(stage), chat(stage, session=before.session)], start=1):
        stream = await agent.send_message("again")
        await stage.answer("c/1", number, "ours")
        assert [chunk async for chunk in stream] == text("ours")
        await stage.write("c/1", [{"type": "data-note", "data": 2}])


async def test_an_append_that_was_answered_after_its_turn_had_ended_swallows_nothing(
    stage: Stage,
) -> None:
    """Its first try was stored and the answer lost: the turn may be over before the second."""
    withheld, stored = anyio.Event(), anyio.Event()

    async def slow_to_steer(request: Any, context: Any, send: Any) -> httpx2.Response:
        response: httpx2.Response = await send(request)
        if context.endpoint == "in" and b"steer-" in request.content:
            stored.set()
            await withheld.wait()
        return response

    agent = chat(stage, request=slow_to_steer)
    stream = await agent.send_message("one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent.steer, "faster")
        await stored.wait()
        await stage.answer("c/1", 1, "both")
        assert await stream.text() == "both"
        withheld.set()

    after = await agent.send_message("two")
    await stage.answer("c/1", 2, "2")
    assert await after.text() == "2"


async def test_appends_answered_out_of_order_make_no_message_count_twice(stage: Stage) -> None:
    """The answer to the older one says nothing about the newer one."""
    withheld, stored = anyio.Event(), anyio.Event()

    async def slow_to_stop(request: Any, context: Any, send: Any) -> httpx2.Response:
        response: httpx2.Response = await send(request)
        if context.endpoint == "in" and b'"stop"' in request.content:
            stored.set()
            await withheld.wait()
        return response

    agent = chat(stage, request=slow_to_stop)
    first = await agent.send_message("one")
    await stage.answer("c/1", 0, "1")
    assert await first.text() == "1"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent.stop)
        await stored.wait()
        second = await agent.send_message("two")
        await stage.answer("c/1", 2, "2")
        assert await second.text() == "2"
        withheld.set()

    third = await agent.send_message("three")
    await stage.answer("c/1", 3, "3")
    assert await third.text() == "3"


async def test_a_stream_that_ended_in_silence_lets_go_of_its_signal(stage: Stage) -> None:
    signal = Counted()
    agent = chat(stage, stream_timeout=1)
    stream = await agent.send_message("one", signal=signal)
    assert signal.waiting == 1
    assert await stream.text() == ""

    assert signal.waiting == 0


async def test_a_stop_that_is_due_is_sent_before_reading_on(stage: Stage) -> None:
    agent = chat(stage)
    signal = Signal()
    await agent.send_message("one", signal=signal)
    signal.abort()
    await agent.reconnect()

    assert [chunk["kind"] for _, chunk in await stage.input("c/1")] == ["message", "stop"]


async def test_a_server_that_is_away_after_the_append_does_not_mix_the_answers(
    stage: Stage,
) -> None:
    """P-7: what others wrote is asked for until it is known, and theirs is not shown as ours."""
    away = 3

    async def request(prepared: Any, context: Any, send: Any) -> httpx2.Response:
        nonlocal away
        if prepared.method == "GET" and prepared.url.path.endswith("/in/records") and away:
            away -= 1
            return httpx2.Response(503, request=prepared)
        response: httpx2.Response = await send(prepared)
        return response

    api = Api(stage.api.target, tries=1)
    mine = AgentChat("agent", "c/1", api=api, request=request)
    first = await mine.send_message("one")
    await stage.answer("c/1", 0, "1")
    assert await first.text() == "1"
    await chat(stage).send_message("theirs")
    ours = await mine.send_message("ours")
    assert away == 0
    await stage.answer("c/1", 1, "to them")
    await stage.answer("c/1", 2, "to us")
    assert await ours.text() == "to us"
