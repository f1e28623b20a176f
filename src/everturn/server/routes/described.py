"""`/openapi.json`: what this server's routes take and answer, for tools. No credential."""

from __future__ import annotations

from typing import Final

from everturn.server.routes.calls import Answer, Call

#: Where the application, which knows all routes, leaves a function that returns the document.
DOCUMENT: Final = "everturn.openapi"


async def openapi(call: Call) -> Answer:
    """GET /openapi.json: this document."""
    return Answer(200, call.scope[DOCUMENT]())
