"""The examples of patterns do what their first paragraph says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from example_apps import EXAMPLES, load, user

from everturn import AgentChat
from everturn.chat.compaction import SUMMARY_TITLE
from everturn.client.api import Api
from everturn.client.config import Target, configure
from everturn.rules import limits
from everturn.testing.asgi import AsgiTransport
from everturn.testing.harness import mock_chat_agent
from everturn.testing.processes import System


@pytest.fixture(autouse=True)
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERTURN_OFFLINE_DELAY_MS", "0")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.anyio
async def test_edits_make_siblings_and_a_reader_may_switch_between_them() -> None:
    example = load("branching")
    async with mock_chat_agent(example.branching) as h:
        await h.send_message(user("one", "u1"))
        assert (await h.send_message(user("two", "u2"))).text == "I heard: one, then two."
        edit = {"type": "edit", "message_id": "u2", "new_id": "u3", "text": "three"}
        await h.send_action(edit)
        await h.send_action(edit)  # a crash would run it again
        assert (await h.send_regenerate()).text == "I heard: one, then three."
        assert (await h.send_regenerate()).text == "I heard: one, then three."

        await h.send_action({"type": "switch", "message_id": "u2"})
        answer = await h.send_message(user("four", "u4"))
        assert answer.text == "I heard: one, then two, then four."
        await h.settled()
    tree = example.TREES["test-chat"]
    below = [child for child, parent in tree.parents.items() if parent == tree.parents["u2"]]
    assert below == ["u2", "u3"]
    assert sum(parent == "u3" for parent in tree.parents.values()) == 2, "two answers to it"


@pytest.mark.anyio
async def test_a_large_report_is_stored_and_its_id_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    example = load("large_payloads")
    async with mock_chat_agent(example.reports) as h:
        turn = await h.send_message("10000")
    [chunk] = [chunk for chunk in turn.chunks if chunk["type"] == "data-report"]
    [stored] = tmp_path.iterdir()
    assert stored.stat().st_size == chunk["data"]["bytes"] > limits.CHUNK_BYTES_MAX
    assert len(json.loads(stored.read_text())) == 10000
    assert chunk["data"]["url"].endswith(stored.name)
    assert turn.errors == []


@pytest.mark.processes
def test_only_the_edge_can_say_who_a_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("trusted_edge")

    async def ask(chat: AgentChat) -> tuple[str, str | None]:
        result = await (await chat.send_message("hello")).result()
        assert result.complete
        return result.text, result.error

    async def both(system: System) -> None:
        async with AsgiTransport(example.edge) as transport:
            api = Api(Target("http://edge", system.key, None, transport))
            lying = {"edge": {"user": "root", "country": "XX"}}
            async with AgentChat("trusting", client_data=lying, api=api) as chat:
                assert await ask(chat) == ("Hello ? in NO.", None)
        around = AgentChat("trusting", chat.id, session=chat.session)
        text, error = await ask(around)
        assert text == ""
        assert error is not None
        assert error.startswith("edge: Field required")
        text, error = await ask(AgentChat("trusting"))  # not even started through the edge
        assert text == ""
        assert error is not None

    with System(tmp_path, EXAMPLES / "trusted_edge.py") as system:
        monkeypatch.setenv("EVERTURN_API_URL", system.url)
        configure(url=system.url, secret_key=system.key)
        try:
            asyncio.run(both(system))
        finally:
            configure()


@pytest.mark.anyio
async def test_a_conversation_moves_to_newer_code_before_its_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYED_FILE", str(tmp_path / "deployed.txt"))
    example = load("version_upgrade")
    async with mock_chat_agent(example.upgrading) as h:
        assert (await h.send_message("hi")).text == "answered by version 1"
        (tmp_path / "deployed.txt").write_text("2\n")
        turn = await h.send_message("and now?")
        assert "trigger:upgrade-required" in [chunk["type"] for chunk in turn.raw_chunks]
        assert turn.text == "answered by version 2"
        assert h.world.continued == ["upgrade"]
        assert (await h.send_message("still?")).text == "answered by version 2"


@pytest.mark.processes
def test_what_a_user_says_meanwhile_joins_the_turn(tmp_path: Path) -> None:
    script = EXAMPLES / "steering.py"
    with System(tmp_path, script) as system:
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "EVERTURN_API_URL": system.url, "EVERTURN_SECRET_KEY": system.key},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{done.stderr}\n{system.logs()}"
    assert done.stdout.splitlines() == ["joined: ['also say who told you']", "complete: True"]


@pytest.mark.anyio
async def test_a_long_conversation_goes_on_from_a_summary_and_clients_keep_it_all() -> None:
    example = load("compaction")
    async with mock_chat_agent(example.compacting) as h:
        statuses: list[str] = []
        asked = 0
        while "complete" not in statuses:
            asked += 1
            assert asked < 10
            turn = await h.send_message(f"question {asked}")
            statuses += [c["data"]["status"] for c in turn.chunks if c["type"] == "data-compaction"]
        [summary] = [c["data"]["text"] for c in turn.chunks if c["type"] == "data-summary"]
        assert summary.endswith("messages were exchanged.")
        await h.send_message("and on")
        await h.settled()
        event = h.event("run")
        assert len(event.ui_messages) == 2 * asked + 2
        first = event.messages[0].parts[0].content
        assert first == f"{SUMMARY_TITLE}\n\n{summary}"


@pytest.mark.anyio
async def test_a_providers_own_events_are_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("plain_provider")
    async with mock_chat_agent(example.plain) as h:
        assert (await h.send_message("who?")).text == "You asked: who? "
        await h.send_message("and then?")
        await h.settled()
    assert capsys.readouterr().out.splitlines() == ["tokens so far: 8", "tokens so far: 16"]
