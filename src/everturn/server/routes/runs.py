"""Tasks and runs over HTTP: trigger, retrieve, list, cancel, replay, metadata, tags (§9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from everturn.errors import NotFound, RunNotFound, Unprocessable
from everturn.protocol.sessions import decode
from everturn.rules import limits, metadata
from everturn.rules.access import Resource, require, run_resources
from everturn.rules.run_states import PUBLIC_STATUS, RunState
from everturn.server.routes.calls import (
    Answer,
    Call,
    answer,
    check_filters,
    created_range,
    listed,
    page_body,
    page_query,
    query_error,
)
from everturn.server.services.results import execution_result, run_item, run_view
from everturn.server.services.trigger_options import STORED
from everturn.storage.ports.rows import RunFilter

if TYPE_CHECKING:
    from everturn.storage.ports.rows import Environment, Run

FILTERS: Final = frozenset(
    {
        "filter[status]",
        "filter[taskIdentifier]",
        "filter[version]",
        "filter[tag]",
        "filter[region]",
        "filter[machine]",
        "filter[queue]",
        "filter[schedule]",
        "filter[batch]",
        "filter[bulkAction]",
        "filter[isTest]",
        "filter[createdAt][period]",
        "filter[createdAt][from]",
        "filter[createdAt][to]",
    }
)
#: Of a list by project; a key opens one environment.
ENVIRONMENTS: Final = "filter[env]"
#: Filters on what runs here never have: a list filtered by one is empty.
_NEVER: Final = ("filter[region]", "filter[schedule]", "filter[bulkAction]")
_CLAIMS_HEADER: Final = b"x-trigger-jwt-claims"
_STATES: Final[dict[str, tuple[RunState, ...]]] = {
    name: tuple(state for state, public in PUBLIC_STATUS.items() if public == name)
    for name in set(PUBLIC_STATUS.values())
} | {"DELAYED": (RunState.QUEUED,), "PENDING_VERSION": (RunState.QUEUED,)}

Tag = Annotated[str, Meta(min_length=1, max_length=128)]


class Tags(msgspec.Struct):
    """Body of `POST /api/v1/runs/:run/tags`."""

    tags: Tag | list[Tag]


class Reschedule(msgspec.Struct):
    """Body of `POST /api/v1/runs/:run/reschedule`: a duration from now, or a date."""

    delay: str | int | float


class KeyReset(msgspec.Struct):
    """Body of `POST /api/v1/idempotencyKeys/:key/reset`."""

    taskIdentifier: Annotated[str, Meta(min_length=1, max_length=128)]


async def trigger(call: Call) -> Answer:
    """POST /api/v1/tasks/:task/trigger: queue a run (§9.1)."""
    task_id = call.params["task"]
    body = decode(await call.body(limits.TRIGGER_BODY_BYTES_MAX), dict[str, Any])
    require(call.caller, "trigger", [("tasks", task_id)])
    run, is_cached = await call.services.runs.trigger(
        await _environment(call),
        task_id,
        body,
        request_key=call.header(b"x-trigger-request-idempotency-key"),
        token_otu=call.caller.one_time_use,
        token_expires_ms=call.caller.expires_at_ms,
    )
    scopes = call.services.tokens.run_scopes(run.id)
    token = await call.services.tokens.mint(run.environment_id, scopes)
    claims = msgspec.json.encode({"sub": run.environment_id, "pub": True, "scopes": scopes})
    return answer(
        {"id": run.id, "isCached": is_cached},
        headers=((b"x-trigger-jwt", token.encode()), (_CLAIMS_HEADER, claims)),
    )


async def retrieve(call: Call) -> Answer:
    """GET /api/v3/runs/:run: a run, whole (§9.5). One just triggered may not be visible: 404 retries."""
    run = await call.services.state.run(call.caller.environment_id, call.params["run"])
    if run is None:
        raise RunNotFound("Not found", should_retry=True)
    require(call.caller, "read", run_resources(run.id, run.task_id, run.tags, run.batch_id))
    return answer(await _view(call, run))


async def _view(call: Call, run: Run) -> dict[str, Any]:
    """A run with its relatives, and with links where its payload is a stored packet (§9.5)."""
    now_ms = call.services.clock.now_ms()
    view = run_view(run, now_ms)
    if run.payload_type == STORED:
        del view["payload"]
        view["payloadPresignedUrl"] = call.services.packets.link(
            run.environment_id, run.payload.decode("utf-8", "replace"), "GET"
        )
    related: dict[str, Any] = {}
    for name, run_id in (("root", run.root_run_id), ("parent", run.parent_run_id)):
        found = None
        if run_id is not None:
            found = await call.services.state.run(run.environment_id, run_id)
        if found is not None:
            related[name] = run_item(found, now_ms)
    children = await call.services.state.children(run.id, limit=limits.RELATED_RUNS_MAX)
    if children:
        related["children"] = [run_item(child, now_ms) for child in children]
    return view | {"relatedRuns": related}


async def page(call: Call) -> Answer:
    """GET /api/v1/runs: a page, newest first (§9.6)."""
    return await _page(call, call.query)


async def _page(call: Call, query: dict[str, str]) -> Answer:
    check_filters(query, FILTERS)
    part = page_query(query, limits.RUNS_PAGE_SIZE)
    now_ms = call.services.clock.now_ms()
    created_from, created_to = created_range(query, now_ms)
    is_test = query.get("filter[isTest]")
    if is_test not in (None, "true", "false"):
        raise query_error("true or false", "filter[isTest]")
    where = RunFilter(
        states=_states(query),
        delayed=_delayed(query),
        delayed_at_ms=now_ms,
        task_ids=listed(query, "filter[taskIdentifier]"),
        tags=listed(query, "filter[tag]"),
        versions=listed(query, "filter[version]"),
        queues=listed(query, "filter[queue]"),
        machines=listed(query, "filter[machine]"),
        batch_id=query.get("filter[batch]"),
        is_test=None if is_test is None else is_test == "true",
        created_from_ms=created_from,
        created_to_ms=created_to,
    )
    _require_list(call, where.task_ids)
    if any(query.get(name) for name in _NEVER):
        return answer(page_body([], None, None))
    found = await call.services.state.runs(
        call.caller.environment_id, where, limit=part.limit, after=part.after, before=part.before
    )
    environment = await _environment(call)
    shown = {"id": environment.id, "name": environment.slug}
    items = [run_item(run, now_ms) | {"env": shown} for run in found.items]
    return answer(page_body(items, found.next, found.previous))


def _require_list(call: Call, task_ids: tuple[str, ...]) -> None:
    if not task_ids:
        require(call.caller, "read", [("runs", None)])
    for task_id in task_ids:
        resources: list[Resource] = [("runs", None), ("tasks", task_id)]
        require(call.caller, "read", resources)


def _states(query: dict[str, str]) -> tuple[RunState, ...]:
    states: list[RunState] = []
    for name in listed(query, "filter[status]"):
        if name not in _STATES:
            raise query_error(f"{name!r} is no status of a run", "filter[status]")
        states.extend(_STATES[name])
    return tuple(dict.fromkeys(states))


def _delayed(query: dict[str, str]) -> bool | None:
    """Delayed runs are QUEUED ones: of the two statuses, which one is asked for."""
    names = set(listed(query, "filter[status]"))
    waiting = bool(names & {"QUEUED", "PENDING_VERSION"})
    return None if ("DELAYED" in names) == waiting else not waiting


async def project_page(call: Call) -> Answer:
    """GET /api/v1/projects/:project/runs: the same page; `filter[env]` names environments."""
    query = dict(call.query)
    wanted = listed(query, ENVIRONMENTS)
    environment = await _environment(call)
    if wanted and environment.slug not in wanted and environment.type not in wanted:
        return answer(page_body([], None, None))
    query.pop(ENVIRONMENTS, None)
    return await _page(call, query)


async def cancel(call: Call) -> Answer:
    """POST /api/v2/runs/:run/cancel: stop a run; a finished one is left as it is (§9.7)."""
    environment_id = call.caller.environment_id
    run = await call.services.state.run(environment_id, call.params["run"])
    if run is None:
        # Scope before existence on writes (§1.1): a token learns nothing about other runs.
        require(call.caller, "write", [("runs", call.params["run"])])
        raise RunNotFound("Run not found")
    require(call.caller, "write", run_resources(run.id, run.task_id))
    await call.services.runs.cancel(environment_id, run.id, "canceled over HTTP")
    return answer({"id": run.id})


async def replay(call: Call) -> Answer:
    """POST /api/v1/runs/:run/replay: its payload again, as a new run (§9.7).

    Newer clients can ask for changes (§21). There are none yet, and a replay that leaves them out
    would run what nobody asked for.
    """
    if (await call.body(limits.UPDATE_BODY_BYTES_MAX)).strip() not in (b"", b"{}"):
        raise Unprocessable("a replay runs what was run: trigger the task to run it otherwise")
    run = await _run(call)
    return answer({"id": (await call.services.runs.replay(run)).id})


async def reschedule(call: Call) -> Answer:
    """POST /api/v1/runs/:run/reschedule: move a delayed run to another time (§9.7)."""
    body = decode(await call.body(limits.UPDATE_BODY_BYTES_MAX), Reschedule)
    run = await _run(call)
    return answer(await _view(call, await call.services.runs.reschedule(run, body.delay)))


async def reset_key(call: Call) -> Answer:
    """POST /api/v1/idempotencyKeys/:key/reset: the next run with this key is a new one (§9.3)."""
    body = decode(await call.body(limits.IDEMPOTENCY_RESET_BYTES_MAX), KeyReset)
    require(call.caller, "write", [("runs", None)])
    key = call.params["key"]
    released = await call.services.state.release_key(
        call.caller.environment_id, body.taskIdentifier, key
    )
    if not released:
        raise NotFound(f"No run of {body.taskIdentifier} holds this key", should_retry=False)
    return answer({"id": key})


async def read_metadata(call: Call) -> Answer:
    """GET /api/v1/runs/:run/metadata: the object itself (§9.7)."""
    run = await _run(call)
    return answer({"metadata": _metadata(run), "metadataType": "application/json"})


async def change_metadata(call: Call) -> Answer:
    """PUT /api/v1/runs/:run/metadata: replace it, or apply operations in order (§9.8)."""
    body = decode(await call.body(limits.TRIGGER_BODY_BYTES_MAX), metadata.MetadataChange)
    run = await _run(call)
    changed: Run | None = run
    for run_id, operations, replacement in (
        (run.id, body.operations, body.metadata),
        (run.parent_run_id, body.parentOperations, None),
        (run.root_run_id, body.rootOperations, None),
    ):
        if run_id is None or (not operations and replacement is None):
            continue
        result = await call.services.state.set_metadata(
            call.caller.environment_id,
            run_id,
            metadata.change(operations, replacement),
            now_ms=call.services.clock.now_ms(),
        )
        changed = result if run_id == run.id else changed
    if changed is None:
        raise RunNotFound("Run not found")
    return answer({"metadata": _metadata(changed)})


async def add_tags(call: Call) -> Answer:
    """POST /api/v1/runs/:run/tags: add to the run's tags, at most ten in all (§9.7)."""
    body = decode(await call.body(limits.UPDATE_BODY_BYTES_MAX), Tags)
    tags = [body.tags] if isinstance(body.tags, str) else body.tags
    run = await call.services.state.add_tags(
        call.caller.environment_id, call.params["run"], tags, now_ms=call.services.clock.now_ms()
    )
    if run is None:
        raise RunNotFound("Run not found")
    return answer({"message": f"The run has {len(run.tags)} tags."})


