"""One successor, however many ask for it at once (chat-agent §1.4, §2.18)."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from engine_kit import Kit

from everturn.protocol.records import parse_input
from everturn.storage.ports.rows import RunFilter

pytestmark = pytest.mark.anyio


async def test_twenty_appends_to_an_ended_chat_start_one_run() -> None:
    """R-076: with `continuation` and the run before it; all twenty messages wait for it."""
    kit = await Kit().open()
    session = await kit.session()
    async with kit.worker() as worker:
        first = await worker.claim()
        await worker.finish(first)
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(kit.say, session, f"m{number}")
        second = await worker.claim()
        stored = await kit.streams.read(kit.channel(session, "in"), after=None)
        await anyio.wait_all_tasks_blocked()
        made = await kit.state.runs(kit.environment.id, RunFilter(session_id=session.id), limit=50)

    payload = msgspec.json.decode(second.payload)
    assert (payload["continuation"], payload["previousRunId"]) == (True, first.run_id)
    said = {parse_input(record).payload["message"]["id"] for record in stored}
    assert said == {f"m{number}" for number in range(20)}
    assert {run.id for run in made.items} == {first.run_id, second.run_id}
