"""Head start against real processes: both halves of one answer (chat-agent §4.15; R-213 to R-219)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec
import pytest
from pydantic_ai import Agent

from everturn import AgentChat, ChatSessionState, chat, chat_server, runs, sessions
from everturn.chat.adapters.offline import offline_model
from everturn.chat.reducer import MessageReducer
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.testing.asgi import AsgiTransport
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "head_starts.py"
warm_model = Agent(offline_model(delay_ms=0))


def current_time() -> str:
    """Never runs: the warm side shows its schema only."""
    raise AssertionError("the warm side ran a tool")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("head-start"), APP) as running:
        yield running


@pytest.fixture
def api(system: System) -> Api:
    return Api(Target(system.url, system.key, None, None))


def question(text: str) -> dict[str, Any]:
    return {"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}


def first_step(head: chat_server.HeadStart) -> Any:
    return head.stream(warm_model, tools=[current_time])


@asynccontextmanager
async def posted(
    api: Api, agent: str, run: Any, body: dict[str, Any]
) -> AsyncIterator[httpx2.Response]:
    """The answer to the transport's POST."""
    app = chat_server.head_start(agent, run, api=api)
    async with (
        AsgiTransport(app) as transport,
        httpx2.AsyncClient(transport=transport) as client,
        client.stream("POST", "http://warm/", json=body) as response,
    ):
        yield response


async def chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    return [
        msgspec.json.decode(line.removeprefix("data: "))
        async for line in response.aiter_lines()
        if line.startswith("data: ")
    ]


def built(received: list[dict[str, Any]]) -> dict[str, Any]:
    reducer = MessageReducer()
    for chunk in received:
        if not chunk["type"].startswith("trigger:"):
            reducer.feed(chunk)
    return reducer.message


@pytest.mark.parametrize("agent", ["timekeeper", "own-loop"])
async def test_a_tool_call_is_made_here_and_runs_there_in_one_message(api: Api, agent: str) -> None:
    """W-90; R-213, R-218, R-219."""
    chat_id = f"tools-{agent}"
    body = {"chatId": chat_id, "headStartMessages": [question("what time is it?")]}
    async with posted(api, agent, first_step, body) as response:
        received = await chunks(response)

    assert response.status_code == 200
    assert response.headers["x-trigger-chat-id"] == chat_id
    assert response.headers["x-trigger-chat-access-token"]
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    kinds = [chunk["type"] for chunk in received]
    assert kinds.count("start") == kinds.count("finish") == 1
    assert kinds[-2:] == ["trigger:turn-complete", "trigger:session-state"]
    message = built(received)
    [call] = [part for part in message["parts"] if part["type"] == "tool-current_time"]
    assert (call["state"], call["output"]) == ("output-available", "noon")

    # A second reader sees the same, and the next turn knows all of it.
    reader = AgentChat(agent, chat_id, session=ChatSessionState(), api=api)
    stream = await reader.reconnect()
    assert stream is not None
    assert (await stream.result()).message == message
    last = ChatSessionState(received[-1]["lastEventId"])
    async with AgentChat(agent, chat_id, session=last, api=api) as client:
        answer = await (await client.send_message("thanks")).result()
    assert "turn 2" in answer.text, "it knows what was said before"
    assert answer.complete


@pytest.mark.parametrize("agent", ["timekeeper", "own-loop"])
async def test_a_whole_answer_is_committed_without_a_second_model_request(
    api: Api, agent: str
) -> None:
    """R-214."""
    body = {"chatId": f"text-{agent}", "headStartMessages": [question("hello")]}
    async with posted(api, agent, lambda head: "hello yourself", body) as response:
        received = await chunks(response)

    assert [c["type"] for c in received][-2:] == ["trigger:turn-complete", "trigger:session-state"]
    assert chat.text_of(built(received)) == "hello yourself"


