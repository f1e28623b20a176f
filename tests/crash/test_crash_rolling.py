"""An upgrade in the middle of the day: every process is replaced while people talk (P-3)."""

from __future__ import annotations

from functools import partial

import anyio
import pytest
from conversation import Conversations

from everturn.client.agent_chat import AgentChat
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes, pytest.mark.slow]

CHATS = 20
WORKERS = 3
#: Each conversation goes on at least this long, and until the last process was replaced.
MESSAGES_MIN = 4
#: Bound of a conversation, should the restarts never end.
MESSAGES_MAX = 200


async def test_twenty_conversations_go_on_while_every_process_is_restarted(
    system: System, conversations: Conversations
) -> None:
    """Workers leave one after the other by SIGTERM, each with its successor already there, and
    the server restarts once. Nobody sees an error, and every message is answered once."""
    assert system.server is not None
    for _ in range(WORKERS - 1):
        await conversations.in_thread(partial(system.start_worker, wait=False))
    await conversations.in_thread(system.server.until_logged, "worker.connected", WORKERS)
    sent = [0] * CHATS
    over = anyio.Event()

    async def talk(number: int) -> None:
        async with AgentChat("counting", id=f"rolling-{number}") as chat:
            while sent[number] < MESSAGES_MAX and (
                sent[number] < MESSAGES_MIN or not over.is_set()
            ):
                text = f"{number}.{sent[number]}"
                with anyio.fail_after(60):
                    assert await conversations.ask(chat, text) == f"you said {text}"
                sent[number] += 1

    async with anyio.create_task_group() as tasks:
        for number in range(CHATS):
            tasks.start_soon(talk, number)
        await progress(sent)
        statuses = []
        for leaving in list(system.workers):
            await conversations.in_thread(partial(system.start_worker, wait=False))
            count = len(system.workers)
            await conversations.in_thread(system.server.until_logged, "worker.connected", count)
            statuses.append(await anyio.to_thread.run_sync(leaving.stop))
            await progress(sent)
        statuses.append(await anyio.to_thread.run_sync(system.server.stop))
        await conversations.in_thread(system.start_server)
        await progress(sent)
        over.set()

    assert statuses == [0] * (WORKERS + 1), f"{statuses}\n{system.logs()}"
    async with anyio.create_task_group() as tasks:
        for number in range(CHATS):
            tasks.start_soon(judge, conversations, number, sent[number])


async def judge(conversations: Conversations, number: int, messages: int) -> None:
    """Every message of one conversation was answered once, in order, without an error."""
    history = await conversations.settled(f"rolling-{number}", messages)
    assert [turn.text for turn in history] == [f"you said {number}.{n}" for n in range(messages)]
    assert not any(turn.error for turn in history)


async def progress(sent: list[int]) -> None:
    """Return when every conversation has had another answer: none was left behind."""
    before = list(sent)
    with anyio.fail_after(60):
        while any(now <= then for now, then in zip(sent, before, strict=True)):
            await anyio.sleep(0.05)
