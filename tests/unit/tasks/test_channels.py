"""Delivery on a session's channels inside a run (chat-agent §6.4, §6.5, §9.17)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from everturn.errors import InputStreamTimeoutError, WaitTimeoutError
from everturn.protocol.runs import RunInfo
from everturn.tasks.channels import Err, Ok, SessionInput, SessionOutput, decode_data
from everturn.tasks.signals import Signal, Stopped
from everturn.testing.clock import VirtualClock
from everturn.testing.runtime import MemoryRuntime, World

pytestmark = pytest.mark.anyio


class Room:
    """A run of a raw task, its world, and both its channels."""

    def __init__(self, world: World, runtime: MemoryRuntime, tasks: Any) -> None:
        self.world = world
        self.runtime = runtime
        self.tasks = tasks
        self.in_: SessionInput[Any] = SessionInput(
            runtime, tasks, decode=decode_data, remember=True
        )
        self.out = SessionOutput(runtime)

    async def advance(self, seconds: float) -> None:
        assert isinstance(self.world.clock, VirtualClock)
        await self.world.clock.advance(seconds)


@asynccontextmanager
async def room() -> AsyncIterator[Room]:
    world = World("raw")
    info = RunInfo(
        run_id="run_1", task_id="raw", environment_id="env_test", environment_slug="dev",
        fence=await world.next_fence(), attempt=1, payload=b"{}", session_id="session_1",
        session_key="raw", version="v1", queue="task/raw", max_attempts=1,
        created_at_ms=0, started_at_ms=0,
    )  # fmt: skip
    async with anyio.create_task_group() as tasks:
        yield Room(world, MemoryRuntime(world, info, tasks), tasks)
        tasks.cancel_scope.cancel()


async def test_once_gives_the_next_record_or_an_error_in_time() -> None:
    """R-243."""
    async with room() as r:
        await r.world.post('{"n":1}')
        first = await r.in_.once(timeout=5)
        assert first == Ok({"n": 1}, 0)
        found: list[Any] = []

        async def ask() -> None:
            found.append(await r.in_.once(timeout="5s"))

        r.tasks.start_soon(ask)
        await r.advance(5)
        assert isinstance(found[0], Err)
        with pytest.raises(InputStreamTimeoutError):
            found[0].unwrap()


async def test_two_pending_onces_get_two_records_oldest_first() -> None:
    """R-245."""
    async with room() as r:
        found: list[tuple[str, Any]] = []

        async def ask(name: str) -> None:
            found.append((name, await r.in_.receive()))

        r.tasks.start_soon(ask, "a")
        await anyio.wait_all_tasks_blocked()
        r.tasks.start_soon(ask, "b")
        await anyio.wait_all_tasks_blocked()
        await r.world.post("1")
        await r.world.post("2")
        await anyio.wait_all_tasks_blocked()
    assert found == [("a", 1), ("b", 2)]


async def test_only_a_synchronous_true_consumes() -> None:
    """R-246."""
    async with room() as r:
        seen: list[Any] = []

        async def asynchronous(value: Any) -> bool:
            seen.append(value)
            return True

        def consuming(value: Any) -> Any:
            return True if value == 2 else None

        def failing(value: Any) -> None:
            raise ValueError("handler")

        for handler in (asynchronous, consuming, failing):
            r.in_.on(handler)
        for text in ("1", "2", "3"):
            await r.world.post(text)
        await anyio.wait_all_tasks_blocked()
        assert seen == [1, 2, 3]
        assert r.in_.peek() == 1
        assert [await r.in_.receive(), await r.in_.receive()] == [1, 3]


async def test_a_late_handler_is_offered_what_is_buffered() -> None:
    """R-247."""
    async with room() as r:
        r.in_.open()
        for text in ("1", "2", "3"):
            await r.world.post(text)
        await anyio.wait_all_tasks_blocked()
        offered: list[Any] = []

        def take_two(value: Any) -> bool:
            offered.append(value)
            return bool(value == 2)

        undo = r.in_.on(take_two)
        undo()
        assert offered == [1, 2, 3]
        assert [await r.in_.receive(), await r.in_.receive()] == [1, 3]


async def test_waiting_serves_the_buffer_first_and_loses_nothing() -> None:
    """R-248, R-249, D-04."""
    async with room() as r:
        r.in_.open()
        await r.world.post("1")
        await anyio.wait_all_tasks_blocked()
        assert (await r.in_.wait()).unwrap() == 1
        assert r.world.waits == []
        await r.in_.close()
        await r.world.post("2")
        assert await r.in_.wait() == Ok(2, 1)
        assert r.world.waits == [(0, None)]


async def test_a_wake_delivers_a_record_once_also_past_a_handler() -> None:
    """R-250."""
    async with room() as r:
        seen: list[Any] = []
        r.in_.on(lambda value: seen.append(value))
        found: list[Any] = []

        async def ask() -> None:
            found.append(await r.in_.wait())
            found.append(await r.in_.once())

        r.tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert r.runtime.suspended
        await r.world.post("1")
        await anyio.wait_all_tasks_blocked()
        await r.world.post("2")
        await anyio.wait_all_tasks_blocked()
    assert found == [Ok(1, 0), Ok(2, 1)]
    assert seen == [1, 2]


async def test_suspend_and_resume_callbacks_frame_the_suspension_only() -> None:
    """R-251."""
    async with room() as r:
        log: list[str] = []
        found: list[Any] = []

        async def ask() -> None:
            found.append(
                await r.in_.wait_with_idle_timeout(
                    10,
                    on_suspend=lambda: log.append(f"suspend {len(r.world.waits)}"),
                    on_resume=lambda: log.append("resume"),
                )
            )

        r.tasks.start_soon(ask)
        await r.advance(9)
        await r.world.post("1")
        await anyio.wait_all_tasks_blocked()
        assert log == []
        r.tasks.start_soon(ask)
        await r.advance(10)
        await r.world.post("2")
        await anyio.wait_all_tasks_blocked()
    assert log == ["suspend 0", "resume"]
    assert [one.output for one in found] == [1, 2]


async def test_skipping_the_suspension_is_an_error_after_the_window() -> None:
    """R-252, R-243."""
    async with room() as r:
        found: list[Any] = []

        async def ask() -> None:
            found.append(await r.in_.wait_with_idle_timeout(10, skip_suspend=True))
            found.append(await r.in_.wait(timeout=20))

        r.tasks.start_soon(ask)
        await r.advance(10)
        await r.advance(20)
        assert len(r.world.waits) == 1
    for one in found:
        with pytest.raises(WaitTimeoutError):
            one.unwrap()


async def test_an_aborted_signal_raises() -> None:
    """§6.4."""
    async with room() as r:
        signal = Signal()
        raised = anyio.Event()

        async def ask() -> None:
            with pytest.raises(Stopped):
                await r.in_.once(signal=signal)
            raised.set()

        r.tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        signal.abort()
        await raised.wait()
        await r.world.post("1")
        assert await r.in_.receive() == 1


async def test_seek_reads_again_and_asking_for_more_reports_what_is_consumed() -> None:
    """X-06, rulings §1.16."""
    async with room() as r:
        for text in ("1", "2"):
            await r.world.post(text)
        assert [await r.in_.receive(), await r.in_.receive()] == [1, 2]
        assert r.in_.last_dispatched_seq_num() == 1
        await r.in_.wait_with_idle_timeout(0, timeout=0)
        assert r.world.consumed == 1
        r.in_.seek(0)
        assert await r.in_.receive() == 1


async def test_iterating_is_receiving_for_ever() -> None:
    """§6.3."""
    async with room() as r:
        await r.world.post('"a"')
        await r.world.post("plain text")
        found = []
        async for value in r.in_:
            found.append(value)
            if len(found) == 2:
                break
    assert found == ["a", "plain text"]


async def test_output_keeps_the_order_of_calls_and_answers_with_numbers() -> None:
    """R-254, D-01."""
    async with room() as r:
        assert await r.out.append({"n": 1}) == 0
        assert await r.out.pipe(iter([2, 3])) == 2

        def fill(writer: Any) -> None:
            writer.merge([5])
            writer.write(4)

        await r.out.writer(fill)
        assert await r.out.write_control("custom") == 5
        assert await r.out.stored() == [{"n": 1}, 2, 3, 4, 5]
        await r.out.trim_to(3)
        await r.out.trim_to(1)
        bounds = await r.world.streams.bounds(r.world.channel("out"))
        assert bounds.first == 3
