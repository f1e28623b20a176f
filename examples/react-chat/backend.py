"""The application's own backend: it starts chats, makes tokens and serves the built page.

    uvicorn backend:app --port 8040

The secret key stays here; the browser gets tokens for exactly one chat and talks to the everturn
server with them. A real application asks first who is calling and whether the chat is theirs.
"""

import os
from pathlib import Path

import history
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from everturn import auth, sessions
from everturn.client import config

BUILT = Path(os.environ.get("CHAT_PAGE", Path(__file__).parent / "dist"))


async def token_for(chat_id: str) -> str:
    scopes = {"read": {"sessions": chat_id}, "write": {"sessions": chat_id}}
    return await auth.create_public_token(scopes, expires=os.environ.get("CHAT_TOKEN_TTL", "1h"))


async def open_chat(request: Request) -> JSONResponse:
    """What a page needs to show a chat: where the server is, the messages, how to read on."""
    chat_id = request.path_params["chat"]
    stored = await history.load(chat_id)
    chat = {"serverUrl": os.environ.get("CHAT_SERVER_URL", config.current().url), "messages": []}
    if stored is not None:
        session = {"publicAccessToken": await token_for(chat_id)}
        if stored.last_event_id is not None:
            session["lastEventId"] = stored.last_event_id
        if stored.is_answering:
            # Clients from 4.8 on know by it that Stop leaves an answer behind, whose last words
            # they must not take for the next one's. When nothing is said they look for themselves.
            session["isStreaming"] = True
        chat |= {"messages": stored.messages, "session": session}
    return JSONResponse(chat)


async def start(request: Request) -> JSONResponse:
    """Begin a chat, or find it: safe to repeat, and to race from two tabs."""
    chat_id = request.path_params["chat"]
    payload = {"chatId": chat_id, "trigger": "preload", "messages": []}
    await sessions.start(
        type="chat.agent",
        task="assistant",
        external_id=chat_id,
        trigger_config={"base_payload": payload, "tags": [f"chat:{chat_id}"]},
    )
    return JSONResponse({"publicAccessToken": await token_for(chat_id)})


async def token(request: Request) -> JSONResponse:
    """A fresh token, when the one a page has is refused."""
    return JSONResponse({"publicAccessToken": await token_for(request.path_params["chat"])})


app = Starlette(
    routes=[
        Route("/api/chats/{chat}", open_chat),
        Route("/api/chats/{chat}/start", start, methods=["POST"]),
        Route("/api/chats/{chat}/token", token, methods=["POST"]),
        Mount("/", StaticFiles(directory=BUILT, html=True, check_dir=False)),
    ]
)
