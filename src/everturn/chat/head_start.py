"""The warm side of a head start: one first step, and its hand-over (chat-agent §4.15).

What is written, in which order, and what a failure leaves behind is told in `everturn.chat_server`,
which makes these and serves them over HTTP.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from everturn.chat.chunks import check_chunk
from everturn.chat.closing import close_iterator
from everturn.chat.conversion import to_model_messages
from everturn.chat.handover import wire_partial
from everturn.chat.parts import tool_parts
from everturn.chat.reducer import MessageReducer
from everturn.chat.streamables import as_chunks
from everturn.chat.tools import listed
from everturn.chat.turn_loop import with_tasks
from everturn.chat.ui_messages import new_message_id, repair
from everturn.client import wire
from everturn.client.api import Api
from everturn.client.follow import Follower
from everturn.errors import EverturnError
from everturn.protocol.records import TURN_COMPLETE
from everturn.rules import limits
from everturn.tasks.signals import Signal

log = logging.getLogger("everturn.head_start")

Chunk = dict[str, Any]
Message = dict[str, Any]
Show = Callable[[Chunk], Awaitable[None]]

#: Chunks that wait to be stored; past it the step itself waits.
WAITING_MAX: Final = 256
#: Bytes of chunks in one request; the server takes 1 MiB, and one chunk may be as large.
REQUEST_BYTES: Final = 256 * limits.KIB
#: How long telling the run that nothing will come may take, when we are being stopped.
SKIP_S_MAX: Final = 5.0
#: Silence after which the relay gives up; the answer goes on without it.
RELAY_S: Final = 120


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

    async def _stream(self, source: Any, show: Show) -> tuple[Message, str | None]:
        """The message the step built, and why it ended; everything of it is durable on return."""
        reducer = MessageReducer()
        reason: str | None = None
        writes = _Writes(self._api, self.chat_id, self.message_id)

        async def work(tasks: TaskGroup) -> None:
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
