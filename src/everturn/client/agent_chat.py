"""`AgentChat`: talking to a chat agent from Python.

One message becomes one record on the session's `.in`, with one part id over all tries; the answer
is read from `.out`, from the last record this object has seen. The object holds three facts (is
the session started, what was seen last, which of its messages were not seen to be settled), and
the first two are `session`, which an application stores to go on later, in another process too.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2

from everturn.client import wire
from everturn.client.api import Api, Endpoint, Send
from everturn.client.chat_stream import ChatStream
from everturn.client.follow import Follower
from everturn.client.looking import look_first, look_for_ends, look_for_others
from everturn.client.turns import AbortSignal, Boundary, ChatState, TurnReader
from everturn.errors import EverturnError
from everturn.ids import Ids
from everturn.rules import durations, limits

STREAM_TIMEOUT_S = 120
#: How long leaving a chat may take, a stop that is due and a close included.
EXIT_S_MAX = 10.0
_SUBMIT = "submit-message"


@dataclass(frozen=True, slots=True)
class ChatSessionState:
    """What to store between two uses of a chat: the number of the last record seen, as text."""

    last_event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Triggered:
    """This object started the session."""

    run_id: str
    chat_id: str


@dataclass(frozen=True, slots=True)
class TurnCompleted:
    """The end of a turn was seen."""

    chat_id: str
    last_event_id: str


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Which call a `request` override is asked to make: `in` appends, `out` reads."""

    endpoint: Endpoint
    chat_id: str


RequestOverride = Callable[[httpx2.Request, RequestContext, Send], Awaitable[httpx2.Response]]


