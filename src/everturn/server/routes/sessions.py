"""Sessions over HTTP: create, list, retrieve, update, close, end and continue (wire-protocol §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from everturn.errors import SessionNotFound
from everturn.protocol.sessions import (
    CloseSession,
    CreateSession,
    EndAndContinue,
    UpdateSession,
    session_item,
)
from everturn.rules import limits
from everturn.rules.access import Resource, require, require_secret, session_resources
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
from everturn.storage.ports.rows import SessionFilter

if TYPE_CHECKING:
    from everturn.storage.ports.rows import Session

_STATUSES: Final = frozenset({"ACTIVE", "CLOSED", "EXPIRED"})
FILTERS: Final = frozenset(
    {
        "filter[type]",
        "filter[tags]",
        "filter[taskIdentifier]",
        "filter[externalId]",
        "filter[status]",
        "filter[createdAt][period]",
        "filter[createdAt][from]",
        "filter[createdAt][to]",
    }
)


async def create(call: Call) -> Answer:
    """POST /api/v1/sessions: open a session with a run, or find it (§4.2)."""
    body = await call.json(CreateSession, limits.CREATE_BODY_BYTES_MAX)
    require(call.caller, "write", [("tasks", body.taskIdentifier), ("sessions", None)])
    opened = await call.services.sessions.create(call.caller.environment_id, body)
    item = session_item(opened.session) | {
        "currentRunId": opened.run.id,
        "runId": opened.run.id,
        "publicAccessToken": await call.services.tokens.for_session(opened.session),
        "isCached": not opened.created,
    }
    return answer(item, 201 if opened.created else 200)


async def page(call: Call) -> Answer:
    """GET /api/v1/sessions: a page, newest first (§4.3)."""
    query = call.query
    check_filters(query, FILTERS)
    part = page_query(query, limits.SESSIONS_PAGE_SIZE)
    statuses = listed(query, "filter[status]")
    for status in statuses:
        if status not in _STATUSES:
            raise query_error(f"{status!r} is not ACTIVE, CLOSED or EXPIRED", "filter[status]")
    created_from, created_to = created_range(query, call.services.clock.now_ms())
    where = SessionFilter(
        types=listed(query, "filter[type]"),
        tags=listed(query, "filter[tags]"),
        task_ids=listed(query, "filter[taskIdentifier]"),
        external_id=query.get("filter[externalId]"),
        statuses=statuses,
        created_from_ms=created_from,
        created_to_ms=created_to,
    )
    _require_list(call, where.task_ids)
    found = await call.services.sessions.page(
        call.caller.environment_id, where, limit=part.limit, after=part.after, before=part.before
    )
    items = [session_item(row, with_config=False) for row in found.items]
    return answer(page_body(items, found.next, found.previous))


def _require_list(call: Call, task_ids: tuple[str, ...]) -> None:
    """A token for the collection, or one for every task asked for (§4.3)."""
    whole: list[Resource] = [("sessions", None), ("tasks", None)]
    if not task_ids:
        require(call.caller, "read", whole)
    for task_id in task_ids:
        require(call.caller, "read", [*whole, ("tasks", task_id)])


async def retrieve(call: Call) -> Answer:
    """GET /api/v1/sessions/:session: one session (§4.4)."""
    row = await call.services.sessions.fresh(call.caller.environment_id, call.params["session"])
    if row is None:
        raise SessionNotFound("Not found", should_retry=False)
    require(call.caller, "read", session_resources(row.id, row.external_id))
    return answer(session_item(row))


async def update(call: Call) -> Answer:
    """PATCH /api/v1/sessions/:session: replace tags or metadata (§4.5). Public tokens are refused (rulings §4.2)."""
    body = await call.json(UpdateSession, limits.UPDATE_BODY_BYTES_MAX)
    require_secret(call.caller)
    row = await call.services.sessions.update(
        call.caller.environment_id, call.params["session"], body
    )
    return answer(session_item(row))


async def close(call: Call) -> Answer:
    """POST /api/v1/sessions/:session/close: take no more input (§4.6). Public tokens are refused (rulings §4.2)."""
    body = await call.json(CloseSession, limits.SMALL_BODY_BYTES_MAX)
    require_secret(call.caller)
    row = await call.services.sessions.close(
        call.caller.environment_id, call.params["session"], body.reason
    )
    return answer(session_item(row))


async def end_and_continue(call: Call) -> Answer:
    """POST /api/v1/sessions/:session/end-and-continue: the next run, asked for by this one (§4.7)."""
    body = await call.json(EndAndContinue, limits.SMALL_BODY_BYTES_MAX)
    require_secret(call.caller)
    run_id, swapped = await call.services.sessions.end_and_continue(
        call.caller.environment_id, call.params["session"], body.callingRunId, body.reason
    )
    return answer({"runId": run_id, "swapped": swapped})


async def snapshot_upload(call: Call) -> Answer:
    """PUT /api/v1/sessions/:session/snapshot-url: a link to write to (§4.9, rulings §4.2)."""
    row = await _found(call)
    require_secret(call.caller)
    return answer({"presignedUrl": call.services.snapshots.link(row, "PUT")})


async def snapshot_download(call: Call) -> Answer:
    """GET /api/v1/sessions/:session/snapshot-url: a link to read from (§4.9)."""
    row = await _found(call)
    forms = session_resources(call.params["session"], row.id, row.external_id)
    require(call.caller, "read", forms)
    return answer({"presignedUrl": call.services.snapshots.link(row, "GET")})


async def _found(call: Call) -> Session:
    row = await call.services.sessions.find(call.caller.environment_id, call.params["session"])
    if row is None:
        raise SessionNotFound("Session not found")
    return row
