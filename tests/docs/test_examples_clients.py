"""The examples for those who talk to agents: backends and scripts, with real processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from example_apps import load, run_script, serving

from everturn import AgentChat, blocking, runs
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.errors import NotAllowed
from everturn.testing.asgi import AsgiTransport

STOP = '{"kind":"stop"}'

pytestmark = pytest.mark.processes


@pytest.mark.anyio
async def test_a_backend_gives_tokens_for_one_chat_to_the_user_it_belongs_to(
    tmp_path: Path,
) -> None:
    example = load("web_backend")
    with serving(tmp_path, "assistant") as system:
        async with (
            AsgiTransport(example.app) as transport,
            httpx2.AsyncClient(transport=transport, base_url="http://backend") as client,
        ):

            async def ask(path: str, user: str = "ada") -> Any:
                return await client.post(path, headers={"x-user": user})

            started = (await ask("/chats/c1")).json()
            fresh = (await ask("/chats/c1/token")).json()
            assert (await ask("/chats/c1/token", "bob")).status_code == 403
            assert (await ask("/chats/c2", "")).status_code == 403
            await ask("/chats/c2")
        for token in (started["publicAccessToken"], fresh["publicAccessToken"]):
            page = Api(Target(system.url, token, None, None))
            assert await page.append("c1", "in", STOP, part_id=token[-8:]) is not None
            with pytest.raises(NotAllowed):
                await page.append("c2", "in", STOP, part_id="p1")


def test_an_assistant_finds_an_agent_and_talks_to_it(tmp_path: Path) -> None:
    with serving(tmp_path, "assistant") as system:
        lines = run_script(system, "assistant_tools")
    assert lines[0] == "['assistant']"
    assert "hello there" in "\n".join(lines)


def test_plain_code_talks_to_an_agent_without_an_event_loop(tmp_path: Path) -> None:
    with serving(tmp_path, "assistant") as system:
        first, second = run_script(system, "blocking_client")
        assert first.startswith("You said: 'hello'.")
        assert second.startswith("You said: 'and goodbye'. This is turn 2")
        app = load("blocking_client").create_app()
        try:
            browser = app.test_client()
            assert "turn 1" in browser.post("/", data="hello").text
            assert "turn 2" in browser.post("/", data="and again").text
            assert "turn 1" in app.test_client().post("/", data="somebody else").text
        finally:
            blocking.close()
    assert "everturn-blocking" not in [thread.name for thread in threading.enumerate()]


def test_a_history_is_edited_and_undone_over_the_wire(tmp_path: Path) -> None:
    with serving(tmp_path, "history_actions") as system:
        lines = run_script(system, "history_actions")
    assert [line.split(".")[0] for line in lines] == [
        "You said: 'hullo'", "You said: 'hello'", "You said: 'who are you?'",
    ]  # fmt: skip
    assert all("This is turn 1" in line for line in lines)


def test_a_client_is_told_what_went_wrong(tmp_path: Path) -> None:
    with serving(tmp_path, "failures") as system:
        lines = run_script(system, "failures")
    assert lines == [
        "{'said': 'Let me see. ', 'error': 'I do not talk about passwords.'}",
        "{'said': 'Let me see. ', 'error': 'Something went wrong. Please try again.'}",
        "{'said': 'Let me see. All is well.', 'error': None}",
    ]


@pytest.mark.anyio
async def test_a_question_is_answered_after_the_worker_was_replaced(tmp_path: Path) -> None:
    example = load("ask_a_person")
    with serving(tmp_path, "ask_a_person") as system:
        async with AgentChat("planner", "plan") as chat:
            asked = await (await chat.send_message("ask_person, please")).result()
        [call] = asked.tool_calls
        assert asked.message is not None
        system.kill_worker()
        await anyio.to_thread.run_sync(system.start_worker)
        waiting = {
            "chat": "plan",
            "tool_name": call.tool_name,
            "tool_call_id": call.tool_call_id,
            "message_id": asked.message["id"],
        }
        answer = await example.answer(waiting, "You may.")
    assert answer.startswith("ask_person says You may.")


@pytest.mark.anyio
async def test_a_colleague_remembers_over_runs_and_goes_home_with_the_manager(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "colleague") as system:
        chat = AgentChat("manager", "office")
        assert "asked me about owls." in await (await chat.send_message("owls")).text()
        system.kill_worker()
        await anyio.to_thread.run_sync(system.start_worker)
        again = await (await chat.send_message("mice")).text()
        assert again == "The specialist says: so far you have asked me about owls and mice."
        await chat.close()
        with anyio.fail_after(20):
            while not await all_ended("chat:office-specialist"):
                await anyio.sleep(0.05)


async def all_ended(tag: str) -> bool:
    found = [run.status async for run in runs.list(tag=tag)]
    return found != [] and all(status == "COMPLETED" for status in found)
