"""The blocking facade: the same client in code without an event loop."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal
from client_stage import KEY, Stage, server_in_a_thread
from flask import Flask

import everturn
from everturn import blocking
from everturn.client import config
from everturn.errors import RunContextError, SessionNotFound


class Theatre:
    """The server, and the agent's side of it, for tests without an event loop."""

    def __init__(self, url: str, portal: BlockingPortal, stage: Stage) -> None:
        self.url = url
        self._portal = portal
        self._stage = stage

    def answer(self, session: str, cursor: int, *deltas: str) -> None:
        self._portal.call(self._stage.answer, session, cursor, *deltas)

    def sent(self, session: str) -> list[tuple[int, Any]]:
        return self._portal.call(self._stage.input, session)


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    with server_in_a_thread() as (url, portal, stage):
        yield Theatre(url, portal, stage)
        blocking.close()


@pytest.fixture(autouse=True)
def configured(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.ClientConfig(url=theatre.url, secret_key=KEY)
    monkeypatch.setattr(config, "_configured", settings)


def test_a_turn_is_read_with_a_plain_loop(theatre: Theatre) -> None:
    chat = blocking.AgentChat("agent", "loop")
    stream = chat.send_message("hello")
    theatre.answer("loop", 0, "hi ", "there")
    deltas = [chunk["delta"] for chunk in stream if chunk["type"] == "text-delta"]
    assert deltas == ["hi ", "there"]
    assert stream.complete is True
    assert chat.session.last_event_id is not None


def test_text_result_and_messages_wait_too(theatre: Theatre) -> None:
    chat = blocking.AgentChat("agent", "forms")
    first = chat.send_message("one")
    theatre.answer("forms", 0, "1")
    assert first.text() == "1"
    second = chat.send_message("two")
    theatre.answer("forms", 1, "2")
    assert second.result().text == "2"
    with chat.send_message("three") as third:
        theatre.answer("forms", 2, "3")
        *_, last = third.messages()
    assert [part.get("text") for part in last["parts"]] == [None, "3"]


def test_sessions_are_started_opened_listed_and_closed() -> None:
    started = blocking.sessions.start(type="t", task="agent", external_id="many", tags=["list"])
    handle = blocking.sessions.open("many")
    assert handle.id == "many"
    assert handle.in_.send({"a": 1}) == 0
    assert handle.in_.receive(timeout=5) == {"a": 1}
    assert handle.in_.peek() is None
    handle.in_.aclose()
    assert handle.out.append("x") == 0
    assert list(handle.out.read(timeout=1)) == ["x"]
    assert [item.id for item in blocking.sessions.list(tag="list")] == [started.id]
    assert blocking.sessions.close("many", reason="done").closed_reason == "done"


def test_errors_are_the_same(theatre: Theatre) -> None:
    with pytest.raises(SessionNotFound):
        blocking.sessions.retrieve("nobody")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        blocking.nothing  # noqa: B018  # the access is the test
    with pytest.raises(AttributeError):
        blocking.sessions.nothing  # noqa: B018  # the access is the test


def test_several_threads_talk_at_once(theatre: Theatre) -> None:
    barrier = threading.Barrier(8)

    def talk(number: int) -> str:
        id = f"thread{number}"
        stream = blocking.AgentChat("agent", id).send_message("hello")
        barrier.wait(timeout=20)
        theatre.answer(id, 0, str(number))
        text: str = stream.text()
        return text

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(talk, range(8))) == [str(number) for number in range(8)]


def test_a_flask_view_uses_it_like_any_library(theatre: Theatre) -> None:
    app = Flask("shop")

    @app.post("/ask")
    def ask() -> str:
        stream = blocking.AgentChat("agent", "flask").send_message("hello")
        theatre.answer("flask", 0, "from the view")
        text: str = stream.text()
        return text

    with app.test_client() as browser:
        assert browser.post("/ask").text == "from the view"


def test_a_stop_signal_works_across_threads(theatre: Theatre) -> None:
    signal = blocking.Signal()
    stream = blocking.AgentChat("agent", "stop").send_message("hello", signal=signal)
    reader = threading.Thread(target=stream.text)
    reader.start()
    signal.abort("enough")
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert signal.reason == "enough"
    assert [chunk["kind"] for _, chunk in theatre.sent("stop")] == ["message", "stop"]


def test_settings_of_the_calling_block_are_used(theatre: Theatre) -> None:
    wrong = config.ClientConfig(secret_key="tr_dev_wrong")
    with config.use(wrong), pytest.raises(everturn.NotAuthenticated):
        blocking.sessions.retrieve("x")


def test_it_starts_again_after_it_was_closed() -> None:
    blocking.close()
    blocking.close()
    assert list(blocking.sessions.list(tag="none")) == []


def test_inside_an_event_loop_it_refuses_and_says_what_to_do() -> None:
    async def main() -> None:
        with pytest.raises(RunContextError, match="await the asynchronous name"):
            blocking.sessions.retrieve("x")

    anyio.run(main)


@pytest.mark.parametrize("leaves_a_stream_open", [False, True])
def test_the_program_ends_by_itself_and_without_warnings(
    theatre: Theatre, leaves_a_stream_open: bool
) -> None:
    program = f"""
from everturn import blocking, configure
configure(url={theatre.url!r}, secret_key={KEY!r})
chat = blocking.AgentChat("agent", "exit{leaves_a_stream_open}")
stream = chat.send_message("hello")
handle = blocking.sessions.open("exit{leaves_a_stream_open}")
handle.out.append({{"type": "start"}})
if {leaves_a_stream_open}:
    next(iter(stream))
print("done")
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_forked_child_gets_a_thread_of_its_own(theatre: Theatre) -> None:
    program = f"""
import os
from everturn import blocking, configure
configure(url={theatre.url!r}, secret_key={KEY!r})
list(blocking.sessions.list(tag="none"))
child = os.fork()
if child == 0:
    os._exit(7 if list(blocking.sessions.list(tag="none")) == [] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.stdout == "7\n", ended.stderr
