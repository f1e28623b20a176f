"""Branches of one run that start their first children at the same time (tasks-and-runs §29.4)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.protocol.runs import RunInfo
from everturn.tasks.journal import Journal

pytestmark = pytest.mark.anyio


class SlowStore:
    """Stores what is journalled when it is let; the first try fails if it should."""

    def __init__(self, *, failing: bool = False) -> None:
        self.failing = failing
        self.go_on = anyio.Event()
        self.stored: list[bytes] = []

    async def journal_put(self, position: int, key: str, result: bytes) -> None:
        await self.go_on.wait()
        if self.failing:
            self.failing = False
            raise ConnectionError("not now")
        self.stored.append(result)


def journal() -> Journal:
    return Journal(
        RunInfo(
            run_id="run_1",
            task_id="t",
            environment_id="env",
            environment_slug="dev",
            fence=3,
            attempt=1,
            payload=b"null",
            version="v1",
            queue="task/t",
            max_attempts=3,
            created_at_ms=1,
            started_at_ms=2,
        )
    )


async def test_no_branch_uses_the_name_of_a_journal_before_it_is_stored() -> None:
    """A crash in between would give the next attempt another name, and the child a twin."""
    store: Any = SlowStore()
    named: list[tuple[str, int]] = []
    one = journal()

    async def name() -> None:
        named.append((await one.name(store), len(store.stored)))

    async with anyio.create_task_group() as branches:
        for _ in range(2):
            branches.start_soon(name)
        await anyio.wait_all_tasks_blocked()
        assert named == []
        store.go_on.set()

    assert named == [("run_1:3", 1)] * 2
    assert store.stored == [b"run_1:3"]


async def test_a_name_that_could_not_be_stored_is_not_used() -> None:
    store: Any = SlowStore(failing=True)
    store.go_on.set()
    one = journal()
    with pytest.raises(ConnectionError):
        await one.name(store)
    assert await one.name(store) == "run_1:3"
    assert store.stored == [b"run_1:3"]
