"""Run subscriptions over HTTP (wire-protocol §12): one run, runs by tags, a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from everturn.errors import InvalidRequest, NotFound, RunNotFound
from everturn.protocol import shapes
from everturn.rules import durations, limits
from everturn.rules.access import Resource, require, run_resources
from everturn.server.routes.calls import JSON, Answer, Call, listed, query_error
from everturn.server.services.changes import run_topic, runs_topic
from everturn.server.services.realtime import columns_without

if TYPE_CHECKING:
    from everturn.server.services.realtime import Read
    from everturn.storage.ports.rows import Run

_DAY_MS: Final = 24 * 3600 * 1000


async def run(call: Call) -> Answer:
    """GET /realtime/v1/runs/:run: follow one run."""
    environment_id, run_id = call.caller.environment_id, call.params["run"]
    found = await call.services.state.run(environment_id, run_id)
    if found is None:
        raise RunNotFound("Not found", should_retry=False)
    require(call.caller, "read", run_resources(found.id, found.task_id, found.tags, found.batch_id))

    async def read() -> list[Run]:
        row = await call.services.state.run(environment_id, run_id)
        return [] if row is None else [row]

    return await _answer(call, read, run_topic(run_id), f"run-{found.id}")


async def runs(call: Call) -> Answer:
    """GET /realtime/v1/runs: follow the runs that have all of `tags`."""
    query = call.query
    tags = tuple(dict.fromkeys(listed(query, "tags")))
    resources: list[Resource] = [("runs", None), ("tags", None)]
    require(call.caller, "read", [*resources, *(("tags", tag) for tag in tags)])
    if len(tags) > limits.PAGE_SIZE_MAX:
        raise query_error(f"at most {limits.PAGE_SIZE_MAX} tags", "tags")
    environment_id = call.caller.environment_id
    since_ms = _since_ms(call, query)

    async def read() -> list[Run]:
        return list(await call.services.realtime.tagged(environment_id, tags, since_ms))

    # The beginning of the window travels in the handle: it does not move under a subscriber.
    return await _answer(call, read, runs_topic(environment_id), f"runs-{since_ms}")


async def batch(call: Call) -> Answer:
    """GET /realtime/v1/batches/:batch: follow the runs of a batch."""
    environment_id, batch_id = call.caller.environment_id, call.params["batch"]
    require(call.caller, "read", [("batch", batch_id), ("runs", None)])
    if await call.services.state.batch(environment_id, batch_id) is None:
        raise NotFound("Not found", should_retry=False)

    async def read() -> list[Run]:
        return list(await call.services.realtime.batch(environment_id, batch_id))

    return await _answer(call, read, runs_topic(environment_id), f"batch-{batch_id}")


async def _answer(call: Call, read: Read, topic: str, handle: str) -> Answer:
    query = call.query
    offset = shapes.parse_offset(query.get("offset", "-1"))
    columns = columns_without((*call.caller.skip_columns, *listed(query, "skipColumns")))
    live = query.get("live") == "true" and offset is not None
    realtime = call.services.realtime
    if live and offset is not None:
        seen = await realtime.wait(read, columns, offset.mark, topic)
    else:
        seen = await realtime.look(read, columns)
    if offset is None:
        body = shapes.body(seen.rows, operation="insert")
    elif seen.offset.mark == offset.mark:
        body = shapes.body((), operation="update")
    else:
        since_ms = offset.at_ms - shapes.MARGIN_MS
        changed = [
            row
            for found, row in zip(seen.runs, seen.rows, strict=True)
            if len(seen.runs) == 1 or found.updated_at_ms >= since_ms
        ]
        body = shapes.body(changed, operation="update")
    headers = shapes.headers(
        handle,
        seen.offset,
        columns=None if live else columns,
        old_names=call.header(b"x-trigger-electric-version") is None,
    )
    return Answer(200, body, (JSON, *headers))


def _since_ms(call: Call, query: dict[str, str]) -> int:
    kind, _, since = query.get("handle", "").partition("-")
    if kind == "runs" and since.isascii() and since.isdigit() and len(since) < 16:
        return int(since)
    now_ms = call.services.clock.now_ms()
    text = query.get("createdAt")
    if text is None:
        return now_ms - _DAY_MS
    try:
        back_s = durations.parse(text)
    except InvalidRequest:
        raise query_error("a duration such as 24h", "createdAt") from None
    return now_ms - round(min(back_s, limits.REALTIME_WINDOW_S_MAX) * 1000)
