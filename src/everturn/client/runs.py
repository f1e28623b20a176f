"""`runs` and triggering tasks, from outside of runs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from everturn.client import run_shapes, wire
from everturn.client.api import Api
from everturn.client.paging import Listing
from everturn.errors import InvalidRequest, ProtocolError, WaitTimeoutError
from everturn.protocol import paths
from everturn.rules import debouncing, durations, limits

#: How often `poll` looks, in seconds.
POLL_S = 1.0
_DIGEST_CHARS = 64
_JSON = "application/json"


class Run(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A run as the server tells it (wire-protocol §9.5). Times are aware datetimes.

    `output` is there once it COMPLETED, `error` (`message`, `name`, `stackTrace`) once it failed.
    `raw` is the whole answer, with members that have no name here.
    """

    id: str
    status: str
    task_identifier: str
    is_queued: bool
    is_executing: bool
    is_waiting: bool
    is_completed: bool
    is_success: bool
    is_failed: bool
    is_cancelled: bool
    is_test: bool
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    payload: Any = None
    output: Any = None
    error: Mapping[str, Any] | None = None
    version: str | None = None
    idempotency_key: str | None = None
    attempt_count: int = 0
    raw: Mapping[str, Any] = {}


class TriggeredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was started, or found by its idempotency key (`is_cached`).

    `public_access_token` reads this run for an hour; None from servers that send none.
    """

    id: str
    task_id: str
    is_cached: bool = False
    public_access_token: str | None = None


async def trigger(
    task_id: str,
    payload: Any = None,
    *,
    idempotency_key: str | Sequence[str] | None = None,
    idempotency_key_ttl: str | None = None,
    delay: durations.Duration | datetime | None = None,
    ttl: durations.Duration | None = None,
    debounce: debouncing.Debounce | None = None,
    queue: str | None = None,
    concurrency_key: str | None = None,
    priority: float | None = None,
    tags: str | Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_attempts: int | None = None,
    max_duration: durations.Duration | None = None,
    machine: str | None = None,
    version: str | None = None,
    test: bool = False,
    api: Api | None = None,
) -> TriggeredRun:
    """Start a run of a task. Repeating a request whose answer was lost starts no second one.

    Args:
        payload: any value with a JSON form.
        idempotency_key: the same key for the same task finds the same run.
        delay: start it later: after a duration, or at a time.
        ttl: let it expire when nobody started it for so long.
        debounce: put off the run that earlier calls with this key made, instead of making another.
        priority: seconds of head start in its queue.
        version: run it on this version of the code only.

    Raises:
        TaskNotFound: no task of this id was ever registered.
        Unprocessable: the options break a rule, such as an eleventh tag.
    """
    api = api or Api()
    options: dict[str, Any] = {
        **_idempotency(idempotency_key, idempotency_key_ttl),
        "delay": _delay(delay, now_ms=api.clock.now_ms()),
        "ttl": None if ttl is None else wire.whole_seconds(ttl),
        "debounce": None if debounce is None else debouncing.wire_debounce(debounce),
        "queue": None if queue is None else {"name": queue},
        "concurrencyKey": concurrency_key,
        "priority": priority,
        "tags": tags,
        "metadata": None if metadata is None else wire.plain(metadata),
        "maxAttempts": max_attempts,
        "maxDuration": None if max_duration is None else wire.whole_seconds(max_duration),
        "machine": machine,
        "lockToVersion": version,
        "test": test or None,
    }
    body: dict[str, Any] = {
        "options": {name: value for name, value in options.items() if value is not None}
    }
    if payload is not None:
        body |= await _packed(payload, body["options"], api)
    answer, headers = await api.trigger(task_id, body)
    return TriggeredRun(
        id=str(answer["id"]),
        task_id=task_id,
        is_cached=bool(answer.get("isCached", False)),
        public_access_token=headers.get("x-trigger-jwt"),
    )


async def _packed(payload: Any, options: dict[str, Any], api: Api) -> dict[str, Any]:
    """The payload as a trigger carries it: itself, or the name of a packet when it is large."""
    plain = wire.plain(payload)
    data = msgspec.json.encode(plain)
    options["payloadType"] = _JSON
    if len(data) < limits.PACKET_BYTES_MIN:
        return {"payload": plain}
    options["payloadType"] = "application/store"
    return {"payload": await api.upload_packet(f"{api.ids.part()}.json", data, _JSON)}


async def retrieve(run: str | TriggeredRun | Run, *, api: Api | None = None) -> Run:
    """A run by its id, its payload downloaded where it was stored apart. Raises RunNotFound."""
    api = api or Api()
    body = await api.retrieve_run(_id(run))
    for name in ("payload", "output"):
        link = body.get(f"{name}PresignedUrl")
        if isinstance(link, str):
            body[name] = _unpacked(*await api.download(link))
    return _parse(body)


def _unpacked(data: bytes, kind: str) -> Any:
    if kind.startswith("text/plain"):
        return data.decode("utf-8", "replace")
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a stored packet does not read: {error}") from error
    if kind == "application/super+json" and isinstance(value, dict) and "json" in value:
        return value["json"]
    return value


async def replay(run: str | TriggeredRun | Run, *, api: Api | None = None) -> str:
    """Run its payload again on the current code; the id of the new run.

    Copied are payload, metadata, tags, queue, concurrency key and machine. Raises RunNotFound, and
    Unprocessable for a run of a session.
    """
    return str((await (api or Api()).replay_run(_id(run)))["id"])


async def reschedule(
    run: str | TriggeredRun | Run,
    delay: durations.Duration | datetime,
    *,
    api: Api | None = None,
) -> Run:
    """Move a delayed run. Raises RunNotFound, and Unprocessable when it is not delayed."""
    api = api or Api()
    at = _delay(delay, now_ms=api.clock.now_ms())
    assert at is not None, "only None has no moment"
    return _parse(await api.reschedule_run(_id(run), at))


async def subscribe_to_run(
    run: str | TriggeredRun | Run,
    *,
    stop_on_completion: bool = True,
    skip: Sequence[str] = (),
    api: Api | None = None,
) -> AsyncIterator[Run]:
    """The run as it is, and again after each change; fast changes may be seen as one.

    Args:
        stop_on_completion: end after its final state.
        skip: columns not to be sent, such as "payload" (wire-protocol §12).

    Raises RunNotFound.
    """
    path = paths.fill(paths.REALTIME_RUN, run=_id(run))
    async for body in run_shapes.follow(api or Api(), path, _skipping(skip)):
        found = _parse(body)
        yield found
        if stop_on_completion and found.finished_at is not None:
            return


async def subscribe_to_runs_with_tag(
    tags: str | Sequence[str],
    *,
    created_at: str | None = None,
    skip: Sequence[str] = (),
    api: Api | None = None,
) -> AsyncIterator[Run]:
    """Runs that have all these tags, as they are and after each change. Never ends by itself.

    `created_at` is how far back they may have been created, such as "24h" (the default).
    """
    query = wire.query(tags=tags, createdAt=created_at) | _skipping(skip)
    async for body in run_shapes.follow(api or Api(), paths.REALTIME_RUNS, query):
        yield _parse(body)


async def subscribe_to_batch(
    batch_id: str, *, skip: Sequence[str] = (), api: Api | None = None
) -> AsyncIterator[Run]:
    """The runs of a batch, as they are and after each change. Never ends. Raises NotFound."""
    path = paths.fill(paths.REALTIME_BATCH, batch=batch_id)
    async for body in run_shapes.follow(api or Api(), path, _skipping(skip)):
        yield _parse(body)


def _skipping(skip: Sequence[str]) -> dict[str, str]:
    return {"skipColumns": ",".join(skip)} if skip else {}


async def reset_idempotency_key(
    task_id: str, key: str | Sequence[str], *, api: Api | None = None
) -> None:
    """Forget a key: the next run of the task with it is a new one.

    `key` is the key as it was given, of scope `global`, or a digest of 64 characters.
    Raises NotFound when no run of this task holds it.
    """
    digest = _idempotency(key, None)["idempotencyKey"]
    await (api or Api()).reset_key(digest, task_id)


async def cancel(run: str | TriggeredRun | Run, *, api: Api | None = None) -> str:
    """Cancel a run; one that has finished stays as it is. Returns its id. Raises RunNotFound."""
    answer = await (api or Api()).cancel_run(_id(run))
    return str(answer["id"])


async def poll(
    run: str | TriggeredRun | Run,
    *,
    interval: durations.Duration = POLL_S,
    timeout: durations.Duration | None = None,
    api: Api | None = None,
) -> Run:
    """Wait until a run is over, looking at it every `interval`.

    Raises WaitTimeoutError after `timeout`, and RunNotFound.
    """
    api = api or Api()
    interval_s = durations.parse(interval)
    until = None if timeout is None else api.clock.monotonic() + durations.parse(timeout)
    while True:
        found = await retrieve(run, api=api)
        # Some servers leave these two out of `isCompleted` (wire-protocol §9.4).
        if found.is_completed or found.status in ("EXPIRED", "TIMED_OUT"):
            return found
        if until is not None and api.clock.monotonic() + interval_s > until:
            raise WaitTimeoutError(f"run {found.id} is still {found.status}", run_id=found.id)
        await api.clock.sleep(interval_s)


def list(
    *,
    status: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    tag: str | Sequence[str] | None = None,
    version: str | Sequence[str] | None = None,
    queue: str | Sequence[str] | None = None,
    is_test: bool | None = None,
    period: str | None = None,
    from_: datetime | int | None = None,
    to: datetime | int | None = None,
    limit: int | None = None,
    after: str | None = None,
    before: str | None = None,
    api: Api | None = None,
) -> Listing[Run]:
    """Runs that match all filters; a filter with several values matches any of them.

    Args:
        limit: runs per page, 1-100 (25). The others are those of `sessions.list`.
    """
    if after is not None and before is not None:
        raise InvalidRequest("give `after` or `before`, not both")
    query = {
        "page[size]": limit,
        "page[after]": after,
        "page[before]": before,
        "filter[status]": status,
        "filter[taskIdentifier]": task,
        "filter[tag]": tag,
        "filter[version]": version,
        "filter[queue]": queue,
        "filter[isTest]": is_test,
        "filter[createdAt][period]": period,
        "filter[createdAt][from]": None if from_ is None else wire.epoch_ms(from_),
        "filter[createdAt][to]": None if to is None else wire.epoch_ms(to),
    }
    return Listing((api or Api()).list_runs, _parse, wire.query(**query))


def _id(run: str | TriggeredRun | Run) -> str:
    return run if isinstance(run, str) else run.id


def _parse(body: Mapping[str, Any]) -> Run:
    try:
        return msgspec.convert({**body, "raw": body}, Run)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the server's run does not read: {error}") from error


def _delay(delay: durations.Duration | datetime | None, *, now_ms: int) -> str | None:
    if delay is None:
        return None
    if not isinstance(delay, datetime):
        delay = timedelta(seconds=durations.parse(delay))
    return wire.moment(delay, now_ms=now_ms)


def _idempotency(key: str | Sequence[str] | None, ttl: str | None) -> dict[str, Any]:
    """Wire members of a key: the digest decides, the key itself is for display (§9.3)."""
    if key is None:
        return {}
    if isinstance(key, str) and len(key) == _DIGEST_CHARS:
        return {"idempotencyKey": str(key), "idempotencyKeyTTL": ttl}
    text = key if isinstance(key, str) else "-".join(key)
    return {
        "idempotencyKey": hashlib.sha256(text.encode()).hexdigest(),
        "idempotencyKeyTTL": ttl,
        "idempotencyKeyOptions": {"key": text, "scope": "global"},
    }
