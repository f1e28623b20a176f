"""Lanes of a link: order within a run, and few tasks for many appends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from everturn.protocol.link import Acked, Append
from everturn.protocol.records import NewRecord
from everturn.server.services.link_lanes import Lanes
from everturn.storage.ports.streams import Appended

pytestmark = pytest.mark.anyio


class Store:
    """An outbox that keeps what it is given, as long as nobody holds it up."""

    def __init__(self) -> None:
        self.appends: list[tuple[str, int, int]] = []
        self.open = anyio.Event()

    async def append_run(
        self, run_id: str, fence: int, first_part: int, records: list[NewRecord]
    ) -> Appended:
        await self.open.wait()
        self.appends.append((run_id, first_part, len(records)))
        return Appended(tuple(range(first_part, first_part + len(records))), len(records), 0)


class Answers:
    """A sender that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self._more = anyio.Event()

    def send(self, frame: Any, lane: str) -> None:
        self.frames.append(frame)
        self._more.set()

    async def reach(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self.frames) < count:
                self._more = anyio.Event()
                await self._more.wait()


def lanes_of(store: Store, answers: Answers, tasks: TaskGroup) -> Lanes:
    services: Any = SimpleNamespace(outbox=store)
    sender: Any = answers
    return Lanes(services, sender, tasks, lambda run_id, fence: None)


def part(run_id: str, number: int) -> Append:
    return Append(run_id, 1, number, [NewRecord(b"x")])


async def test_what_came_while_an_append_was_stored_is_stored_together_and_acked_in_order() -> None:
    store, answers = Store(), Answers()
    async with anyio.create_task_group() as tasks:
        lanes = lanes_of(store, answers, tasks)
        await lanes.put(part("r", 0))
        await anyio.lowlevel.checkpoint()
        for number in range(1, 4):
            await lanes.put(part("r", number))
        store.open.set()
        await answers.reach(4)
        tasks.cancel_scope.cancel()
    assert store.appends == [("r", 0, 1), ("r", 1, 3)]
    assert answers.frames == [Acked("r", 1, number, [number]) for number in range(4)]


async def test_runs_that_speak_in_turn_share_one_task() -> None:
    store, answers = Store(), Answers()
    store.open.set()
    alone = len(anyio.get_running_tasks())
    async with anyio.create_task_group() as tasks:
        lanes = lanes_of(store, answers, tasks)
        for number in range(20):
            await lanes.put(part(f"r{number % 3}", number))
            await answers.reach(number + 1)
        assert len(anyio.get_running_tasks()) == alone + 1
        tasks.cancel_scope.cancel()


async def test_a_frame_that_comes_as_the_link_ends_does_no_harm() -> None:
    store, answers = Store(), Answers()
    store.open.set()
    async with anyio.create_task_group() as tasks:
        lanes = lanes_of(store, answers, tasks)
        await lanes.put(part("r", 0))
        await answers.reach(1)
        tasks.cancel_scope.cancel()
        await lanes.put(part("r", 1))
    assert answers.frames == [Acked("r", 1, 0, [0])]
