"""Head start: a warm process begins the first answer while the agent's run still boots (§4.15).

    from everturn import chat, chat_server

    async def first_step(head):
        return head.stream(model, tools=[current_time])

    app = Starlette(routes=[Route("/chat", chat_server.head_start("support", first_step))])

The first message of a chat goes to this application instead of to the server. It creates the
session, whose run waits for a handover, and makes the first model request itself. The order of
what follows is the protocol:

1. *Stream*: every chunk goes to the caller's HTTP response and to the session's `.out`, as a guest
   record with a part id of its own, so that a second reader sees the whole answer too. The message
   has one id from its first chunk on, named here.
2. *Dispatch*, once all of that is durable. The step ended in tool calls: `handover` with
   `isFinal: false`, and the run goes on in the same message; the tools run there and only there,
   which is why the model gets their schemas alone here. It ended otherwise: `handover` with
   `isFinal: true`, and the run commits the answer without asking a model. It failed, or the caller
   went away before the end: `handover-skip`, and the run ends.
3. *Relay*: the run's chunks from the position after ours, up to its turn-complete, then two
   bookkeeping events for the client's transport.

The caller may go away at any time: before the dispatch that aborts the step; after it the run
needs nobody. Dying between stream and dispatch leaves a run that waits for its window and ends.

Tokens of the browser are made by the server; the secret key stays in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HttpResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from everturn.chat.head_start import Chunk, HeadStart, Show
from everturn.chat.hooks import call_declared
from everturn.chat.turn_loop import with_tasks
from everturn.client import wire
from everturn.client.api import Api
from everturn.errors import Conflict, EverturnError, InvalidRequest, TooLarge
from everturn.protocol import problems
from everturn.rules import limits
from everturn.tasks.durations import Duration

__all__ = ["HeadStart", "head_start", "open_session", "respond", "start_head_start"]

log = logging.getLogger("everturn.chat_server")

#: Answers the first step: takes the HeadStart, returns a streamable, or is itself a generator.
Run = Callable[..., Any]

#: Statuses that say what is wrong with the request; a missing key of ours is none of them.
_CALLERS_FAULT: Final = (400, 409, 413, 422)
#: Members of a payload that a browser does not get to say: they are the server's, or belong to
#: messages that travel in the log.
_SERVERS: Final = frozenset(
    {"message", "messages", "action", "continuation", "previousRunId", "sessionId"}
)
TOKEN_HEADER: Final = "X-Trigger-Chat-Access-Token"
CHAT_HEADER: Final = "X-Trigger-Chat-Id"


# --- opening --------------------------------------------------------------------------------------


async def open_session(
    request: Request | Mapping[str, Any],
    agent_id: str,
    *,
    idle_timeout: Duration | None = None,
    trigger_config: Mapping[str, Any] | None = None,
    api: Api | None = None,
) -> HeadStart:
    """Create the session of a chat whose first answer begins here.

    Args:
        request: the transport's POST, or its decoded body: `chatId`, `headStartMessages`, and
            optionally `metadata` and `messageId`.
        idle_timeout: how long the agent waits for the first step: this, else the trigger
            config's, else 60 s.
        trigger_config: how the session's runs are started; the tag `chat:<id>` is put first.
        api: another server, project or environment than the configured one.

    Raises:
        InvalidRequest: the body is no such request, or names no chat.
        Conflict: the chat exists already: its messages go to its session.
        Unprocessable: no such agent was ever registered.
    """
    api = api or Api()
    body = await _body(request) if isinstance(request, Request) else dict(request)
    chat_id = body.get("chatId")
    if not isinstance(chat_id, str) or not chat_id:
        raise InvalidRequest("a head start needs a chatId")
    config = wire.trigger_config(trigger_config)
    asked = idle_timeout if idle_timeout is not None else config.get("idleTimeoutInSeconds")
    window_s = wire.whole_seconds(asked) if asked is not None else int(limits.HANDOVER_WAIT_S)
    if asked is not None:
        config["idleTimeoutInSeconds"] = window_s
    payload = {
        **config.get("basePayload", {}),
        **{name: value for name, value in body.items() if name not in _SERVERS},
        "chatId": chat_id,
        "trigger": "handover-prepare",
        "idleTimeoutInSeconds": window_s,
    }
    config["basePayload"] = payload
    config["tags"] = wire.chat_tags(chat_id, config.get("tags", ()))
    created = await api.create_session(
        {
            "type": "chat.agent",
            "externalId": chat_id,
            "taskIdentifier": agent_id,
            "triggerConfig": config,
        }
    )
    if created.get("isCached"):
        raise Conflict(f"chat {chat_id!r} has begun already: send the message to its session")
    return HeadStart(api, payload, created, window_s)


async def _body(request: Request) -> dict[str, Any]:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limits.CREATE_BODY_BYTES_MAX:
            raise TooLarge(f"a head start is at most {limits.CREATE_BODY_BYTES_MAX} bytes")
    try:
        body = msgspec.json.decode(bytes(content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest("a head start is a JSON object")
    return body


async def start_head_start(
    agent_id: str,
    chat_id: str,
    messages: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    metadata: Any = None,
    idle_timeout: Duration | None = None,
    trigger_config: Mapping[str, Any] | None = None,
    api: Api | None = None,
) -> tuple[str, Awaitable[None]]:
    """A head start without an HTTP response: the answer is only written to the session.

    The session exists on return. The second value is the work that is left, the first step and
    its dispatch: await it, or start it in a task group; nothing happens before that.

    Returns `(chat id, completion)`. The completion raises what `run` raises, after the agent was
    told that nothing will come. Raises what `open_session` raises.
    """
    body = {"chatId": chat_id, "headStartMessages": [wire.plain(item) for item in messages]}
    if metadata is not None:
        body["metadata"] = wire.plain(metadata)
    head = await open_session(
        body, agent_id, idle_timeout=idle_timeout, trigger_config=trigger_config, api=api
    )
    return head.chat_id, _complete(head, run)


async def _complete(head: HeadStart, run: Run) -> None:
    async def nobody(chunk: Chunk) -> None:
        pass

    await head.first_step(await _source(head, run), nobody)


async def _source(head: HeadStart, run: Run) -> Any:
    """What the author's first step streams. The run is told when there will be nothing."""
    try:
        return await call_declared(run, head, None)
    except BaseException:
        await head.skip()
        raise


