"""The port of batches: many runs asked for in two phases (wire-protocol §10).

A batch is made with the number of its items; items arrive afterwards, in any order and perhaps
several times, and each becomes a run. An item is kept under its index once its run exists. When
all indexes are there the batch is sealed. How far the runs are is read off the runs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from everturn.storage.ports.texts import Texts

if TYPE_CHECKING:
    from everturn.storage.ports.rows import Run


class NewBatch(Texts, frozen=True, kw_only=True):
    id: str  # batch_…
    run_count: int
    parent_run_id: str | None = None
    #: The parent waits for the runs: they inherit its place in the queue and its version.
    awaited: bool = False
    idempotency_key: str | None = None
    idempotency_expires_ms: int | None = None
    #: Of one HTTP call over its retries; looked at when there is no idempotency key.
    request_key: str | None = None
    #: Digest of the one-time-use token that made it: nothing else may use that token.
    token_otu: str | None = None

    @property
    def active_key(self) -> str | None:
        """What finds this batch again; None when nothing does."""
        if self.token_otu is not None:
            return f"otu:{self.token_otu}"
        if self.idempotency_key is not None:
            return f"key:{self.idempotency_key}"
        return None if self.request_key is None else f"request:{self.request_key}"


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    environment_id: str
    run_count: int
    created_at_ms: int
    updated_at_ms: int
    sealed_at_ms: int | None = None
    parent_run_id: str | None = None
    awaited: bool = False
    idempotency_key: str | None = None
    idempotency_expires_ms: int | None = None
    token_otu: str | None = None


def open_batch(environment_id: str, new: NewBatch, *, now_ms: int) -> Batch:
    """The row a new batch starts as, on every engine."""
    return Batch(
        id=new.id,
        environment_id=environment_id,
        run_count=new.run_count,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        parent_run_id=new.parent_run_id,
        awaited=new.awaited,
        idempotency_key=new.idempotency_key,
        idempotency_expires_ms=new.idempotency_expires_ms,
        token_otu=new.token_otu,
    )


class BatchStore(Protocol):
    """The part of the state port that keeps batches. Any call may raise Unavailable."""

    async def create_batch(
        self, environment_id: str, new: NewBatch, *, now_ms: int
    ) -> tuple[Batch, bool]:
        """Make a batch; `(batch, False)` when a key found an earlier one whose time is not over."""
        ...

    async def batch(self, environment_id: str, batch_id: str) -> Batch | None: ...

    async def add_batch_item(
        self, environment_id: str, batch_id: str, index: int, run_id: str, *, now_ms: int
    ) -> bool:
        """Keep that an item became this run. False, changing nothing, when the index is known.

        Seals the batch when this was the last one missing.
        """
        ...

    async def batch_items(self, batch_id: str) -> Sequence[tuple[int, str]]:
        """`(index, run id)` of the items so far, by index."""
        ...

    async def batch_runs(self, environment_id: str, batch_id: str) -> Sequence[Run]:
        """The runs of a batch so far, by index; one that several items found comes several times."""
        ...
