"""Snapshots behind signed links (wire-protocol §4.9): the link is the credential."""

from __future__ import annotations

from everturn.errors import NotFound
from everturn.rules import limits
from everturn.server.routes.calls import JSON, Answer, Call, answer


async def read(call: Call) -> Answer:
    """GET: the stored snapshot. 404 means there is none, which a booting run expects."""
    environment_id, session_id = _checked(call, "GET")
    data = await call.services.snapshots.get(environment_id, session_id)
    if data is None:
        raise NotFound("Not found", should_retry=False)
    return Answer(200, data, (JSON,))


async def write(call: Call) -> Answer:
    """PUT: store a snapshot; the answer means it is durable."""
    environment_id, session_id = _checked(call, "PUT")
    data = await call.body(limits.SNAPSHOT_BODY_BYTES_MAX)
    await call.services.snapshots.put(environment_id, session_id, data)
    return answer({"ok": True})


def _checked(call: Call, verb: str) -> tuple[str, str]:
    query = call.query
    environment_id, session_id = call.params["environment"], call.params["session"]
    call.services.snapshots.check(
        environment_id,
        session_id,
        verb,
        query.get("expires", ""),
        query.get("signature", ""),
    )
    return environment_id, session_id
