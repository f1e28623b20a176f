"""An upgrade in the middle of the day: every process is replaced while people talk (P-3)."""

from __future__ import annotations

from functools import partial

import anyio
import httpx2
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


# --- callers that know nothing but to try again ---------------------------------------------------

CALLERS = 8
TRIES = 12
RESTARTS = 3


class Caller:
    """Appends numbered records, each with a part id, trying again as any client would."""

    def __init__(self, system: System, number: int) -> None:
        self._system = system
        self._number = number
        self.acknowledged: list[tuple[str, int]] = []
        self.retried = 0
        #: Answers that a retry must not be needed for, or does not cure.
        self.refused: list[str] = []

    async def run(self, over: anyio.Event) -> None:
        headers = {"authorization": f"Bearer {self._system.key}"}
        async with httpx2.AsyncClient(
            base_url=self._system.url, headers=headers, timeout=10
        ) as client:
            while not over.is_set() and len(self.acknowledged) < 5_000:
                part = f"{self._number}-{len(self.acknowledged)}"
                seq_num = await self._append(client, part)
                if seq_num is None:
                    return
                self.acknowledged.append((part, seq_num))

    async def _append(self, client: httpx2.AsyncClient, part: str) -> int | None:
        said = ""
        for attempt in range(TRIES):
            self.retried += attempt > 0
            try:
                reply = await client.post(
                    "/realtime/v1/sessions/inbox/in/append",
                    content=part.encode(),
                    headers={"x-part-id": part},
                )
            except httpx2.TransportError as error:
                said = repr(error)
            else:
                if reply.status_code == 200:
                    return int(reply.json()["seq"])
                said = f"{reply.status_code} {reply.text}"
                if reply.status_code < 500:
                    break
            await anyio.sleep(min(0.05 * 2**attempt, 1.0))
        self.refused.append(f"{part}: {said}")
        return None


async def test_no_call_fails_that_trying_again_does_not_cure_while_servers_come_and_go(
    system: System, conversations: Conversations
) -> None:
    """P-1, P-5: stopped in order, and killed; each record is there once, under the number its
    caller was told, and the log holds nothing else."""
    opened = await make_inbox(system)
    assert opened == 201
    over = anyio.Event()
    callers = [Caller(system, number) for number in range(CALLERS)]
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(caller.run, over)
        for restart in range(RESTARTS):
            await further(callers)
            if restart == RESTARTS - 1:
                system.kill_server()
            else:
                assert system.server is not None
                assert await anyio.to_thread.run_sync(system.server.stop) == 0, system.logs()
            await conversations.in_thread(system.start_server)
        await further(callers)
        over.set()
    assert [line for caller in callers for line in caller.refused] == []
    assert sum(caller.retried for caller in callers) > 0, "no restart was noticed"
    told = {seq_num: part for caller in callers for part, seq_num in caller.acknowledged}
    assert len(told) == sum(len(caller.acknowledged) for caller in callers)
    stored = {record.seq_num: record for record in await conversations.records("inbox", "in")}
    for seq_num, part in told.items():
        assert part in stored[seq_num].body.decode()
    assert sorted(stored) == list(range(len(stored)))
    assert set(stored) == set(told), "a record without an acknowledgement was never tried again"


async def make_inbox(system: System) -> int:
    """A session of a task that reads nothing."""
    body = {
        "type": "inbox",
        "taskIdentifier": "inbox",
        "externalId": "inbox",
        "triggerConfig": {"basePayload": {}},
    }
    headers = {"authorization": f"Bearer {system.key}"}
    async with httpx2.AsyncClient(base_url=system.url, headers=headers, timeout=20) as client:
        return (await client.post("/api/v1/sessions", json=body)).status_code


async def further(callers: list[Caller]) -> None:
    """Return when every caller has had ten more answers, or one has given up."""
    before = [len(caller.acknowledged) for caller in callers]
    with anyio.fail_after(60):
        while any(
            len(caller.acknowledged) < then + 10
            for caller, then in zip(callers, before, strict=True)
        ) and not any(caller.refused for caller in callers):
            await anyio.sleep(0.02)
