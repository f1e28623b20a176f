"""Batches: made with a count, filled with items that become runs, read back (wire-protocol §10).

An item becomes a run in two steps: the run is created under a request key that names batch and
index, and then the item is noted on the batch. A crash between the two leaves a run that the next
sending of the same item finds by its key; nothing is started twice.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio

from everturn.errors import EverturnError, InvalidRequest, NotFound, Unprocessable
from everturn.protocol.batches import BatchItem, CreateBatch
from everturn.rules.run_states import FINAL
from everturn.server.services.results import execution_result, iso
from everturn.server.services.trigger_options import KEY_LIFETIME_S
from everturn.storage.ports.batches import Batch, NewBatch

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Run

log = logging.getLogger("everturn.batches")

#: Items of one request that are made into runs at the same time (tasks-and-runs §10).
_PARALLEL: Final = 10


class Filled(NamedTuple):
    """What one request of phase 2 did."""

    batch: Batch
    accepted: int
    deduplicated: int
    enqueued: int


class Batches:
    """Batches of all environments."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(
        self,
        environment_id: str,
        body: CreateBatch,
        *,
        request_key: str | None = None,
        token_otu: str | None = None,
        token_expires_ms: int | None = None,
    ) -> tuple[Batch, bool]:
        """Phase 1; `(batch, True)` when a key found an earlier one.

        Raises:
            InvalidRequest: the parent names no run.
            Unprocessable: the parent is finished and cannot wait, or the one-time-use token was
                used before.
        """
        now_ms = self._services.clock.now_ms()
        if body.parent_run_id is not None:
            parent = await self._services.state.run(environment_id, body.parent_run_id)
            if parent is None:
                raise InvalidRequest(f"parentRunId {body.parent_run_id} names no run")
            if body.resume_parent_on_completion and parent.state in FINAL:
                raise Unprocessable("the parent run is finished and cannot wait for a batch")
        expires_ms = None if body.idempotency_key is None else now_ms + KEY_LIFETIME_S * 1000
        if token_otu is not None:
            # The batch is what says that the token was used.
            expires_ms = token_expires_ms
        new = NewBatch(
            id=self._services.ids.new("batch"),
            run_count=body.run_count,
            parent_run_id=body.parent_run_id,
            awaited=body.resume_parent_on_completion and body.parent_run_id is not None,
            idempotency_key=body.idempotency_key,
            idempotency_expires_ms=expires_ms,
            request_key=request_key,
            token_otu=token_otu,
        )
        made, created = await self._services.state.create_batch(environment_id, new, now_ms=now_ms)
        if not created and token_otu is not None:
            raise Unprocessable("This one-time use token has already been used")
        return made, not created

    async def find(self, environment_id: str, batch_id: str) -> Batch:
        """A batch by its id. Raises NotFound."""
        found = await self._services.state.batch(environment_id, batch_id)
        if found is None:
            raise NotFound("Batch not found", should_retry=False)
        return found

    async def fill(self, batch: Batch, items: AsyncIterator[BatchItem]) -> Filled:
        """Phase 2: make items into runs as they come; those that are known already are counted.

        Raises what triggering the first bad item raises; the items before it are kept, and the
        same stream may be sent again.
        """
        known = {index for index, _ in await self._services.state.batch_items(batch.id)}
        accepted = deduplicated = 0
        waiting: list[BatchItem] = []
        async for item in items:
            if item.index in known:
                deduplicated += 1
                continue
            known.add(item.index)
            waiting.append(item)
            if len(waiting) == _PARALLEL:
                accepted += await self._start_all(batch, waiting)
                waiting = []
        accepted += await self._start_all(batch, waiting)
        after = await self.find(batch.environment_id, batch.id)
        return Filled(after, accepted, deduplicated, len(known))

    async def _start_all(self, batch: Batch, items: list[BatchItem]) -> int:
        failures: list[tuple[int, EverturnError]] = []

        async def start(item: BatchItem) -> None:
            try:
                await self._start(batch, item)
            except EverturnError as error:
                failures.append((item.index, error))

        async with anyio.create_task_group() as tasks:
            for item in items:
                tasks.start_soon(start, item)
        if failures:
            raise min(failures, key=lambda failure: failure[0])[1]
        return len(items)

    async def _start(self, batch: Batch, item: BatchItem) -> None:
        run, _ = await self._services.runs.trigger(
            batch.environment_id,
            item.task,
            item.body(),
            request_key=f"batch:{batch.id}:{item.index}",
            batch=(batch, item.index),
        )
        await self._services.state.add_batch_item(
            batch.environment_id,
            batch.id,
            item.index,
            run.id,
            now_ms=self._services.clock.now_ms(),
        )

    # --- views -------------------------------------------------------------------------------

    async def view(self, batch: Batch) -> dict[str, Any]:
        """A batch as `batch.retrieve` answers it (§10.3)."""
        runs = await self._services.state.batch_runs(batch.environment_id, batch.id)
        view: dict[str, Any] = {
            "id": batch.id,
            "status": status_of(batch, list(runs)),
            "createdAt": iso(batch.created_at_ms),
            "updatedAt": iso(batch.updated_at_ms),
            "runCount": batch.run_count,
            "runs": [run.id for run in runs],
            "processing": {"errors": []},
        }
        if batch.sealed_at_ms is not None:
            view["processing"]["completedAt"] = iso(batch.sealed_at_ms)
        if batch.idempotency_key is not None:
            view["idempotencyKey"] = batch.idempotency_key
        return view

    async def results(self, batch: Batch) -> dict[str, Any]:
        """The results of those runs of a batch that are final, in the order of its items."""
        runs = await self._services.state.batch_runs(batch.environment_id, batch.id)
        found = (execution_result(run) for run in runs)
        return {"id": batch.id, "items": [result for result in found if result is not None]}


def status_of(batch: Batch, runs: list[Run]) -> str:
    """PENDING until all items came, PROCESSING until all runs are final, then COMPLETED.

    An item that cannot become a run refuses its request, so a batch is never partly failed.
    """
    if batch.sealed_at_ms is None:
        return "PENDING"
    return "COMPLETED" if all(run.state in FINAL for run in runs) else "PROCESSING"
