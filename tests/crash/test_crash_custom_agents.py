"""Loops of an author's own keep the promises when their process is killed (P-3, R-204)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn import AgentChat, chat_server
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "head_starts.py"


async def kill_and_replace(system: System) -> None:
    system.kill_worker()
    await anyio.to_thread.run_sync(partial(system.start_worker, wait=False))


async def test_a_killed_loop_answers_its_message_again_once(tmp_path: Path) -> None:
    with System(tmp_path, APP, environment={"EVERTURN_OFFLINE_DELAY_MS": "40"}) as system:
        api = Api(Target(system.url, system.key, None, None))
        async with AgentChat("own-loop", api=api) as chat:
            stream = await chat.send_message("hello there")
            kinds: list[str] = []
            text = ""
            async for chunk in stream:
                kinds.append(chunk["type"])
                if chunk["type"] == "data-restarted":
                    text = ""
                elif chunk["type"] == "text-delta":
                    text += chunk["delta"]
                    if kinds.count("text-delta") == 3:
                        await kill_and_replace(system)

            assert stream.complete, system.logs()
            assert kinds.count("data-restarted") == 1
            assert text.startswith("You said: 'hello there'.")
            after = await (await chat.send_message("and again")).result()
            assert after.complete
            ends = [r for r in await api.read_records(chat.id, "out") if r.get("headers")]
            assert sum("turn-complete" in str(r["headers"]) for r in ends) == 2


async def test_a_run_killed_while_it_waits_for_a_head_start_finishes_it(tmp_path: Path) -> None:
    killed = anyio.Event()
    with System(tmp_path, APP) as system:
        api = Api(Target(system.url, system.key, None, None))

        async def first_step(head: Any) -> Any:
            yield "The whole "
            await killed.wait()
            yield "answer."

        question = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
        chat_id, completion = await chat_server.start_head_start(
            "timekeeper", "killed", [question], first_step, api=api
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(awaited, completion)
            await started(api, chat_id)
            await kill_and_replace(system)
            killed.set()

        with anyio.fail_after(30):
            while not any(
                "turn-complete" in str(r) for r in await api.read_records(chat_id, "out")
            ):
                await anyio.sleep(0.05)
        async with AgentChat("timekeeper", chat_id, api=api) as chat:
            answer = await (await chat.send_message("thanks")).result()
        assert "turn 2" in answer.text, "it knows the head start's turn"


async def awaited(completion: Any) -> None:
    await completion


async def started(api: Api, chat_id: str) -> None:
    """Return when the run that waits for the handover is executing."""
    session = await api.retrieve_session(chat_id)
    with anyio.fail_after(20):
        while (await api.retrieve_run(session["currentRunId"]))["status"] != "EXECUTING":
            await anyio.sleep(0.05)
