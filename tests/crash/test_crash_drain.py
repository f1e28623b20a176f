"""Leaving in good order: what waits goes at once, what works is finished (design §4)."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest
from conversation import Conversations

from everturn.client.agent_chat import AgentChat
from everturn.client.config import configure
from everturn.rules import limits
from everturn.server.settings import Settings
from everturn.testing.processes import EverturnProcess, System, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

#: Ending a hundred waiting chats is a hundred calls to the server, not a wait for any of them.
PROMPTLY_S = 2.0
CHATS = 100
#: How long a stopping server waits for requests that are under way.
GRACE_S = Settings().shutdown_s
APP = Path(__file__).parent.parent / "apps" / "conversations.py"


async def ask_all(conversations: Conversations, chats: list[AgentChat], text: str) -> None:
    async def ask(chat: AgentChat) -> None:
        assert await conversations.ask(chat, text) == f"echo: {text}"

    async with anyio.create_task_group() as tasks:
        for chat in chats:
            tasks.start_soon(ask, chat)


async def test_a_worker_with_a_hundred_warm_chats_leaves_within_two_seconds(
    system: System, conversations: Conversations
) -> None:
    chats = [AgentChat("echo", id=f"warm-{n}") for n in range(CHATS)]
    await ask_all(conversations, chats, "one")
    began = time.monotonic()
    status = system.workers[0].stop()
    took_s = time.monotonic() - began

    assert status == 0, system.logs()
    assert took_s < PROMPTLY_S, f"{took_s:.1f} s\n{system.logs()}"
    # Each goes on with its next message, on a worker that did not exist when it began.
    await conversations.in_thread(system.start_worker)
    await ask_all(conversations, chats, "two")
    for said in ("worker.lost", "run.recovered"):
        assert said not in system.logs(), system.logs()


async def test_a_turn_in_progress_is_finished_before_its_worker_leaves(
    system: System, conversations: Conversations
) -> None:
    stream = await AgentChat("slow", id="busy").send_message("tell me")
    words = 0
    async for chunk in stream:
        assert chunk["type"] != "data-restarted"
        words += chunk["type"] == "text-delta"
        if words == 1:
            system.workers[0].signal(signal.SIGTERM)
    assert stream.complete
    assert words == 40
    assert system.workers[0].stop() == 0, system.logs()


async def test_a_second_signal_interrupts_and_the_turn_goes_on_elsewhere(
    system: System, conversations: Conversations
) -> None:
    await conversations.in_thread(system.start_worker)
    await conversations.in_thread(system.workers[0].stop)
    stream = await AgentChat("slow", id="cut").send_message("tell me")
    restarts = 0
    async for chunk in stream:
        restarts += chunk["type"] == "data-restarted"
        if chunk["type"] == "text-delta" and len(system.workers) == 2:
            await conversations.in_thread(system.start_worker)
            system.workers[1].signal(signal.SIGTERM)
            system.workers[1].signal(signal.SIGINT)
    assert stream.complete
    assert restarts == 1
    assert system.workers[1].stop() == 0, system.logs()
    await conversations.settled("cut", 1)


async def test_a_clean_stop_of_server_and_worker_is_no_loss(system: System) -> None:
    assert system.server is not None
    assert system.server.stop() == 0, system.logs()
    assert system.workers[0].stop() == 0, system.logs()
    for said in ("worker.lost", "link.lost", "Traceback"):
        assert said not in system.logs(), system.logs()


async def test_a_server_that_is_stopped_in_mid_answer_loses_none_of_it(
    system: System, conversations: Conversations
) -> None:
    """P-2, P-3: its reader is cut, comes back with its cursor, and reads on; the run never ended."""
    stream = await AgentChat("slow", id="upgrade").send_message("tell me")
    words, status = 0, None
    async for chunk in stream:
        assert chunk["type"] != "data-restarted"
        words += chunk["type"] == "text-delta"
        if words == 1 and status is None:
            assert system.server is not None
            status = await anyio.to_thread.run_sync(system.server.stop)
            await conversations.in_thread(system.start_server)
    assert stream.complete
    assert (words, status) == (40, 0), system.logs()
    await conversations.settled("upgrade", 1)


async def test_a_server_that_waits_for_a_request_leaves_by_itself_and_at_once_when_told_again(
    system: System,
) -> None:
    """A caller that never sends the rest of its body holds nobody up for longer than the grace."""
    for signals in (1, 2):
        assert system.server is not None
        with socket.create_connection(("127.0.0.1", system.port)) as half:
            half.sendall(
                b"POST /api/v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"authorization: Bearer " + system.key.encode() + b"\r\n"
                b"content-length: 100\r\n\r\n{"
            )
            # An answer that came after shows that the server has seen the beginning of this one.
            await answered(system.url)
            began = time.monotonic()
            for _ in range(signals):
                system.server.signal(signal.SIGTERM)
                await anyio.sleep(0.2)  # two signals at once would be one
            status = await anyio.to_thread.run_sync(system.server.stop)
            took_s = time.monotonic() - began
        assert status == 0, system.logs()
        assert took_s < (GRACE_S + PROMPTLY_S if signals == 1 else PROMPTLY_S), system.logs()
        await anyio.to_thread.run_sync(system.start_server)


async def answered(url: str) -> None:
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{url}/healthz")).status_code == 200


async def test_a_worker_whose_server_stays_away_does_not_wait_for_it(
    system: System, conversations: Conversations
) -> None:
    stream = await AgentChat("slow", id="alone").send_message("tell me")
    async for chunk in stream:
        if chunk["type"] == "text-delta":
            break
    system.kill_server()
    began = time.monotonic()
    assert system.workers[0].stop() == 0, system.logs()
    assert time.monotonic() - began < limits.LINK_GRACE_MS / 1000 + PROMPTLY_S


async def test_dev_reloads_and_stops_promptly_with_a_hundred_warm_chats(
    tmp_path: Path, conversations: Conversations
) -> None:
    app = tmp_path / "app.py"
    shutil.copy(APP, app)
    port = free_port()
    url, key = f"http://127.0.0.1:{port}", "tr_dev_" + "k" * 24
    dev = EverturnProcess(
        ["dev", str(app), "--port", str(port), "--data-dir", str(tmp_path / "dev")],
        tmp_path / "dev.log",
        {"EVERTURN_SECRET_KEY": key},
    )
    configure(url=url, secret_key=key)
    try:
        await ready(url, dev)
        [old] = psutil.Process(dev.pid).children()
        chats = [AgentChat("echo", id=f"dev-{n}") for n in range(CHATS)]
        await ask_all(conversations, chats, "one")
        app.write_text(app.read_text() + "\n# saved again\n")
        # Until the new code is connected, and the old process has handed over its chats.
        await anyio.to_thread.run_sync(old.wait, 10)
        await ask_all(conversations, chats, "two")
        began = time.monotonic()
        assert dev.stop() == 0, dev.log_text()
        assert time.monotonic() - began < PROMPTLY_S
    finally:
        dev.kill()


async def ready(url: str, process: EverturnProcess) -> None:
    """Until a worker serves; poll with a deadline, as for any real process."""
    async with httpx2.AsyncClient() as client:
        with anyio.fail_after(30):
            while True:
                assert process.running, process.log_text()
                with suppress(httpx2.TransportError):
                    if (await client.get(f"{url}/readyz")).status_code == 200:
                        return
                await anyio.sleep(0.05)
