"""Many runs at once: `batch.trigger`, `batch.trigger_and_wait`, `batch.retrieve`.

    handle = await batch.trigger([{"task": "resize", "payload": image} for image in images])

Up to a thousand items, of one task or of several. Inside a run the batch belongs to the run: its
runs are its children, and a recovered run finds the batch it had made. The id is journalled after
phase 1 and the run ids after phase 2, so a crash between the two sends the items again, which
starts nothing twice.

`trigger_and_wait` suspends on one run after the other, in the order of the items, and skips those
that have finished meanwhile; so it waits as long as the slowest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict, cast

import msgspec

from everturn.errors import InvalidRequest, NotInRunError
from everturn.tasks import codec, idempotency, waits
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.bridge import either
from everturn.tasks.results import RunResult, result_of
from everturn.tasks.triggers import TriggerOptions, wire_options

# The HTTP client is resolved on first use: most runs never need it.
if TYPE_CHECKING:
    from everturn.client.batches import Batch, BatchHandle
    from everturn.tasks.runtime import RunRuntime

_CREATE: Final = "batch:create"
_FILL: Final = "batch:fill"


class BatchItem(TypedDict):
    """One item: `task` is an id or a task, `options` are those of a trigger."""

    task: Any
    payload: NotRequired[Any]
    options: NotRequired[TriggerOptions]


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the runs of a batch ended, in the order of its items."""

    id: str
    runs: tuple[RunResult[Any], ...]

    def __iter__(self) -> Iterator[RunResult[Any]]:
        return iter(self.runs)


@either
async def trigger(
    items: Iterable[BatchItem], *, idempotency_key: str | Sequence[str] | None = None
) -> BatchHandle:
    """Start a run for each item; returns once all are stored.

    Args:
        idempotency_key: the same key finds the same batch; items without a key of their own then
            get one made of it and their place.

    Raises:
        InvalidRequest: no item, more than limits.BATCH_ITEMS_MAX, or options that do not read.
        TaskNotFound, Unprocessable, TooLarge: an item cannot become a run.
    """
    handle, _ = await _trigger(list(items), idempotency_key, wait=False)
    return handle


@either
async def trigger_and_wait(
    items: Iterable[BatchItem], *, idempotency_key: str | Sequence[str] | None = None
) -> BatchResult:
    """Start a run for each item and suspend until all are final; failures do not raise.

    Raises what `trigger` raises, and NotInRunError outside a run.
    """
    if runtimes.current_or_none() is None:
        raise NotInRunError("only code inside a run can wait for runs: use trigger() here")
    handle, run_ids = await _trigger(list(items), idempotency_key, wait=True)
    results = [result_of(await waits.for_run(run_id)) for run_id in run_ids]
    return BatchResult(id=handle.id, runs=tuple(results))


@either
async def retrieve(batch: str | BatchHandle) -> Batch:
    """A batch as it stands, by its id. Raises NotFound."""
    from everturn.client import batches

    return await batches.retrieve(batch)


async def _trigger(
    items: list[BatchItem], key: str | Sequence[str] | None, *, wait: bool
) -> tuple[BatchHandle, tuple[str, ...]]:
    from everturn.client import batches

    batches.check_count(len(items))
    keyed = idempotency.options(key, None)
    wire = [_wire(item, index, keyed.get("idempotencyKey")) for index, item in enumerate(items)]
    body: dict[str, Any] = {"runCount": len(items), **keyed}
    runtime = runtimes.current_or_none()
    if runtime is None:
        handle = await batches.create(body)
        if not handle.is_cached or await _is_unfilled(handle, len(wire)):
            await batches.fill(handle.id, wire)
        return handle, ()
    body["parentRunId"] = runtime.info.run_id
    if wait:
        body["resumeParentOnCompletion"] = True
    return await _in_run(runtime, body, wire)


async def _is_unfilled(handle: BatchHandle, count: int) -> bool:
    """Whether the batch that a key found still misses items, and these are as many.

    Whoever made it may have died before all of them were stored. Where it is still at it, both
    send, and each item starts one run.
    """
    from everturn.client import batches

    found = await batches.retrieve(handle)
    return found.status == "PENDING" and found.run_count == count


async def _in_run(
    runtime: RunRuntime, body: Mapping[str, Any], wire: list[dict[str, Any]]
) -> tuple[BatchHandle, tuple[str, ...]]:
    from everturn.client import batches

    journal = scopes.of(runtime).journal
    place, stored = journal.take(_CREATE)
    if stored is not None:
        handle = msgspec.json.decode(stored, type=batches.BatchHandle)
    else:
        handle = await batches.create(body)
        await journal.put(runtime, place, _CREATE, msgspec.json.encode(handle))
    place, stored = journal.take(_FILL)
    if stored is not None:
        return handle, msgspec.json.decode(stored, type=tuple[str, ...])
    await batches.fill(handle.id, wire)
    runs = (await batches.retrieve(handle)).runs
    await journal.put(runtime, place, _FILL, msgspec.json.encode(runs))
    return handle, runs


def _wire(item: Mapping[str, Any], index: int, batch_key: str | None) -> dict[str, Any]:
    """An item as its line has it, without its index."""
    unknown = set(item) - {"task", "payload", "options"}
    if unknown or "task" not in item:
        raise InvalidRequest(f"item {index}: an item has task, payload and options")
    task = item["task"]
    options = wire_options(cast("TriggerOptions", item.get("options") or {}))
    if batch_key is not None and "idempotencyKey" not in options:
        derived = idempotency.create([batch_key, str(index)], scope="global")
        options["idempotencyKey"] = str(derived)
    line: dict[str, Any] = {
        "task": task if isinstance(task, str) else task.task_id,
        "options": options,
    }
    if item.get("payload") is not None:
        line["payload"] = msgspec.json.decode(codec.encode(item["payload"]))
        options["payloadType"] = codec.JSON
    return line
