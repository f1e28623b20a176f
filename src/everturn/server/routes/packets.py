"""Packets over HTTP: links to large payloads, and what the links lead to (wire-protocol §11)."""

from __future__ import annotations

from everturn.errors import NotFound
from everturn.rules import limits
from everturn.server.routes.calls import Answer, Call, answer


async def upload(call: Call) -> Answer:
    """PUT /api/v2/packets/:name: a link to store a packet at, and what stands for it in a trigger."""
    name = call.params["name"]
    link = await call.services.packets.announce(call.caller.environment_id, name)
    return answer({"presignedUrl": link, "storagePath": name})


async def download(call: Call) -> Answer:
    """GET /api/v1/packets/:name: a link to read a packet from; any valid credential (§3.5)."""
    name = call.params["name"]
    link = call.services.packets.link(call.caller.environment_id, name, "GET")
    return answer({"presignedUrl": link})


async def write(call: Call) -> Answer:
    """PUT on a link: store a packet; the answer means it is durable."""
    environment_id, digest = _checked(call, "PUT")
    data = await call.body(limits.PACKET_BYTES_MAX)
    kind = call.header(b"content-type") or "application/json"
    await call.services.packets.put(environment_id, digest, data, kind)
    return answer({"ok": True})


async def read(call: Call) -> Answer:
    """GET on a link: the packet, under its own type."""
    environment_id, digest = _checked(call, "GET")
    found = await call.services.packets.get(environment_id, digest)
    if found is None:
        raise NotFound("Not found", should_retry=False)
    data, kind = found
    # Never shown as a page, whatever type its sender gave it.
    headers = (
        (b"content-type", kind.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"content-disposition", b"attachment"),
    )
    return Answer(200, data, headers)


def _checked(call: Call, verb: str) -> tuple[str, str]:
    query = call.query
    environment_id, digest = call.params["environment"], call.params["name"]
    call.services.packets.check(
        environment_id, digest, verb, query.get("expires", ""), query.get("signature", "")
    )
    return environment_id, digest
