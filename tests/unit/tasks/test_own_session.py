"""`sessions.open` inside a run (chat-agent §6.2, §6.3; rulings §1.16)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from everturn import sessions
from everturn.client.results import Err, Ok
from everturn.errors import WaitTimeoutError
from everturn.protocol.runs import RunInfo
from everturn.tasks import registry
from everturn.tasks import runtime as runtimes
from everturn.tasks.definition import task
from everturn.tasks.failures import AttemptFailed
from everturn.tasks.own_session import OwnHandle
from everturn.testing.clock import VirtualClock
from everturn.testing.runtime import MemoryRuntime, World

pytestmark = pytest.mark.anyio

#: What a test does while the task works.
Beside = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Nothing happens beside the task."""


async def run_task(
    world: World, fn: Callable[..., Any], *, beside: Beside = nothing, consumed: int | None = None
) -> Any:
    with registry.collecting(registry.Registry()):
        made = task("raw")(fn)
    info = RunInfo(
        run_id="run_1", task_id="raw", environment_id="env_test", environment_slug="dev",
        fence=await world.next_fence(), attempt=1, payload=b"{}", session_id="session_1",
        session_key="key-1", version="v1", queue="task/raw", max_attempts=1, consumed=consumed,
        created_at_ms=0, started_at_ms=0,
    )  # fmt: skip
    found: list[Any] = []
    async with anyio.create_task_group() as tasks:
        runtime = MemoryRuntime(world, info, tasks)

        async def work() -> None:
            with runtimes.running(runtime):
                found.append(await made.run(runtime))
            tasks.cancel_scope.cancel()

        tasks.start_soon(work)
        await beside()
    return found[0]


async def test_both_ids_of_the_own_session_open_the_same_handle() -> None:
    async def fn(payload: Any) -> None:
        own: Any = sessions.open("session_1")
        assert isinstance(own, OwnHandle)
        again: Any = sessions.open("key-1")
        assert again is own
        other: Any = sessions.open("session_2")
        assert not isinstance(other, OwnHandle)

    await run_task(World("key-1"), fn)


async def test_waits_of_the_own_session_are_values_that_unwrap() -> None:
    world = World("key-1")
    seen: list[Any] = []

    async def fn(payload: Any) -> None:
        in_: Any = sessions.open("key-1").in_
        seen.append(await in_.once(timeout=5))
        seen.append(await in_.wait_with_idle_timeout(10, skip_suspend=True))
        seen.append(await in_.wait(timeout="1h"))

    async def beside() -> None:
        assert isinstance(world.clock, VirtualClock)
        await world.post('{"n":1}')
        await anyio.wait_all_tasks_blocked()
        await world.clock.advance(10)
        await world.post('{"n":2}')

    await run_task(world, fn, beside=beside)
    first, second, third = seen
    assert first == Ok({"n": 1}, 0)
    assert first.ok
    assert isinstance(second, Err)
    assert not second.ok
    with pytest.raises(WaitTimeoutError):
        second.unwrap()
    assert third.unwrap() == {"n": 2}


async def test_what_is_written_carries_the_runs_fence_and_can_be_read_back() -> None:
    world = World("key-1")

    async def fn(payload: Any) -> list[Any]:
        session: Any = sessions.open("key-1")
        await session.out.append({"a": 1})
        await session.out.append({"b": 2})
        return [value async for value in _first_two(session.out.read())]

    assert await run_task(world, fn) == b'[{"a":1},{"b":2}]'
    assert [record.fence for record in await world.read_all("out")] == [1, 1]


async def _first_two(values: Any) -> Any:
    async for value in values:
        yield value
        if value == {"b": 2}:
            await values.aclose()
            return


async def test_reading_the_own_output_ends_when_it_stays_silent() -> None:
    world = World("key-1")

    async def fn(payload: Any) -> list[Any]:
        session: Any = sessions.open("key-1")
        await session.out.append("only")
        return [value async for value in session.out.read(timeout=7)]

    async def beside() -> None:
        assert isinstance(world.clock, VirtualClock)
        await anyio.wait_all_tasks_blocked()
        await world.clock.advance(7)

    assert await run_task(world, fn, beside=beside) == b'["only"]'


async def test_a_record_counts_as_consumed_when_the_next_is_asked_for_or_the_task_returns() -> None:
    world = World("key-1")
    for text in ("1", "2", "3"):
        await world.post(text)
    told: list[Any] = []

    async def fn(payload: Any) -> None:
        in_: Any = sessions.open("key-1").in_
        for _ in range(2):
            value = await in_.receive()
            told.append((value, world.consumed))

    await run_task(world, fn)
    assert told == [(1, None), (2, 0)]
    assert world.consumed == 1


async def test_an_attempt_that_fails_gets_its_last_record_again() -> None:
    world = World("key-1")
    await world.post("1")

    async def failing(payload: Any) -> None:
        await sessions.open("key-1").in_.once()
        raise ValueError("after reading")

    with pytest.raises(BaseExceptionGroup) as caught:
        await run_task(world, failing)
    assert caught.group_contains(AttemptFailed, depth=1)
    assert world.consumed is None


async def test_the_next_run_reads_on_after_what_was_consumed() -> None:
    world = World("key-1")
    for text in ("1", "2", "3"):
        await world.post(text)

    async def fn(payload: Any) -> Any:
        return (await sessions.open("key-1").in_.once()).unwrap()

    assert await run_task(world, fn, consumed=1) == b"3"
