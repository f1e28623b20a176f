"""`AgentChat` whose answer was trimmed before it was read: other clients had the next turns done."""

from __future__ import annotations

from typing import Any

import anyio
import httpx2
import pytest
from client_stage import Stage, text

from everturn import AgentChat, auth
from everturn.client.api import Api
from everturn.client.follow import Follower
from everturn.protocol.records import ChannelName, trim_record

pytestmark = pytest.mark.anyio


async def trim(stage: Stage, before: int) -> None:
    """As the agent does at the end of each turn."""
    channel = ChannelName(stage.system.environment.id, "c/1", "out")
    await stage.system.services.streams.append(channel, [trim_record(before)])


async def test_an_answer_that_was_trimmed_before_its_first_read_is_read_whole(
    stage: Stage,
) -> None:
    """P-3: an empty answer would pass for what the agent said."""
    stored, released = anyio.Event(), anyio.Event()
    said: list[str] = []

    async def late(prepared: Any, context: Any, send: Any) -> httpx2.Response:
        response: httpx2.Response = await send(prepared)
        if context.endpoint == "in" and prepared.method == "POST":
            stored.set()
            await released.wait()
        return response

    mine = AgentChat("agent", "c/1", api=stage.api, request=late)

    async def ask() -> None:
        stream = await mine.send_message("one")
        said.append(await stream.text())
        assert stream.complete

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await stored.wait()
        end = await stage.answer("c/1", 0, "1")
        await AgentChat("agent", "c/1", api=stage.api).send_message("two")
        await stage.answer("c/1", 1, "2")
        await trim(stage, end)
        released.set()
    assert said == ["1"]


async def test_an_answer_whose_middle_was_trimmed_is_read_whole(stage: Stage) -> None:
    """The connection broke after its beginning, and came back when the log began behind it."""
    broken, back = anyio.Event(), anyio.Event()
    chunks = text("a", "b")

    async def request(prepared: Any, context: Any, send: Any) -> httpx2.Response:
        if context.endpoint == "out" and broken.is_set():
            await back.wait()
        response: httpx2.Response = await send(prepared)
        return response

    mine = AgentChat("agent", "c/1", api=stage.api, request=request)
    stream = await mine.send_message("one")
    await stage.write("c/1", chunks[:4])
    reading = aiter(stream)
    assert [await anext(reading) for _ in range(4)] == chunks[:4]

    broken.set()
    stage.transport.cut()
    await stage.answer_rest("c/1", chunks[4:], 0)
    await AgentChat("agent", "c/1", api=stage.api).send_message("two")
    await stage.answer("c/1", 1, "2")
    await trim(stage, 8)
    back.set()
    assert [chunk async for chunk in reading] == chunks[4:]
    assert stream.complete


async def test_a_reader_that_needs_not_every_record_goes_on_where_the_log_begins(
    stage: Stage,
) -> None:
    await AgentChat("agent", "c/1", api=stage.api).send_message("one")
    end = await stage.answer("c/1", 0, "1")
    await trim(stage, end)
    for whole, first in ((False, end), (True, 0)):
        async with Follower(stage.api, "c/1", whole=whole) as follower:
            record = await anext(follower)
        assert record.seq_num == first


async def test_a_token_that_may_not_read_what_is_trimmed_reads_what_is_left(stage: Stage) -> None:
    """Only secret keys may (rulings §1.17); to fail for it would lose the rest as well."""
    await AgentChat("agent", "c/1", api=stage.api).send_message("one")
    end = await stage.answer("c/1", 0, "1")
    await trim(stage, end)
    token = await auth.create_public_token(["read:sessions:c/1"], api=stage.api)
    api = Api(stage.api.target._replace(secret_key=token))
    async with Follower(api, "c/1", whole=True) as follower:
        assert (await anext(follower)).seq_num == end
