"""A worker against the real server, both in this process, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from everturn.client import config, runs
from everturn.server.assembly import build
from everturn.server.serving import serve
from everturn.server.settings import MEMORY_URL, Settings
from everturn.tasks.definition import Task, task
from everturn.tasks.metadata import metadata
from everturn.tasks.registry import Registry
from everturn.tasks.retries import RetryPolicy
from everturn.worker.loading import App
from everturn.worker.worker import Worker

pytestmark = pytest.mark.anyio

KEY = "tr_dev_endtoendendtoendendtoend"


@asynccontextmanager
async def system(registry: Registry) -> AsyncIterator[Worker]:
    """Server, worker and client on memory engines."""
    settings = Settings(
        data_dir=None,
        database_url=MEMORY_URL,
        streams_url=MEMORY_URL,
        objects_url=MEMORY_URL,
        secret_key=KEY,
    )
    urls: list[str] = []
    opened = anyio.Event()

    def tell(url: str) -> None:
        urls.append(url)
        opened.set()

    async with build(settings) as built, anyio.create_task_group() as tasks:

        async def serving() -> None:
            await serve(built, "127.0.0.1", 0, opened=tell)

        tasks.start_soon(serving)
        with anyio.fail_after(10):
            await opened.wait()
        worker = Worker(App("test", msgspec, registry), urls[0], KEY, version="v1")
        served = anyio.Event()

        async def serve_runs() -> None:
            await worker.run()
            served.set()

        with config.use(config.ClientConfig(url=urls[0], secret_key=KEY)):
            tasks.start_soon(serve_runs)
            with anyio.fail_after(10):
                await worker.link.ready.wait()
            yield worker
        worker.stop()
        worker.stop()
        with anyio.fail_after(10):
            await served.wait()
        tasks.cancel_scope.cancel()


async def finished(task_: Task[Any], payload: Any, **options: Any) -> Any:
    """Trigger over HTTP and wait for the end."""
    handle = await task_.trigger(payload, **options)
    with anyio.fail_after(30):
        return await runs.poll(handle.id, interval=0.05)


async def test_a_task_is_triggered_over_http_and_completes(registry: Any) -> None:
    @task(id="double")
    async def double(payload: dict) -> int:
        metadata.set("seen", payload["n"])
        return payload["n"] * 2

    async with system(registry):
        run = await finished(double, {"n": 21})

    assert (run.status, run.output) == ("COMPLETED", 42)
    assert run.metadata == {"seen": 21}


async def test_a_parent_suspends_until_its_child_is_done(registry: Any) -> None:
    @task(id="child")
    async def child(payload: int) -> int:
        return payload + 1

    @task(id="parent")
    async def parent(payload: int) -> int:
        return await child.trigger_and_wait(payload).unwrap() * 10

    async with system(registry) as worker:
        run = await finished(parent, 4)
        assert worker._active == 0

    assert (run.status, run.output) == ("COMPLETED", 50), run.error


async def test_a_failed_attempt_is_repeated_and_on_failure_fires_once_at_the_end(
    registry: Any,
) -> None:
    attempts: list[int] = []
    failures: list[str] = []

    @task(id="fails", retry=RetryPolicy(max_attempts=2, min_delay=0.01, jitter=False))
    async def fails(payload: Any, ctx: Any) -> None:
        attempts.append(ctx.attempt.number)
        raise ValueError("no")

    @fails.on_failure
    async def told(error: Exception) -> None:
        failures.append(str(error))

    async with system(registry):
        run = await finished(fails, None)

    assert run.status == "FAILED"
    assert attempts == [1, 2]
    assert failures == ["no"]


async def test_an_agent_answers_and_remembers_over_a_suspension(registry: Any) -> None:
    from everturn import AgentChat, chat

    @chat.agent("echo", idle_timeout=0)
    async def echo(turn: Any) -> str:
        return f"answer {len(turn.ui_messages)}"

    async with system(registry) as worker:
        conversation = AgentChat("echo")
        with anyio.fail_after(30):
            first = await (await conversation.send_message("hi")).text()
            while not len(worker.parking):
                await anyio.sleep(0.01)
            second = await (await conversation.send_message("again")).text()

    assert (first, second) == ("answer 1", "answer 3")


async def test_a_message_that_joins_the_turn_of_another_device_is_answered_to_its_own(
    registry: Any,
) -> None:
    """P-3: one turn answers both; the second device reads it from where its message joined."""
    from pydantic_ai import Agent

    from everturn import AgentChat, ChatSessionState, chat
    from everturn.testing import Call, scripted_model

    began, joined = anyio.Event(), anyio.Event()

    async def look() -> str:
        """The tool between the two steps of the answer."""
        began.set()
        await joined.wait()
        return "seen"

    model = scripted_model([["Let me look. ", Call("look")], "Both of you: yes."])
    library = Agent(model, tools=[look])

    @chat.agent(
        "steered",
        pending_messages=chat.PendingMessages(
            should_inject=lambda batch: True, on_received=lambda event: joined.set()
        ),
    )
    async def steered(turn: Any) -> Any:
        return turn.stream(library, **chat.run_options())

    async with system(registry):
        first_device = AgentChat("steered")
        with anyio.fail_after(30):
            first = await first_device.send_message("one")
            await began.wait()
            second_device = AgentChat("steered", first_device.id, session=ChatSessionState())
            second = await (await second_device.send_message("two")).result()
            whole = await first.result()

    assert (second.text, second.complete) == ("Both of you: yes.", True)
    assert whole.text == "Let me look. Both of you: yes."
    assert second.message is not None
    assert whole.message is not None
    assert second.message["id"] == whole.message["id"]
