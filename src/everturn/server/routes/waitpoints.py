"""Wait tokens over HTTP: create, list, retrieve, complete, and the callback (wire-protocol §14)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from everturn.errors import NotFound
from everturn.protocol import nesting
from everturn.protocol.problems import LengthRequired
from everturn.protocol.sessions import decode
from everturn.protocol.waitpoints import CompleteToken, CreateToken
from everturn.rules import limits
from everturn.rules.access import require
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
from everturn.server.services.waitpoints import TOKEN_S
from everturn.storage.ports.waitpoints import WaitpointFilter

if TYPE_CHECKING:
    from everturn.storage.ports.waitpoints import WaitpointStatus

FILTERS: Final = frozenset(
    {
        "filter[status]",
        "filter[idempotencyKey]",
        "filter[tags]",
        "filter[createdAt][period]",
        "filter[createdAt][from]",
        "filter[createdAt][to]",
    }
)
_STATUSES: Final = frozenset({"WAITING", "COMPLETED", "TIMED_OUT"})
_DONE: Final = {"success": True}


async def create(call: Call) -> Answer:
    """POST /api/v1/waitpoints/tokens: make a token, or find it by its idempotency key."""
    text = await call.body(limits.WAIT_BODY_BYTES_MAX)
    body = decode(text or b"{}", CreateToken)
    environment_id = call.caller.environment_id
    made, is_cached = await call.services.waitpoints.create(
        environment_id, body, request_key=call.header(b"x-trigger-request-idempotency-key")
    )
    scopes = (f"write:waitpoints:{made.id}",)
    token = await call.services.tokens.mint(environment_id, scopes, lifetime_s=TOKEN_S)
    claims = msgspec.json.encode({"sub": environment_id, "pub": True, "scopes": scopes})
    url = await call.services.waitpoints.url(made)
    return answer(
        {"id": made.id, "isCached": is_cached, "url": url},
        headers=((b"x-trigger-jwt", token.encode()), (b"x-trigger-jwt-claims", claims)),
    )


async def page(call: Call) -> Answer:
    """GET /api/v1/waitpoints/tokens: a page, newest first, without outputs."""
    query = call.query
    check_filters(query, FILTERS)
    part = page_query(query, limits.RUNS_PAGE_SIZE)
    statuses = listed(query, "filter[status]")
    for status in statuses:
        if status not in _STATUSES:
            raise query_error(
                f"{status!r} is not WAITING, COMPLETED or TIMED_OUT", "filter[status]"
            )
    created_from, created_to = created_range(query, call.services.clock.now_ms())
    found = await call.services.state.waitpoints(
        call.caller.environment_id,
        WaitpointFilter(
            statuses=cast("tuple[WaitpointStatus, ...]", statuses),
            tags=listed(query, "filter[tags]"),
            idempotency_key=query.get("filter[idempotencyKey]"),
            created_from_ms=created_from,
            created_to_ms=created_to,
        ),
        limit=part.limit,
        after=part.after,
        before=part.before,
    )
    items = [await call.services.waitpoints.item(row) for row in found.items]
    return answer(page_body(items, found.next, found.previous))


async def retrieve(call: Call) -> Answer:
    """GET /api/v1/waitpoints/tokens/:token: a token with its output."""
    found = await call.services.state.waitpoint(call.caller.environment_id, call.params["token"])
    if found is None:
        raise NotFound("Waitpoint not found", should_retry=False)
    return answer(await call.services.waitpoints.item(found, with_output=True))


async def complete(call: Call) -> Answer:
    """POST …/complete: the first completion counts, every later one is answered the same."""
    waitpoint_id = call.params["token"]
    text = await call.body(limits.TOKEN_DATA_BYTES_MAX)
    require(call.caller, "write", [("waitpoints", waitpoint_id)])
    body = decode(text or b"{}", CompleteToken)
    await call.services.waitpoints.complete(call.caller.environment_id, waitpoint_id, body.data)
    return answer(_DONE)


async def callback(call: Call) -> Answer:
    """POST …/callback/:hash: whatever JSON a third party sends; anything else counts as `{}`."""
    if call.header(b"content-length") is None:
        raise LengthRequired("Length Required")
    call.check_size(limits.TOKEN_DATA_BYTES_MAX)
    found = await call.services.waitpoints.called_back(call.params["token"], call.params["hash"])
    text = await call.body(limits.TOKEN_DATA_BYTES_MAX)
    # A third party's habits are not ours to judge: the token is completed all the same.
    data: Any = {}
    if not nesting.too_deep(text):
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            data = msgspec.json.decode(text)
    await call.services.waitpoints.complete(found.environment_id, found.id, data)
    return answer(_DONE)
