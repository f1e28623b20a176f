"""Starting runs of tasks: from inside a run over its runtime, from outside over HTTP.

The two differ in more than the road: inside a run the child knows its parent, its idempotency
keys are scoped to the run, and the child's id is journalled, so that a recovered run finds the
child it had started instead of starting another (`Journal.name`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack

import msgspec

from everturn.errors import InvalidRequest, NotInRunError
from everturn.rules import limits
from everturn.rules.debouncing import Debounce, wire_debounce
from everturn.rules.durations import Duration, parse
from everturn.tasks import bridge, codec, idempotency, waits
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.results import PendingResult, RunHandle, RunResult, result_of
from everturn.tasks.runtime import RunRuntime


class TriggerOptions(TypedDict, total=False):
    """Options of one trigger (tasks-and-runs §4.2)."""

    idempotency_key: str | Sequence[str]
    idempotency_key_ttl: str
    queue: Any  # a name, or a Queue
    concurrency_key: str
    tags: str | Sequence[str]
    metadata: Mapping[str, Any]
    max_attempts: int
    max_duration: Duration
    machine: str
    version: str
    delay: Duration | datetime
    ttl: Duration
    debounce: Debounce
    priority: float  # seconds of head start
    test: bool


def wire_options(options: TriggerOptions) -> dict[str, Any]:
    """Options as the wire has them (wire-protocol §9.1).

    Raises:
        InvalidRequest: an unknown option, or a value out of its bounds.
    """
    unknown = set(options) - set(TriggerOptions.__annotations__)
    if unknown:
        raise InvalidRequest(f"unknown trigger options: {', '.join(sorted(unknown))}")
    wire = idempotency.options(options.get("idempotency_key"), options.get("idempotency_key_ttl"))
    if "queue" in options:
        queue = options["queue"]
        wire["queue"] = {"name": getattr(queue, "name", queue)}
    for name, wire_name in (
        ("concurrency_key", "concurrencyKey"),
        ("max_attempts", "maxAttempts"),
        ("machine", "machine"),
        ("version", "lockToVersion"),
        ("priority", "priority"),
        ("test", "test"),
    ):
        if name in options:
            wire[wire_name] = options[name]  # type: ignore[literal-required]  # names checked above
    if "tags" in options:
        wire["tags"] = clean_tags(options["tags"])
    if "metadata" in options:
        wire["metadata"] = msgspec.json.decode(codec.encode(dict(options["metadata"])))
    if "max_duration" in options:
        wire["maxDuration"] = max(5, round(parse(options["max_duration"])))
    if "delay" in options:
        wire["delay"] = _delay(options["delay"])
    if "ttl" in options:
        wire["ttl"] = round(parse(options["ttl"]))
    if "debounce" in options:
        wire["debounce"] = wire_debounce(options["debounce"])
    return wire


def _delay(delay: Duration | datetime) -> str:
    if isinstance(delay, datetime):
        at = delay if delay.tzinfo is not None else delay.replace(tzinfo=UTC)
        return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{round(parse(delay))}s"


def clean_tags(tags: str | Sequence[str]) -> list[str]:
    """Tags trimmed, without empty and repeated ones.

    Raises:
        InvalidRequest: more than limits.RUN_TAGS_MAX, or one that is too long.
    """
    given = [tags] if isinstance(tags, str) else list(tags)
    cleaned = list(dict.fromkeys(tag.strip() for tag in given if tag.strip()))
    if len(cleaned) > limits.RUN_TAGS_MAX:
        raise InvalidRequest(f"{len(cleaned)} tags, at most {limits.RUN_TAGS_MAX}")
    for tag in cleaned:
        if len(tag) > limits.TAG_CHARS_MAX:
            raise InvalidRequest(f"a tag has {len(tag)} characters, at most {limits.TAG_CHARS_MAX}")
    return cleaned


async def trigger(task_id: str, payload: Any, options: TriggerOptions) -> RunHandle[Any]:
    """Start a run, and return once it is stored."""
    wire = wire_options(options)
    runtime = runtimes.current_or_none()
    if runtime is None:
        return await _over_http(task_id, payload, options)
    run_id, is_cached = await _child(runtime, task_id, payload, wire)
    return RunHandle(id=run_id, task_id=task_id, is_cached=is_cached)


@bridge.either
async def start(
    task_id: str, payload: Any = None, **options: Unpack[TriggerOptions]
) -> RunHandle[Any]:
    """`tasks.trigger`: start a run of a task known by its id only; the payload is not checked."""
    return await trigger(task_id, payload, options)


def start_and_wait(
    task_id: str, payload: Any = None, **options: Unpack[TriggerOptions]
) -> PendingResult[Any]:
    """`tasks.trigger_and_wait`: start a child by its id and suspend until it is final.

    In a sync task it blocks, and returns the result itself.
    """

    async def run() -> Any:
        return await trigger_and_wait(task_id, payload, options)

    if bridge.blocking():
        return bridge.run(run())
    return PendingResult(run)


async def trigger_and_wait(
    task_id: str, payload: Any, options: TriggerOptions, output_type: Any = Any
) -> RunResult[Any]:
    """Start a child and suspend until it is final.

    Raises:
        NotInRunError: called outside a run.
        ConcurrentWaitError: this run waits for something else already.
    """
    runtime = runtimes.current_or_none()
    if runtime is None:
        raise NotInRunError("only code inside a run can wait for a run: use trigger() here")
    wire = wire_options(options)
    wire["wait"] = True
    run_id, _ = await _child(runtime, task_id, payload, wire)
    return result_of(await waits.for_run(run_id), output_type)


async def _child(
    runtime: RunRuntime, task_id: str, payload: Any, wire: dict[str, Any]
) -> tuple[str, bool]:
    journal = scopes.of(runtime).journal
    key = f"trigger:{task_id}"
    place, stored = journal.take(key)
    if stored is not None:
        run_id: str = msgspec.json.decode(stored)
        return run_id, True
    wire["requestKey"] = f"{await journal.name(runtime)}:{place}"
    run_id, is_cached = await runtime.trigger(task_id, codec.encode(payload), codec.JSON, wire)
    await journal.put(runtime, place, key, msgspec.json.encode(run_id))
    return run_id, is_cached


async def _over_http(task_id: str, payload: Any, options: TriggerOptions) -> RunHandle[Any]:
    # Resolved on first use: a worker never needs the HTTP client for its own runs.
    from everturn.client import runs

    named: dict[str, Any] = {**options}
    if "queue" in named:
        named["queue"] = getattr(named["queue"], "name", named["queue"])
    plain = msgspec.json.decode(codec.encode(payload))
    handle = await runs.trigger(task_id, plain, **named)
    return RunHandle(
        id=handle.id,
        task_id=task_id,
        is_cached=handle.is_cached,
        public_access_token=handle.public_access_token,
    )
