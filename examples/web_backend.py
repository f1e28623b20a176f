"""The backend of a chat page: it knows who is asking, starts chats, and makes tokens.

    everturn dev examples/assistant.py
    uvicorn examples.web_backend:app
    curl -X POST -H 'x-user: ada' localhost:8000/chats/c1

The secret key stays here. A page gets a token that opens one chat and nothing else, and talks to
the everturn server with it; when that is refused, it asks for a fresh one. Starting is safe to
repeat and to race: one id is one session, whoever is first. `examples/react-chat` is a page.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from everturn import auth, chat

OWNERS = {}  # chat id -> user; stands for a table of yours

start_session = chat.create_start_session_action("assistant", token_ttl="1h")


def authorised(request: Request) -> tuple[str, str]:
    """Who is asking, and for which chat of theirs. From your login, not from a header."""
    user, chat_id = request.headers.get("x-user"), request.path_params["chat_id"]
    if not user or OWNERS.setdefault(chat_id, user) != user:
        raise HTTPException(403)
    return user, chat_id


async def start(request: Request) -> JSONResponse:
    user, chat_id = authorised(request)
    started = await start_session(chat_id, client_data={"user": user})
    return JSONResponse({"publicAccessToken": started.public_access_token})


async def token(request: Request) -> JSONResponse:
    _, chat_id = authorised(request)
    scopes = {"read": {"sessions": chat_id}, "write": {"sessions": chat_id}}
    fresh = await auth.create_public_token(scopes, expires="1h")
    return JSONResponse({"publicAccessToken": fresh})


app = Starlette(
    routes=[
        Route("/chats/{chat_id}", start, methods=["POST"]),
        Route("/chats/{chat_id}/token", token, methods=["POST"]),
    ]
)