# --- HTTP -----------------------------------------------------------------------------------------


def head_start(
    agent_id: str,
    run: Run,
    *,
    idle_timeout: Duration | None = None,
    trigger_config: Mapping[str, Any] | None = None,
    api: Api | None = None,
) -> ASGIApp:
    """An ASGI application that answers the first message of chats (see the page above).

    Serve it where the transport's `headStart` URL points. Browsers of another origin need CORS
    headers from the application around it; the headers they must read are exposed here.

    Args:
        run: takes the HeadStart; returns a streamable, or is a generator of text and chunks.
        idle_timeout, trigger_config, api: see `open_session`.
    """

    options = {"idle_timeout": idle_timeout, "trigger_config": trigger_config, "api": api}
    return _Application(agent_id, run, options)


def respond(head: HeadStart, source: Any) -> ASGIApp:
    """The HTTP response of an opened head start: its first step, then the agent's part.

    For applications that call `open_session` by themselves. `source` is a streamable.
    """
    return _Response(head, source)


class _Application:
    """An object and no function, so that a router serves it as an application."""

    def __init__(self, agent_id: str, run: Run, options: Mapping[str, Any]) -> None:
        self._agent_id = agent_id
        self._run = run
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"a head start serves http, not {scope['type']}")
        request = Request(scope, receive)
        if request.method != "POST":
            refusal = HttpResponse(status_code=405, headers={"Allow": "POST"})
            await refusal(scope, receive, send)
            return
        try:
            head = await open_session(request, self._agent_id, **self._options)
            response = respond(head, await _source(head, self._run))
        except ClientDisconnect:
            return
        except EverturnError as error:
            response = _refusal(error)
        await response(scope, receive, send)


def _refusal(error: EverturnError) -> HttpResponse:
    """What the caller did wrong, in the words of the server; anything else is our trouble."""
    found = problems.problem(error)
    if found.status in _CALLERS_FAULT:
        return HttpResponse(found.body, found.status, media_type="application/json")
    log.error("head_start.refused", exc_info=error)
    return HttpResponse(b'{"error":"the chat could not be started"}', 502)


class _Response:
    """The event stream of one head start."""

    def __init__(self, head: HeadStart, source: Any) -> None:
        self._head = head
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache, no-transform",
            "X-Vercel-AI-UI-Message-Stream": "v1",
            CHAT_HEADER: self._head.chat_id,
            TOKEN_HEADER: self._head.access_token,
            "Access-Control-Expose-Headers": f"{CHAT_HEADER}, {TOKEN_HEADER}",
        }
        raw = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in headers.items()
        ]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

        async def show(chunk: Chunk) -> None:
            body = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async def work(tasks: TaskGroup) -> None:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            if await self._first_step(show):
                async for chunk in self._head.rest():
                    await show(chunk)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await with_tasks(work)

    async def _first_step(self, show: Show) -> bool:
        """The step; its failure is the caller's to see as an error chunk, and ours to log."""
        try:
            return await self._head.first_step(self._source, show)
        except Exception as error:  # author code, at the edge of a request
            log.exception("head_start.failed: %s", self._head.chat_id)
            await show({"type": "error", "errorText": str(error) or "An error occurred."})
            return False

    async def _watch(self, receive: Receive, work: anyio.CancelScope) -> None:
        """A caller that goes away aborts the step, and needs no relay."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._head.signal.abort("the caller went away")
        work.cancel()
