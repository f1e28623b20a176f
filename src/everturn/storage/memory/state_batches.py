"""Batches in memory."""

from __future__ import annotations

from collections.abc import Sequence

from everturn.storage.memory.state_tables import Tables, changed
from everturn.storage.ports.batches import Batch, NewBatch, open_batch
from everturn.storage.ports.rows import Run


class Batches(Tables):
    """Making batches and filling them."""

    async def create_batch(
        self, environment_id: str, new: NewBatch, *, now_ms: int
    ) -> tuple[Batch, bool]:
        self._check_open()
        key = new.active_key
        if key is not None:
            found = self._batches.get(self._batch_keys.get((environment_id, key), ""))
            if found is not None:
                expires_ms = found.idempotency_expires_ms
                if expires_ms is None or expires_ms > now_ms:
                    return found, False
        batch = open_batch(environment_id, new, now_ms=now_ms)
        self._batches[batch.id] = batch
        self._batch_items[batch.id] = {}
        if key is not None:
            self._batch_keys[environment_id, key] = batch.id
        return batch, True

    async def batch(self, environment_id: str, batch_id: str) -> Batch | None:
        self._check_open()
        found = self._batches.get(batch_id)
        return found if found is not None and found.environment_id == environment_id else None

    async def add_batch_item(
        self, environment_id: str, batch_id: str, index: int, run_id: str, *, now_ms: int
    ) -> bool:
        batch = await self.batch(environment_id, batch_id)
        if batch is None or index in self._batch_items[batch_id]:
            return False
        items = self._batch_items[batch_id]
        items[index] = run_id
        sealed_ms = now_ms if len(items) == batch.run_count else batch.sealed_at_ms
        self._batches[batch_id] = changed(batch, updated_at_ms=now_ms, sealed_at_ms=sealed_ms)
        return True

    async def batch_items(self, batch_id: str) -> Sequence[tuple[int, str]]:
        self._check_open()
        return tuple(sorted(self._batch_items.get(batch_id, {}).items()))

    async def batch_runs(self, environment_id: str, batch_id: str) -> Sequence[Run]:
        if await self.batch(environment_id, batch_id) is None:
            return ()
        items = await self.batch_items(batch_id)
        return tuple(self._runs[run_id] for _, run_id in items if run_id in self._runs)