async def events(call: Call) -> Answer:
    """GET /api/v1/runs/:run/events: the changes of its state, in order (§9.7)."""
    return answer({"events": call.services.traces.events(await _readable(call))})


async def trace(call: Call) -> Answer:
    """GET /api/v1/runs/:run/trace: the run and the runs it started, as spans (§9.7)."""
    return answer({"trace": await call.services.traces.trace(await _readable(call))})


async def span(call: Call) -> Answer:
    """GET /api/v1/runs/:run/spans/:span: one span of its trace (§9.7)."""
    run = await _readable(call)
    found = await call.services.traces.span(run, call.params["span"])
    if found is None:
        raise NotFound("Span not found", should_retry=False)
    return answer(found)


async def _readable(call: Call) -> Run:
    run = await _run(call)
    require(call.caller, "read", run_resources(run.id, run.task_id, run.tags, run.batch_id))
    return run


async def result(call: Call) -> Answer:
    """GET /api/v1/runs/:run/result: 404 until the run is final (§9.7)."""
    run = await _run(call)
    found = execution_result(run)
    if found is None:
        raise NotFound("Run either doesn't exist or is not finished", should_retry=False)
    return answer(found)


async def _run(call: Call) -> Run:
    run = await call.services.state.run(call.caller.environment_id, call.params["run"])
    if run is None:
        raise RunNotFound("Run not found", should_retry=False)
    return run


async def _environment(call: Call) -> Environment:
    found = await call.services.state.environment(call.caller.environment_id)
    if found is None:
        raise NotFound("Not found")
    return found


def _metadata(run: Run) -> dict[str, Any]:
    if run.metadata is None:
        return {}
    value = msgspec.json.decode(run.metadata)
    return value if isinstance(value, dict) else {}
