"""What readers of an answer see while workers come and go, with real processes.

Whatever happens to the processes behind a chat, its client sees one thing of it: a chunk
`data-restarted`, where an answer that somebody saw the beginning of is given anew.
"""

from __future__ import annotations

import signal

import anyio
import pytest
from conversation import Conversations

from everturn.chat.ui_messages import text_of
from everturn.client.agent_chat import AgentChat, ChatSessionState, TurnCompleted
from everturn.client.chat_stream import ChatResult, ChatStream
from everturn.protocol.records import RESTARTED_CHUNK
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

WORDS = "".join(f"w{word} " for word in range(40))
PLAIN = {
    "start",
    "start-step",
    "text-start",
    "text-delta",
    "text-end",
    "finish-step",
    "finish",
}


class Readers:
    """One answer, read in all four ways at once."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.chunks: list[dict] = []
        self.text = ""
        self.result = ChatResult(text="")
        self.snapshots: list[dict] = []
        self.under_way = anyio.Event()

    async def _stream(self) -> ChatStream:
        chat = AgentChat("slow", self.session, session=ChatSessionState())
        stream = await chat.reconnect()
        assert stream is not None
        return stream

    async def read_chunks(self) -> None:
        async for chunk in await self._stream():
            self.chunks.append(chunk)

    async def read_text(self) -> None:
        self.text = await (await self._stream()).text()

    async def read_result(self) -> None:
        self.result = await (await self._stream()).result()

    async def read_messages(self) -> None:
        async for snapshot in (await self._stream()).messages():
            self.snapshots.append(snapshot)
            if "w5 " in text_of(snapshot):
                self.under_way.set()


async def test_what_a_dead_attempt_wrote_counts_for_no_reader(
    conversations: Conversations,
) -> None:
    """Rulings §1.6: every chunk is delivered, and the answer is what history holds."""
    await AgentChat("slow", "read").send_message("tell me")
    readers = Readers("read")
    async with anyio.create_task_group() as tasks:
        for read in (
            readers.read_chunks,
            readers.read_text,
            readers.read_result,
            readers.read_messages,
        ):
            tasks.start_soon(read)
        await readers.under_way.wait()
        await conversations.restart_worker()
    (turn,) = await conversations.settled("read", 1)

    assert turn.restarts == 1
    assert readers.text == readers.result.text == WORDS
    assert readers.result.message == readers.snapshots[-1]
    assert text_of(readers.snapshots[-1]) == WORDS
    assert len({snapshot["id"] for snapshot in readers.snapshots}) == 1
    assert {"id": readers.snapshots[0]["id"], "role": "assistant", "parts": []} in (
        readers.snapshots
    )
    assert {chunk["type"] for chunk in readers.chunks} == {*PLAIN, RESTARTED_CHUNK}
    said = [chunk["delta"] for chunk in readers.chunks if chunk["type"] == "text-delta"]
    assert said[-40:] == WORDS.replace(" ", " \n").splitlines()
    assert len(said) > 45


async def test_a_worker_that_is_drained_between_two_turns_is_not_noticed(
    system: System, conversations: Conversations
) -> None:
    ends: list[TurnCompleted] = []
    async with AgentChat("echo", "idle", on_turn_complete=ends.append) as chat:
        first = await chunks(await chat.send_message("one"))
        await conversations.in_thread(system.workers[0].stop)
        stream = await chat.send_message("two")  # nobody is there to answer it
        await conversations.in_thread(system.start_worker)
        second = await chunks(stream)
    assert stream.complete
    assert stream.error is None
    assert [chunk["type"] for chunk in first] == [chunk["type"] for chunk in second]
    assert {chunk["type"] for chunk in second} == PLAIN
    assert len(ends) == 2
    await conversations.settled("idle", 2)


async def test_a_turn_its_worker_had_to_leave_shows_that_it_begins_anew_and_nothing_else(
    system: System, conversations: Conversations
) -> None:
    ends: list[TurnCompleted] = []
    chat = AgentChat("slow", "left", on_turn_complete=ends.append)
    stream = await chat.send_message("tell me")
    seen: list[dict] = []
    async for chunk in stream:
        seen.append(chunk)
        if chunk.get("delta") == "w5 " and len(system.workers) == 1:
            await conversations.in_thread(system.start_worker)
            system.workers[0].signal(signal.SIGTERM)
            system.workers[0].signal(signal.SIGINT)
    assert stream.complete
    assert stream.error is None
    assert {chunk["type"] for chunk in seen} == {*PLAIN, RESTARTED_CHUNK}
    assert sum(chunk["type"] == "finish" for chunk in seen) == 1
    assert len(ends) == 1
    after = seen[[chunk["type"] for chunk in seen].index(RESTARTED_CHUNK) + 1 :]
    assert "".join(chunk.get("delta", "") for chunk in after) == WORDS
    await conversations.settled("left", 1)
    assert await conversations.ask(chat, "short") == "short"


async def chunks(stream: ChatStream) -> list[dict]:
    return [chunk async for chunk in stream]