async def test_a_failing_step_ends_the_run_without_a_turn(api: Api) -> None:
    """W-90; R-215."""

    async def failing(head: Any) -> AsyncIterator[str]:
        yield "half "
        raise ValueError("no model today")

    body = {"chatId": "failing", "headStartMessages": [question("hello")]}
    async with posted(api, "timekeeper", failing, body) as response:
        received = await chunks(response)

    assert received[-1] == {"type": "error", "errorText": "no model today"}
    assert "trigger:turn-complete" not in [chunk["type"] for chunk in received]
    await completed(api, "failing")
    kinds = [(await decoded(record))["kind"] for record in await api.read_records("failing", "in")]
    assert kinds == ["handover-skip"]


async def test_a_caller_that_goes_away_aborts_the_step(api: Api) -> None:
    reasons: list[str] = []

    async def endless(head: Any) -> AsyncIterator[str]:
        head.signal.on_abort(reasons.append)
        yield "half "
        await anyio.sleep_forever()

    body = {"chatId": "leaving", "headStartMessages": [question("hello")]}
    async with posted(api, "timekeeper", endless, body) as response:
        await anext(response.aiter_lines())

    assert reasons == ["the caller went away"]
    await completed(api, "leaving")


async def test_a_chat_that_has_begun_takes_no_head_start(api: Api) -> None:
    body = {"chatId": "twice", "headStartMessages": [question("hello")]}
    async with posted(api, "timekeeper", lambda head: "hi", body) as response:
        await chunks(response)
    async with posted(api, "timekeeper", lambda head: "hi", body) as response:
        assert response.status_code == 409


@pytest.mark.parametrize("body", [{}, {"chatId": ""}, {"chatId": 7}])
async def test_a_request_without_a_chat_id_is_refused(api: Api, body: dict[str, Any]) -> None:
    async with posted(api, "timekeeper", first_step, body) as response:
        assert response.status_code == 400


async def test_a_detached_head_start_writes_the_answer_to_the_session(api: Api) -> None:
    chat_id, completion = await chat_server.start_head_start(
        "timekeeper", "detached", [question("what time is it?")], first_step, api=api
    )
    await completion

    reader = AgentChat("timekeeper", chat_id, session=ChatSessionState(), api=api)
    stream = await reader.reconnect()
    assert stream is not None
    result = await stream.result()
    assert result.complete
    assert [call.tool_name for call in result.tool_calls][:1] == ["current_time"]
    assert "noon" in result.text


async def test_a_detached_head_start_that_fails_says_so_to_both_sides(api: Api) -> None:
    async def failing(head: Any) -> str:
        raise ValueError("no model today")

    chat_id, completion = await chat_server.start_head_start(
        "timekeeper", "detached-failing", [question("hello")], failing, api=api
    )
    with pytest.raises(ValueError, match="no model today"):
        await completion
    await completed(api, chat_id)


async def test_a_browser_cannot_speak_for_the_server(api: Api) -> None:
    body = {
        "chatId": "forged",
        "headStartMessages": [question("hello")],
        "continuation": True,
        "sessionId": "session_other",
        "metadata": {"user": 7},
    }
    await chat_server.open_session(body, "timekeeper", idle_timeout=1, api=api)

    config = (await sessions.retrieve("forged", api=api)).trigger_config
    assert config is not None
    assert config["tags"] == ["chat:forged"]
    assert config["idleTimeoutInSeconds"] == 1
    assert config["basePayload"] == {
        "chatId": "forged",
        "headStartMessages": [question("hello")],
        "metadata": {"user": 7},
        "trigger": "handover-prepare",
        "idleTimeoutInSeconds": 1,
    }


async def decoded(record: dict[str, Any]) -> dict[str, Any]:
    data = record["data"]
    found: dict[str, Any] = msgspec.json.decode(data) if isinstance(data, str) else data
    return found


async def completed(api: Api, chat_id: str) -> None:
    """Return when the chat's only run has ended well; its `.out` has no turn-complete."""
    with anyio.fail_after(20):
        while True:
            [run] = [run async for run in runs.list(tag=f"chat:{chat_id}", api=api)]
            if run.status == "COMPLETED":
                break
            await anyio.sleep(0.05)
    records = await api.read_records(chat_id, "out")
    assert not any("turn-complete" in str(record.get("headers")) for record in records)
