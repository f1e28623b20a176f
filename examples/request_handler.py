"""A stateless HTTP handler in front of an agent: each request restores the chat from one number.

    everturn dev examples/assistant.py
    uvicorn examples.request_handler:app
    curl -d '{"chat": "c1", "text": "hello"}' localhost:8000
    curl -d '{"chat": "c1", "text": "and again", "last_event_id": "12"}' localhost:8000

The caller keeps the `last_event_id` of the newest answer (a cookie, a row) and sends it along: the
handler keeps nothing, so any process may serve the next request.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from everturn import AgentChat, ChatSessionState


async def ask(request: Request) -> JSONResponse:
    body = await request.json()
    last = body.get("last_event_id")
    state = ChatSessionState(last_event_id=last) if last is not None else None
    async with AgentChat("assistant", id=body["chat"], session=state) as chat:
        stream = await chat.send_message(body["text"])
        answer = await stream.text()
        stream.raise_for_error()
        return JSONResponse({"answer": answer, "last_event_id": chat.session.last_event_id})


app = Starlette(routes=[Route("/", ask, methods=["POST"])])
