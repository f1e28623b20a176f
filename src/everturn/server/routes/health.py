"""Whether the server is up, and whether a worker serves. No credential, and nothing told."""

from __future__ import annotations

from everturn.server.routes.calls import Answer, Call, answer


async def alive(call: Call) -> Answer:
    """GET /healthz: this process answers."""
    return answer({"ok": True})


async def ready(call: Call) -> Answer:
    """GET /readyz: 200 when at least one worker serves, else 503 with the reason."""
    if call.services.links.serving:
        return answer({"ready": True})
    return answer({"ready": False, "reason": "no worker is connected"}, 503)
