"""Batches over HTTP: create, stream items, retrieve, results (wire-protocol §10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import msgspec

from everturn.errors import InvalidRequest, NotAllowed
from everturn.protocol.batches import BatchItem, CreateBatch, WholeBatch, parse_line
from everturn.protocol.problems import UnsupportedMediaType
from everturn.protocol.sessions import decode
from everturn.rules import limits
from everturn.rules.access import UNAUTHORIZED, Resource, may, require
from everturn.server.routes.calls import Answer, Call, answer

if TYPE_CHECKING:
    from everturn.storage.ports.batches import Batch

_NDJSON: Final = "application/x-ndjson"


async def create(call: Call) -> Answer:
    """POST /api/v3/batches: say how many items will come."""
    body = decode(await call.body(limits.BATCH_BODY_BYTES_MAX), CreateBatch)
    _require_some_task(call)
    environment_id = call.caller.environment_id
    batch, is_cached = await call.services.batches.create(
        environment_id,
        body,
        request_key=call.header(b"x-trigger-request-idempotency-key"),
        token_otu=call.caller.one_time_use,
        token_expires_ms=call.caller.expires_at_ms,
    )
    scopes = [f"read:batch:{batch.id}"]
    if call.header(b"x-trigger-client") == "browser":
        scopes.append(f"write:batch:{batch.id}")
    token = await call.services.tokens.mint(environment_id, scopes)
    # Clients spread this into a token they sign themselves: with scopes in it those would win.
    claims = msgspec.json.encode({"sub": environment_id, "pub": True})
    shown: dict[str, object] = {
        "id": batch.id,
        "runCount": batch.run_count,
        "isCached": is_cached,
    }
    if batch.idempotency_key is not None:
        shown["idempotencyKey"] = batch.idempotency_key
    headers = ((b"x-trigger-jwt", token.encode()), (b"x-trigger-jwt-claims", claims))
    return answer(shown, 202, headers)


async def create_whole(call: Call) -> Answer:
    """POST /api/v2/tasks/batch: both phases in one request, as older clients send it."""
    body = decode(await call.body(limits.TRIGGER_BODY_BYTES_MAX), WholeBatch)
    key = call.header(b"idempotency-key")
    if key is not None and not 1 <= len(key) <= limits.IDEMPOTENCY_KEY_CHARS_MAX:
        raise InvalidRequest(
            f"idempotency-key has 1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} characters"
        )
    batches, environment_id = call.services.batches, call.caller.environment_id
    asked = CreateBatch(run_count=len(body.items), idempotency_key=key)
    request_key = call.header(b"x-trigger-request-idempotency-key")
    batch, is_cached = await batches.create(environment_id, asked, request_key=request_key)

    async def items() -> AsyncIterator[BatchItem]:
        for index, item in enumerate(body.items[: batch.run_count]):
            yield BatchItem(index=index, task=item.task, payload=item.payload, options=item.options)

    # Also of a batch that was there: the call that made it may have been cut short.
    await batches.fill(batch, items())
    shown: dict[str, object] = {
        "id": batch.id,
        "isCached": is_cached,
        "runCount": batch.run_count,
    }
    if batch.idempotency_key is not None:
        shown["idempotencyKey"] = batch.idempotency_key
    return answer(shown, 202)


def _require_some_task(call: Call) -> None:
    """A token for any one task may begin: which tasks the items name is checked item by item."""
    whole: list[Resource] = [("tasks", None), ("batch", None)]
    if may(call.caller, "batchTrigger", whole):
        return
    if not any(_names_a_task(scope) for scope in call.caller.scopes):
        raise NotAllowed(UNAUTHORIZED)


def _names_a_task(scope: str) -> bool:
    action, _, rest = scope.partition(":")
    return action in ("batchTrigger", "*") and rest.startswith("tasks:")


async def add_items(call: Call) -> Answer:
    """POST /api/v3/batches/:batch/items: the items, one JSON object a line."""
    kind = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
    if kind != _NDJSON:
        raise UnsupportedMediaType(f"Content-Type must be {_NDJSON}")
    batch_id = call.params["batch"]
    whole = may(call.caller, "write", [("batch", batch_id)])
    if not whole:
        _require_some_task(call)
    batch = await call.services.batches.find(call.caller.environment_id, batch_id)
    if call.caller.one_time_use is not None and call.caller.one_time_use != batch.token_otu:
        # Its one use is the batch it made, over both phases (§3.5).
        raise NotAllowed(UNAUTHORIZED)
    filled = await call.services.batches.fill(batch, _items(call, batch, whole=whole))
    return answer(
        {
            "id": batch.id,
            "itemsAccepted": filled.accepted,
            "itemsDeduplicated": filled.deduplicated,
            "sealed": filled.batch.sealed_at_ms is not None,
            "enqueuedCount": filled.enqueued,
            "expectedCount": batch.run_count,
            "runCount": batch.run_count,
        }
    )


async def _items(call: Call, batch: Batch, *, whole: bool) -> AsyncIterator[BatchItem]:
    async for line in call.lines(limits.BATCH_LINE_BYTES_MAX):
        item = parse_line(line, batch.run_count)
        if not whole:
            require(call.caller, "batchTrigger", [("tasks", item.task)])
        yield item


async def retrieve(call: Call) -> Answer:
    """GET /api/v2/batches/:batch: a batch and the ids of its runs."""
    return answer(await call.services.batches.view(await _readable(call)))


async def results(call: Call) -> Answer:
    """GET /api/v1/batches/:batch/results: what its finished runs returned, in order."""
    return answer(await call.services.batches.results(await _readable(call)))


async def _readable(call: Call) -> Batch:
    batch_id = call.params["batch"]
    require(call.caller, "read", [("batch", batch_id), ("runs", None)])
    return await call.services.batches.find(call.caller.environment_id, batch_id)
