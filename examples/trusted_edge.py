"""Facts that only your own edge may state: who the user is, where the request came from.

    everturn dev examples/trusted_edge.py                # the agent
    uvicorn examples.trusted_edge:edge --port 8000       # the edge, in front of the server
    export EVERTURN_API_URL=http://localhost:8000 EVERTURN_SECRET_KEY=…    # as `dev` printed it
    everturn chat trusting                               # a client, through the edge

The server passes no request headers on to a run. What an agent may trust therefore travels in the
metadata of messages, under one reserved key: the edge drops whatever a client put there and puts
in what it knows. The agent's client data *requires* the key, so a message that went around the
edge fails in its own turn. (Keep the server itself off the public network all the same.)
"""

import json
import os

import httpx2
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from everturn import chat

KEY = "edge"
HOP_BY_HOP = {"host", "content-length", "connection", "transfer-encoding"}


# --- the agent -------------------------------------------------------------------------------


class Edge(BaseModel):
    """What the edge knows."""

    user: str
    country: str


class ClientData(BaseModel):
    edge: Edge


@chat.agent("trusting", client_data=ClientData)
async def trusting(turn: chat.Turn):
    return f"Hello {turn.client_data.edge.user} in {turn.client_data.edge.country}."


# --- the edge --------------------------------------------------------------------------------


def vouched(request: Request, body: bytes) -> bytes:
    """The body with our key in the metadata of what it starts or sends, and nobody else's."""
    sent = json.loads(body)
    payload = sent.get("payload")  # a message, on its way to `in`
    if request.url.path == "/api/v1/sessions":
        payload = sent.setdefault("triggerConfig", {}).setdefault("basePayload", {})
    if payload is None:
        return body  # a stop carries no metadata
    known = {"user": request.headers.get("x-user", "?"), "country": "NO"}  # from your own session
    payload["metadata"] = {**(payload.get("metadata") or {}), KEY: known}
    return json.dumps(sent).encode()


async def forward(request: Request) -> StreamingResponse:
    body = await request.body()
    if request.method == "POST":
        body = vouched(request, body)
    server = os.environ.get("EVERTURN_API_URL", "http://localhost:8030")
    client = httpx2.AsyncClient(base_url=server, timeout=None)
    headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
    url = httpx2.URL(raw_path=request.scope["raw_path"] + b"?" + request.scope["query_string"])
    made = client.build_request(request.method, url, headers=headers, content=body)
    answer = await client.send(made, stream=True)
    kept = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
    close = BackgroundTask(client.aclose)
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=close)


edge = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])
