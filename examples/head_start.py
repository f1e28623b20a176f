"""A web backend that begins the first answer itself, while the agent's run still boots.

    everturn dev examples/head_start.py
    uvicorn examples.head_start:app
    curl -N -d '{"chatId": "c1", "headStartMessages": [{"id": "u1", "role": "user",
        "parts": [{"type": "text", "text": "what time is it?"}]}]}' localhost:8000/chat

The backend makes the first model request with the tools' schemas only; the agent carries the tools
out and finishes the answer, in the same message. Later messages go to the session directly, with
the token from the response. `POST /start/<chat id>` is the other way in: a session without a
message, for a browser that starts before its user has typed.
"""

from datetime import UTC, datetime

from pydantic_ai import Agent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from everturn import chat, chat_server
from everturn.chat.adapters.offline import offline_model


def current_time() -> str:
    """The current time in UTC."""
    return datetime.now(UTC).strftime("%H:%M")


# --- the agent: what `everturn dev` runs -----------------------------------------------------

model = Agent(offline_model(), tools=[current_time])


@chat.agent("starter")
async def starter(turn: chat.Turn):
    return turn.stream(model)


# --- the backend: what uvicorn runs ----------------------------------------------------------

bare_model = Agent(offline_model())
start_session = chat.create_start_session_action("starter")


async def first_step(head: chat_server.HeadStart):
    return head.stream(bare_model, tools=[current_time])


async def start(request: Request) -> JSONResponse:
    started = await start_session(request.path_params["chat_id"])
    return JSONResponse({"publicAccessToken": started.public_access_token})


app = Starlette(
    routes=[
        Route("/chat", chat_server.head_start("starter", first_step)),
        Route("/start/{chat_id}", start, methods=["POST"]),
    ]
)
