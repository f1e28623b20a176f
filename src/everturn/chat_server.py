"""Head start: a warm process begins the first answer while the agent's run still boots (§4.15).

    from everturn import chat, chat_server

    async def first_step(head):
        return head.stream(model, tools=[current_time])

    app.mount("/chat", chat_server.head_start("support", first_step))

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
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HttpResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from everturn.chat.chunks import check_chunk
from everturn.chat.conversion import to_model_messages
from everturn.chat.handover import wire_partial
from everturn.chat.hooks import call_declared
from everturn.chat.messages import new_message_id, repair
from everturn.chat.output import as_chunks, close_iterator
from everturn.chat.parts import tool_parts
from everturn.chat.reducer import MessageReducer
from everturn.chat.turn_loop import with_tasks
from everturn.client import wire
from everturn.client.api import Api
from everturn.client.follow import Follower
from everturn.errors import Conflict, EverturnError, InvalidRequest, TooLarge
from everturn.protocol import problems
from everturn.protocol.records import TURN_COMPLETE
from everturn.rules import limits
from everturn.tasks.durations import Duration
from everturn.tasks.signals import Signal

__all__ = ["HeadStart", "head_start", "open_session", "start_head_start"]

log = logging.getLogger("everturn.chat_server")

Chunk = dict[str, Any]
Message = dict[str, Any]
#: Answers the first step: takes the HeadStart, returns a streamable, or is itself a generator.
Run = Callable[..., Any]
Show = Callable[[Chunk], Awaitable[None]]

#: Chunks that wait to be stored; past it the step itself waits.
WAITING_MAX: Final = 256
#: Bytes of chunks in one request; the server takes 1 MiB, and one chunk may be as large.
REQUEST_BYTES: Final = 256 * limits.KIB
#: How long telling the run that nothing will come may take, when we are being stopped.
SKIP_S_MAX: Final = 5.0
#: Silence after which the relay gives up; the answer goes on without it.
RELAY_S: Final = 120
#: Statuses that say what is wrong with the request; a missing key of ours is none of them.
_CALLERS_FAULT: Final = (400, 409, 413, 422)
TOKEN_HEADER: Final = "X-Trigger-Chat-Access-Token"
CHAT_HEADER: Final = "X-Trigger-Chat-Id"


class HeadStart:
    """One chat whose first answer begins here. Made by `open_session`; given to `run`.

    Attributes:
        chat_id, messages, client_data: as the client sent them.
        message_id: of the answer, on this side and on the agent's.
        signal: aborted when the caller goes away, or the agent's window is over.
        access_token: with which a browser may read and write this chat.
        run_id: of the run that waits.
    """

    def __init__(
        self, api: Api, payload: Mapping[str, Any], created: Mapping[str, Any], window_s: float
    ) -> None:
        self.chat_id: str = payload["chatId"]
        self.messages: list[Message] = repair(payload.get("headStartMessages"))
        self.client_data: Any = payload.get("metadata")
        self.message_id = new_message_id(api.ids)
        self.signal = Signal()
        self.access_token = str(created.get("publicAccessToken", ""))
        self.run_id = str(created.get("runId", ""))
        self._api = api
        self._window_s = window_s
        self._last_seq: int | None = None
        self._handed_over = False

    # --- for the author's first step -------------------------------------------------------------

    def run_options(self, *, tools: Any = None) -> dict[str, Any]:
        """Keyword arguments for a model call of the library: one request, this history.

        Args:
            tools: what the agent will have; the model is shown their schemas, none runs here.
        """
        from pydantic_ai.usage import UsageLimits

        return {
            "message_history": to_model_messages(self.messages),
            "toolsets": _schemas(tools),
            "usage_limits": UsageLimits(request_limit=1),
        }

    def stream(self, agent: Any, *, tools: Any = None, **overrides: Any) -> Any:
        """One model request of a pydantic-ai agent on this history, as a stream.

        The agent has no tools of its own, because those would run here; `tools` are shown to it.
        """
        from everturn.chat.adapters.pydantic_ai import stream_agent

        return stream_agent(
            agent,
            messages=self.messages,
            toolsets=_schemas(tools),
            max_steps=1,
            stop=self.signal,
            message_id=self.message_id,
            **overrides,
        )

    # --- the protocol ----------------------------------------------------------------------------

    async def first_step(self, source: Any, show: Show) -> bool:
        """Stream a source to `show` and to `.out`, then dispatch. False when it was skipped.

        Raises what the source raises, after the run was told that nothing will come.
        """
        try:
            message, reason = await self._stream(source, show)
            pending = any(part.get("state") == "input-available" for part in tool_parts(message))
            if self.signal.aborted or reason in (None, "error"):
                return False
            await self._hand_over(message, is_final=not (reason == "tool-calls" and pending))
            return True
        finally:
            await self.skip()

    async def skip(self) -> None:
        """Tell the run that nothing will be handed over, unless something was. Never raises."""
        if self._handed_over:
            return
        self._handed_over = True
        with anyio.move_on_after(SKIP_S_MAX, shield=True):
            try:
                await self._append({"kind": "handover-skip"}, "skip")
            except EverturnError:
                # The run ends by itself when its window is over.
                log.warning("head_start.skip_failed: %s", self.chat_id, exc_info=True)

    async def rest(self) -> AsyncIterator[Chunk]:
        """The agent's part of the answer, and the two events that end the response."""
        follower = Follower(
            self._api,
            self.chat_id,
            "out",
            after=self._last_seq,
            timeout_s=RELAY_S,
            waiting=lambda: True,
        )
        async with follower:
            while (arrived := await follower.next()) is not None:
                if arrived.record.control == TURN_COMPLETE:
                    yield {"type": "trigger:turn-complete"}
                    last = str(arrived.record.seq_num)
                    yield {"type": "trigger:session-state", "lastEventId": last}
                    return
                if arrived.record.is_data and isinstance(arrived.data, dict):
                    yield arrived.data

    def respond(self, source: Any) -> ASGIApp:
        """The HTTP response: the first step, then the agent's part, as server-sent events."""
        return _Response(self, source)

    async def _stream(self, source: Any, show: Show) -> tuple[Message, str | None]:
        """The message the step built, and why it ended; everything of it is durable on return."""
        reducer = MessageReducer()
        reason: str | None = None
        writes = _Writes(self._api, self.chat_id, self.message_id)

        async def work(tasks: anyio.abc.TaskGroup) -> None:
            nonlocal reason
            tasks.start_soon(writes.run)
            with anyio.CancelScope() as scope:
                tasks.start_soon(self._limit)
                undo = self.signal.on_abort(lambda _: scope.cancel())
                chunks = as_chunks(
                    source, ids=self._api.ids, message_id=self.message_id, forced=True
                )
                try:
                    async for chunk in chunks:
                        check_chunk(chunk)
                        reducer.feed(chunk)
                        if chunk["type"] == "finish":
                            reason = str(chunk.get("finishReason") or "stop")
                            if reason == "tool-calls":
                                continue  # the agent's part ends the message
                        await writes.put(chunk)
                        await show(chunk)
                finally:
                    undo()
                    await close_iterator(chunks)
            if reducer.error is not None:
                reason = "error"
            self._last_seq = await writes.finish()

        await with_tasks(work)
        message = reducer.snapshot()
        message["id"] = self.message_id
        return message, reason

    async def _limit(self) -> None:
        """The agent waits no longer than this: a step that takes longer would be for nobody."""
        await self._api.clock.sleep(self._window_s)
        self.signal.abort("the agent's window is over")

    async def _hand_over(self, message: Message, *, is_final: bool) -> None:
        chunk = {
            "kind": "handover",
            "partialAssistantMessage": wire_partial(message, is_final=is_final),
            "messageId": self.message_id,
            "isFinal": is_final,
        }
        await self._append(chunk, "handover")
        self._handed_over = True

    async def _append(self, chunk: Mapping[str, Any], what: str) -> None:
        part_id = f"head:{self.message_id}:{what}"
        await self._api.append(self.chat_id, "in", wire.encode(chunk), part_id=part_id)


