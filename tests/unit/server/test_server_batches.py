"""Items of a batch and the crash between a run and its note (wire-protocol §10)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from engine_kit import Kit

from everturn.protocol.batches import BatchItem, CreateBatch
from everturn.protocol.runs import TaskDeclaration
from everturn.storage.ports.batches import Batch
from everturn.storage.ports.rows import RunFilter

pytestmark = pytest.mark.anyio


async def opened(count: int) -> tuple[Kit, Batch]:
    kit = await Kit(tasks=[TaskDeclaration(task_id="job")]).open()
    async with kit.worker():
        pass  # the task is registered by now
    body = CreateBatch(run_count=count)
    return kit, (await kit.services.batches.create(kit.environment.id, body))[0]


async def items(count: int) -> AsyncIterator[BatchItem]:
    for index in range(count):
        yield BatchItem(index=index, task="job", payload={"n": index})


async def test_a_run_that_was_started_and_not_noted_is_found_by_the_next_sending() -> None:
    kit, batch = await opened(2)
    run, _ = await kit.services.runs.trigger(
        kit.environment,
        "job",
        {"payload": {"n": 0}},
        request_key=f"batch:{batch.id}:0",
        batch=(batch, 0),
    )

    filled = await kit.services.batches.fill(batch, items(2))
    runs = await kit.state.runs(kit.environment.id, RunFilter(), limit=10)

    assert filled.batch.sealed_at_ms is not None
    assert len(runs.items) == 2
    assert (await kit.state.batch_items(batch.id))[0] == (0, run.id)


async def test_two_sendings_at_once_start_every_item_once() -> None:
    kit, batch = await opened(25)

    async def send() -> None:
        await kit.services.batches.fill(batch, items(25))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        tasks.start_soon(send)

    runs = await kit.state.batch_runs(kit.environment.id, batch.id)
    everything = await kit.state.runs(kit.environment.id, RunFilter(), limit=100)
    assert len({run.id for run in runs}) == len(everything.items) == 25


async def test_items_run_in_their_order_whatever_the_order_they_came_in() -> None:
    kit, batch = await opened(3)

    async def backwards() -> AsyncIterator[BatchItem]:
        for index in (2, 0, 1):
            yield BatchItem(index=index, task="job")

    await kit.services.batches.fill(batch, backwards())
    async with kit.worker(credit=3) as worker:
        claimed = [(await worker.claim()).run_id for _ in range(3)]

    runs = await kit.state.batch_runs(kit.environment.id, batch.id)
    assert claimed == [run.id for run in runs]
