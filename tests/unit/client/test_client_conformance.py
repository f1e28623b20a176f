"""Clauses between a client and the server that no other test names."""

from __future__ import annotations

import httpx2
import msgspec
import pytest
from client_stage import KEY, URL, Stage, text

from everturn.client import sessions
from everturn.protocol.records import ChannelName, NewRecord, data_body

pytestmark = pytest.mark.anyio


async def started(stage: Stage) -> str:
    await stage.api.create_session(
        {
            "type": "chat.agent",
            "externalId": "c/1",
            "taskIdentifier": "agent",
            "triggerConfig": {"basePayload": {"chatId": "c/1", "trigger": "preload"}},
        }
    )
    return "c/1"


async def test_a_part_that_was_delivered_is_not_delivered_again(stage: Stage) -> None:
    """R-004: a writer that tried twice under other store keys is still heard once."""
    chat = await started(stage)
    channel = ChannelName(stage.system.environment.id, chat, "out")
    body = data_body(msgspec.json.encode({"type": "data-n", "data": 1}), "p1")
    for key in ("first try", "second try"):
        await stage.system.services.streams.append(channel, [NewRecord(body, (), key)])
    await stage.write(chat, [{"type": "data-n", "data": 2}])

    handle = sessions.open(chat, api=stage.api)
    seen: list[int] = []
    async for chunk in handle.out.read():
        seen.append(chunk["data"])
        if chunk["data"] == 2:
            break
    assert seen == [1, 2]


async def test_no_header_of_an_append_reaches_the_run(stage: Stage) -> None:
    """R-222: only the key and the part id are read."""
    chat = await started(stage)
    headers = {
        "Authorization": f"Bearer {KEY}",
        "X-Part-Id": "mine",
        "X-Secret": "do not pass this on",
        "trigger-control": "turn-complete",
        "Cookie": "session=1",
    }
    async with httpx2.AsyncClient(transport=stage.transport, base_url=URL) as http:
        path = "/realtime/v1/sessions/c%2F1/in/append"
        answer = await http.post(path, content='{"kind":"stop"}', headers=headers)
    assert answer.status_code == 200
    channel = ChannelName(stage.system.environment.id, chat, "in")
    (record,) = await stage.system.services.streams.read(channel, after=None)
    assert record.headers == ()
    assert b"pass this on" not in record.body
    assert b"session=1" not in record.body


async def test_a_reader_passes_over_records_that_are_none_of_its_business(stage: Stage) -> None:
    """R-003: controls known and unknown, and trims; the cursor passes them all."""
    chat = await started(stage)
    await stage.write(chat, text("a"))
    await stage.api.write_records(
        chat, [{"control": "turn-complete"}, {"control": "something-new"}, {"trim": 0}]
    )
    await stage.write(chat, [{"type": "data-last", "data": 1}])

    handle = sessions.open(chat, api=stage.api)
    kinds: list[str] = []
    async for chunk in handle.out.read():
        kinds.append(chunk["type"])
        if chunk["type"] == "data-last":
            break
    assert kinds == [*(chunk["type"] for chunk in text("a")), "data-last"]