def _schemas(tools: Any) -> Any:
    """Toolsets whose calls are deferred, whoever would answer them."""
    from dataclasses import replace

    from everturn.chat.tools import listed
    from everturn.chat.toolsets import toolsets_of

    def deferred(_: Any, definitions: Sequence[Any]) -> list[Any]:
        return [replace(definition, kind="external") for definition in definitions]

    given = listed(tools)
    return [toolset.prepared(deferred) for toolset in toolsets_of(given)] if given else None


class _Writes:
    """Stores chunks on `.out` in their order, many in one request, beside the stream."""

    def __init__(self, api: Api, session: str, message_id: str) -> None:
        self._api = api
        self._session = session
        self._message_id = message_id
        self._waiting: deque[Chunk] = deque()
        self._next_part = 0
        self._last_seq: int | None = None
        self._more = anyio.Event()
        self._room = anyio.Event()
        self._closed = False
        self._done = anyio.Event()

    async def put(self, chunk: Chunk) -> None:
        """Queue a chunk; waits while WAITING_MAX of them are queued."""
        while len(self._waiting) >= WAITING_MAX:
            self._room = anyio.Event()
            await self._room.wait()
        self._waiting.append(chunk)
        self._more.set()

    async def finish(self) -> int | None:
        """Return the number of the last record once everything is durable; None without any."""
        self._closed = True
        self._more.set()
        await self._done.wait()
        return self._last_seq

    async def run(self) -> None:
        """Store until `finish`. Raises what the API raises."""
        while True:
            if not self._waiting:
                if self._closed:
                    break
                self._more = anyio.Event()
                await self._more.wait()
                continue
            seq_nums = await self._api.write_records(self._session, self._batch())
            self._last_seq = seq_nums[-1]
            self._room.set()
        self._done.set()

    def _batch(self) -> list[dict[str, Any]]:
        """As many chunks as one request takes. Named parts make a repeated request harmless."""
        batch: list[dict[str, Any]] = []
        size = 0
        while self._waiting and len(batch) < limits.BATCH_RECORDS_MAX:
            size += len(msgspec.json.encode(self._waiting[0]))
            if batch and size > REQUEST_BYTES:
                break
            part_id = f"head:{self._message_id}:{self._next_part}"
            self._next_part += 1
            batch.append({"data": self._waiting.popleft(), "partId": part_id})
        return batch


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
        **{name: value for name, value in body.items() if name != "message"},
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

    Mount it where the transport's `headStart` URL points. Browsers of another origin need CORS
    headers from the application around it; the headers they must read are exposed here.

    Args:
        run: takes the HeadStart; returns a streamable, or is a generator of text and chunks.
        idle_timeout, trigger_config, api: see `open_session`.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"a head start serves http, not {scope['type']}")
        request = Request(scope, receive)
        if request.method != "POST":
            await HttpResponse(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
            return
        try:
            head = await open_session(
                request,
                agent_id,
                idle_timeout=idle_timeout,
                trigger_config=trigger_config,
                api=api,
            )
            response = head.respond(await _source(head, run))
        except ClientDisconnect:
            return
        except EverturnError as error:
            response = _refusal(error)
        await response(scope, receive, send)

    return app


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

        async def work(tasks: anyio.abc.TaskGroup) -> None:
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
