"""Batches over HTTP: many runs in two phases (wire-protocol §10).

Phase 1 says how many items come; phase 2 sends them. Items travel in requests of a few megabytes
each, so neither side ever holds a whole batch of large payloads, and a request whose answer was
lost is sent again: an item is known by its index and starts one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from everturn.client.api import Api
from everturn.errors import InvalidRequest, ProtocolError, Unavailable
from everturn.rules import limits

#: Bytes of items in one request of phase 2, unless one item alone is larger.
REQUEST_BYTES: Final = 1 * limits.MIB


class BatchHandle(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was triggered, or found by its idempotency key (`is_cached`)."""

    id: str
    run_count: int
    is_cached: bool = False
    public_access_token: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A batch as it stands: PENDING, PROCESSING or COMPLETED; `runs` are ids, by index."""

    id: str
    status: str
    run_count: int
    created_at: datetime
    updated_at: datetime
    runs: tuple[str, ...] = ()
    idempotency_key: str | None = None


async def create(body: Mapping[str, Any], *, api: Api | None = None) -> BatchHandle:
    """Phase 1, with a body as the wire has it."""
    answer, headers = await (api or Api()).create_batch(body)
    return BatchHandle(
        id=str(answer["id"]),
        run_count=int(answer["runCount"]),
        is_cached=bool(answer["isCached"]),
        public_access_token=headers.get("x-trigger-jwt"),
    )


async def fill(
    batch_id: str, items: Sequence[Mapping[str, Any]], *, api: Api | None = None
) -> None:
    """Phase 2: items as the wire has them, in their order.

    Raises:
        TooLarge, Unprocessable, TaskNotFound: an item cannot become a run.
        Unavailable: everything was sent, and the server still misses items.
    """
    api = api or Api()
    sealed = not items
    for lines in _requests(items):
        answer = await api.add_batch_items(batch_id, lines)
        sealed = bool(answer["sealed"])
    if not sealed:
        raise Unavailable(f"batch {batch_id} is not complete: trigger it again", batch_id=batch_id)


async def retrieve(batch: str | BatchHandle | Batch, *, api: Api | None = None) -> Batch:
    """A batch by its id. Raises NotFound."""
    batch_id = batch if isinstance(batch, str) else batch.id
    body = await (api or Api()).retrieve_batch(batch_id)
    try:
        return msgspec.convert(body, Batch)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the server's batch does not read: {error}") from error


def check_count(count: int) -> None:
    """Raise InvalidRequest for more items than a batch has, or none."""
    if not 1 <= count <= limits.BATCH_ITEMS_MAX:
        raise InvalidRequest(f"a batch has 1 to {limits.BATCH_ITEMS_MAX} items, not {count}")


def _requests(items: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for index, item in enumerate(items):
        line = msgspec.json.encode({"index": index, **item})
        if held and size + len(line) > REQUEST_BYTES:
            yield b"\n".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"\n".join(held)