class AgentChat:
    """A conversation with an agent.

    Args:
        agent: task id of the agent.
        id: chat id, which is the session's external id; a fresh UUID when None.
        client_data: sent as `metadata` with every message: a model or a dict.
        session: state of an earlier object. Giving it means that the session exists.
        trigger_config: how the session's runs are started; names in Python or wire spelling. The
            tag `chat:<id>` is put first.
        stream_timeout: an answer ends, incomplete, after this silence (1 s to 600 s).
        on_triggered: called with `Triggered` after this object started the session; awaited.
        on_turn_complete: called with `TurnCompleted` at each end of a turn; what it raises is
            dropped.
        base_url: another server for appends and reads; text, or a function of endpoint and chat
            id. The session is always started at the configured server.
        request: makes the requests for appends and reads itself.
        close_on_exit: leaving the `async with` block also ends the agent's run, as `close` does:
            for a chat that serves one purpose. Without it the session is left to its own timeouts.
        api: calls go through this instead of the configured server and key.
    """

    def __init__(
        self,
        agent: str,
        id: str | None = None,
        *,
        client_data: Any = None,
        session: ChatSessionState | None = None,
        trigger_config: Mapping[str, Any] | None = None,
        stream_timeout: durations.Duration = STREAM_TIMEOUT_S,
        on_triggered: Callable[[Triggered], object] | None = None,
        on_turn_complete: Callable[[TurnCompleted], object] | None = None,
        base_url: str | Callable[[Endpoint, str], str] | None = None,
        request: RequestOverride | None = None,
        close_on_exit: bool = False,
        api: Api | None = None,
    ) -> None:
        self.agent = agent
        self._api = api if api is not None else Api()
        self.id = id if id is not None else _random_uuid(self._api.ids)
        self.client_data = client_data
        self._trigger_config = wire.trigger_config(trigger_config)
        self._timeout_s = min(wire.whole_seconds(stream_timeout), limits.SSE_TIMEOUT_S_MAX)
        self._on_triggered = on_triggered
        self._on_turn_complete = on_turn_complete
        self._close_on_exit = close_on_exit
        self._base_url = base_url
        self._appends = self._overridden("in", request)
        self._reads = self._overridden("out", request)
        last = session.last_event_id if session is not None else None
        self._state = ChatState(
            started=session is not None, last_seq=None if last is None else int(last)
        )
        self._starting = anyio.Lock()
        self._reader: TurnReader | None = None

    @property
    def session(self) -> ChatSessionState:
        """What to store to go on later."""
        seq = self._state.last_seq
        return ChatSessionState(None if seq is None else str(seq))

    async def __aenter__(self) -> AgentChat:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Detach from the newest stream. The session and its turn go on, unless `close_on_exit`.

        Also when the caller is being cancelled, for a bounded time: whoever opened a sub-agent for
        one answer must not leave it running because that answer was stopped.
        """
        with anyio.move_on_after(EXIT_S_MAX, shield=True):
            if self._reader is not None:
                await self._reader.aclose()
            if self._close_on_exit:
                await self.close()

    # --- the session -----------------------------------------------------------------------------

    async def preload(self, idle_timeout: durations.Duration | None = None) -> ChatSessionState:
        """Start the session, so that its run is warm when the first message comes."""
        await self._ensure_started(idle_timeout)
        return self.session

    async def close(self) -> bool:
        """Ask the agent to end its run. A later send starts the session again.

        Returns False if it was not started, or the request failed.
        """
        if not self._state.started:
            return False
        try:
            await self._append_message({"trigger": "close"})
        except EverturnError:
            return False
        self._state.started = False
        return True

    # --- messages --------------------------------------------------------------------------------

    async def send_message(self, text: str, *, signal: AbortSignal | None = None) -> ChatStream:
        """Send one user message; returns the stream of its answer.

        Args:
            signal: aborting it stops the turn and ends the stream.

        Raises:
            SessionClosedError: the session takes no more messages.
            ApiError: the server did not answer, or with an error of its own.
        """
        message = {
            "id": f"msg-{self._unique()}",
            "role": "user",
            "parts": [{"type": "text", "text": text}],
        }
        return await self.send_raw([message], signal=signal)

    async def send_raw(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        trigger: str = _SUBMIT,
        signal: AbortSignal | None = None,
    ) -> ChatStream:
        """Send the last of `messages`, reduced to what is new in it; or ask for another answer.

        Args:
            trigger: `submit-message`, or `regenerate-message`, which sends no message.

        Raises ValueError for nothing to submit, and what `send_message` raises.
        """
        payload: dict[str, Any] = {"trigger": trigger}
        if trigger == _SUBMIT:
            if not messages:
                raise ValueError("there is no message to submit")
            payload = {"message": wire.slim(wire.plain(messages[-1])), **payload}
        return await self._turn(payload, signal)

    async def send_action(self, action: Any, *, signal: AbortSignal | None = None) -> ChatStream:
        """Send an action to the agent; returns the stream of what it writes.

        Raises what `send_message` raises, with a note that the session may have ended.
        """
        try:
            return await self._turn({"trigger": "action", "action": wire.plain(action)}, signal)
        except EverturnError as error:
            error.add_note("the action was not accepted; the session may have ended")
            raise

    async def steer(self, text: str) -> bool:
        """Add a user message to what the agent is doing, without a stream of its own.

        It joins the turn in progress, or is answered in a turn after it, which `reconnect` reads
        and the stream of the next message skips. Returns False if the session was not started by
        this object, or the request failed.
        """
        if not self._state.started:
            return False
        message = {
            "id": f"steer-{self._unique()}",
            "role": "user",
            "parts": [{"type": "text", "text": text}],
        }
        try:
            seq = await self._append_message({"message": message, "trigger": _SUBMIT})
        except EverturnError:
            return False
        if seq is not None:
            self._state.sent(seq)
        return True

    async def stop(self) -> None:
        """Stop the turn in progress. An open stream goes on to that turn's end.

        A failure of the request is ignored; nothing happens if the session was not started.
        """
        if not self._state.started:
            return
        # Named, a stop that comes too late stops nothing else. With several messages on their
        # way nobody here knows which of them is being answered: whichever it is is meant.
        unsettled = self._state.unsettled
        await self._send_stop(unsettled[0] if len(unsettled) == 1 else None)

    async def reconnect(self, *, signal: AbortSignal | None = None) -> ChatStream | None:
        """Read on from the last record seen; None if the session was not started.

        Aborting `signal` ends the stream and stops nothing.
        """
        if not self._state.started:
            return None
        if self._reader is not None:
            await self._reader.settle()  # this object forgets it, and a stop that is due with it
        return self._stream(Boundary(None), signal, on_stop=None)

    # --- handing over to a run (head start) -------------------------------------------------------

    async def send_handover(
        self, partial: Sequence[Any], *, is_final: bool, message_id: str | None = None
    ) -> None:
        """Hand the first step of an answer to the agent's run. Used by head starts."""
        chunk: dict[str, Any] = {"kind": "handover", "partialAssistantMessage": list(partial)}
        if message_id is not None:
            chunk["messageId"] = message_id
        await self._append({**chunk, "isFinal": is_final})

    async def send_handover_skip(self) -> None:
        """Tell the waiting run that nothing will be handed over."""
        await self._append({"kind": "handover-skip"})

    # --- how -------------------------------------------------------------------------------------

    async def _turn(self, payload: Mapping[str, Any], signal: AbortSignal | None) -> ChatStream:
        await self._ensure_started()
        if self._reader is not None:
            await self._reader.settle()  # a stop that is due goes before the message
        if self._state.known is None:
            await look_first(self._reads, self.id, self._state)
        elif not self._state.is_settled:
            await look_for_ends(self._reads, self.id, self._state)
        seq = await self._append_message(payload)
        if seq is not None and self._state.misses(seq):
            await look_for_others(self._reads, self.id, self._state, seq)
        message = payload.get("message")
        boundary = self._state.awaits(seq, str(message.get("id") or "") if message else "")

        async def stop() -> None:
            await self._send_stop(seq)

        return self._stream(boundary, signal, on_stop=stop)

    def _stream(
        self,
        boundary: Boundary,
        signal: AbortSignal | None,
        *,
        on_stop: Callable[[], Awaitable[None]] | None,
    ) -> ChatStream:
        follower = Follower(
            self._reads,
            self.id,
            "out",
            after=self._state.last_seq,
            timeout_s=self._timeout_s,
            whole=boundary.target is not None,
            waiting=lambda: reader.waiting(),
            base_url=self._endpoint("out"),
        )
        reader = TurnReader(
            follower,
            self._state,
            boundary,
            signal=signal,
            on_stop=on_stop,
            on_turn_complete=self._turn_completed,
        )
        self._reader = reader
        return ChatStream(reader)

    async def _ensure_started(self, idle_timeout: durations.Duration | None = None) -> None:
        async with self._starting:
            if self._state.started:
                return
            created = await self._api.create_session(self._start_body(idle_timeout))
            if created.get("isCached") and self._state.last_seq is None:
                # Somebody talked to this agent before. Without a cursor the first stream would
                # replay the turn before ours and end with it.
                await look_first(self._reads, self.id, self._state)
            elif not created.get("isCached"):
                self._state.looked()
            self._state.started = True
        if self._on_triggered is not None:
            await _maybe_await(self._on_triggered(Triggered(str(created["runId"]), self.id)))

    def _start_body(self, idle_timeout: durations.Duration | None) -> dict[str, Any]:
        config = dict(self._trigger_config)
        payload: dict[str, Any] = {"trigger": "preload", **config.get("basePayload", {})}
        payload["chatId"] = self.id
        if self.client_data is not None:
            payload["metadata"] = wire.plain(self.client_data)
        config["basePayload"] = payload
        config["tags"] = wire.chat_tags(self.id, config.get("tags", ()))
        if idle_timeout is not None:
            config["idleTimeoutInSeconds"] = wire.whole_seconds(idle_timeout)
        return {
            "type": "chat.agent",
            "externalId": self.id,
            "taskIdentifier": self.agent,
            "triggerConfig": config,
        }

    async def _append_message(self, payload: Mapping[str, Any]) -> int | None:
        payload = {"chatId": self.id, **payload}
        if self.client_data is not None and payload["trigger"] != "close":
            payload["metadata"] = wire.plain(self.client_data)
        return await self._append({"kind": "message", "payload": payload})

    async def _append(self, chunk: Mapping[str, Any]) -> int | None:
        return await self._appends.append(
            self.id,
            "in",
            wire.encode(chunk),
            part_id=self._appends.ids.part(),
            base_url=self._endpoint("in"),
        )

    async def _send_stop(self, target: int | None) -> None:
        chunk: dict[str, Any] = {"kind": "stop"}
        if target is not None:
            chunk["targetSeq"] = target
        try:
            self._state.wrote(await self._append(chunk))
        except EverturnError:
            return  # the turn ends by itself then; there is nobody to tell

    async def _turn_completed(self, seq: int) -> None:
        if self._on_turn_complete is None:
            return
        try:
            await _maybe_await(self._on_turn_complete(TurnCompleted(self.id, str(seq))))
        except Exception:  # the caller's code; the answer is whole whatever it does
            return

    def _endpoint(self, endpoint: Endpoint) -> str | None:
        base = self._base_url
        return base(endpoint, self.id) if callable(base) else base

    def _overridden(self, endpoint: Endpoint, request: RequestOverride | None) -> Api:
        if request is None:
            return self._api
        context = RequestContext(endpoint, self.id)

        async def hook(prepared: httpx2.Request, send: Send) -> httpx2.Response:
            return await request(prepared, context, send)

        return self._api.hooked(hook)

    def _unique(self) -> str:
        return f"{self._api.clock.now_ms()}-{self._api.ids.part(8)}"


def _random_uuid(ids: Ids) -> str:
    return str(uuid.UUID(bytes=bytes(int(ids.uniform(0, 256)) for _ in range(16)), version=4))


async def _maybe_await(value: object) -> None:
    if inspect.isawaitable(value):
        await value
