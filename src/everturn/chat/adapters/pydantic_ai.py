"""pydantic-ai agents as streams of chunks (chat-agent §8.2).

`stream_agent` prepares a run and starts nothing; iterating the `AgentStream` does. The run lives
in a task of the library's own (`Agent.run_stream_events`), one event ahead of the reader at most,
so a slow reader holds the model back, and a stop reaches the model wherever it waits without
cancelling whoever reads. The stream always ends in a good way: `finish`, `abort` after a stop,
`error` and `finish` after a failure of the model. Exceptions do not come out of it; cancelling
the reader does cancel the run.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import replace
from typing import Any, Final

import anyio
from pydantic_ai import Agent, CancellationToken
from pydantic_ai.agent import AgentRunEvents
from pydantic_ai.exceptions import UsageLimitExceeded, UserError
from pydantic_ai.result import StreamedRunResult
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.ui.vercel_ai import VercelAIAdapter
from pydantic_ai.usage import UsageLimits

from everturn.chat import conversion
from everturn.chat.adapters.events import Chunk, ChunkEvents, error_text
from everturn.chat.adapters.usage import Usage, usage_of_run
from everturn.chat.chunks import message_chunks
from everturn.errors import StreamAlreadyConsumed
from everturn.tasks.signals import Signal

_log: Final = logging.getLogger("everturn.chat")
#: How long closing waits for a cancelled run that does not end.
_CLOSE_S: Final = 5.0

Events = AgentRunEvents[Any]
#: The step hook of a chat, where no other is given.
STANDARD: Final = object()


class AgentStream:
    """One agent run as chunks. Read it once, with `async for`; nothing runs before that.

    Attributes:
        finish_reason: why it ended (`stop`, `length`, `tool-calls`, `error`, …); None before the
            end and after a stop.
        error: the exception that ended it, if one did.
    """

    def __init__(
        self,
        start: Callable[[], AbstractAsyncContextManager[Events]],
        *,
        message_id: str | None = None,
        stop: Signal | None = None,
        max_steps: int | None = None,
        on_error: Callable[[BaseException], str] | None = None,
    ) -> None:
        self._start = start
        self._message_id = message_id
        self._stop = stop or Signal()
        #: That of whoever pipes the stream, where it is another one.
        self._also: Signal | None = None
        self._max_steps = max_steps
        #: Gives the text of the `error` chunk. Set it before reading.
        self.on_error: Callable[[BaseException], str] = on_error or error_text
        self._events: Events | None = None
        self._mapper: ChunkEvents | None = None
        self._chunks: AsyncGenerator[Chunk, None] | None = None
        self.error: BaseException | None = None

    def __aiter__(self) -> AsyncIterator[Chunk]:
        if self._chunks is not None:
            raise StreamAlreadyConsumed("an agent stream is read once")
        self._chunks = self._read()
        return self._chunks

    def accompany(
        self, stop: Signal, on_error: Callable[[BaseException], str] | None = None
    ) -> None:
        """Stop with `stop` too; `on_error` gives the text of errors unless one was given before.

        Called before reading, by whoever pipes the stream.
        """
        if stop is not self._stop:
            self._also = stop
        if on_error is not None and self.on_error is error_text:
            self.on_error = on_error

    async def aclose(self) -> None:
        """End the run, if it was started. Safe to call at any time."""
        if self._chunks is not None:
            await self._chunks.aclose()

    async def _read(self) -> AsyncGenerator[Chunk, None]:
        self._mapper = mapper = ChunkEvents(
            sdk_version=6,
            server_message_id=self._message_id,
            on_error_text=self._text_of,
            stop_reason=self._stop_reason,
            ends_quietly=self._is_last_step,
        )
        # The context manager only makes the reader; leaving it is `aclose`, which is called here
        # so that it can be shielded: a cancelled reader must still see its run end.
        self._events = events = await self._start().__aenter__()
        # Undone at the end: the author's signal may live as long as the run.
        stops = [stop for stop in (self._stop, self._also) if stop is not None]
        undo = [stop.on_abort(lambda _: events.cancel()) for stop in stops]
        try:
            async with aclosing(mapper.chunks(events)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            for let_go in undo:
                let_go()
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await events.aclose()

    def _stop_reason(self) -> str | None:
        return self._stop.reason or (self._also.reason if self._also is not None else None)

    def _text_of(self, error: BaseException) -> str:
        self.error = error
        _log.warning("model.failed", exc_info=error)
        return self.on_error(error)

    def _is_last_step(self, error: BaseException) -> bool:
        return (
            isinstance(error, UsageLimitExceeded)
            and self._max_steps is not None
            and self._events is not None
            and self._events.usage.requests >= self._max_steps
        )

    @property
    def finish_reason(self) -> str | None:
        return self._mapper.reason if self._mapper is not None else None

    @property
    def usage(self) -> Usage | None:
        """What the run has cost so far, after the end in all; None before it started."""
        if self._events is None:
            return None
        try:
            return usage_of_run(self._events.usage)
        except UserError:  # the library has no state yet for a run that has only been prepared
            return None

    @property
    def result(self) -> AgentRunResult[Any] | None:
        """The library's result after a good end; None before, after a stop and after an error."""
        return self._events.result if self._events is not None else None


class TurnToken(CancellationToken):
    """Cancels the runs it is given to when a turn is stopped or its run is cancelled."""

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        signal.on_abort(lambda _: self.cancel())


def stream_agent(
    agent: Agent[Any, Any],
    *,
    messages: Sequence[Any] | None = None,
    user_prompt: Any = None,
    message_history: Sequence[Any] | None = None,
    deps: Any = None,
    model: Any = None,
    tools: Any = None,
    toolsets: Sequence[Any] | None = None,
    max_steps: int | None = None,
    usage_limits: UsageLimits | None = None,
    stop: Signal | None = None,
    message_id: str | None = None,
    original_messages: Sequence[Mapping[str, Any]] | None = None,
    turn: Any = None,
    step_hook: Any = STANDARD,
    on_error: Callable[[BaseException], str] | None = None,
    **overrides: Any,
) -> AgentStream:
    """Prepare a run of an agent; iterate the answer to start it.

    Args:
        messages: the conversation, as UI messages or as messages of the library. Decided
            approvals in UI messages are passed on by themselves.
        message_history: the same, in the library's words.
        tools: for this run only, besides the agent's own: tools of `chat.tool` and its like,
            functions, library tools and toolsets.
        max_steps: model requests at most. The tools of the last one still run; then the stream
            ends with finish reason `tool-calls`.
        stop: ends the run when aborted: open text is closed and `abort` comes last.
        message_id: named on `start`. By default the id of the assistant message at the end of
            `original_messages`, else none (whoever pipes the stream stamps one).
        turn: a chat turn: gives `messages`, `stop` and approvals where they are not given.
        step_hook: a capability in place of the standard one, which compacts, takes in waiting
            messages and background messages before each request of a turn; None for none.
        overrides: anything else `Agent.run_stream_events` takes.
    """
    if turn is not None:
        messages = turn.messages if messages is None and message_history is None else messages
        stop = turn.signal if stop is None else stop
        if "deferred_tool_results" not in overrides:
            overrides["deferred_tool_results"] = _decisions(turn)
        if "conversation" not in overrides:
            # Spans of the library name the conversation, and so do caches of some providers.
            overrides.setdefault("conversation_id", turn.chat_id)
    history = message_history if message_history is not None else messages
    if history is not None and any(isinstance(item, dict) for item in history):
        overrides.setdefault("deferred_tool_results", conversion.deferred_results(history))
        history = conversion.to_model_messages(history, tools)
    if isinstance(overrides.get("cancellation_token"), TurnToken):
        # Of `run_options`. The stream ends its run itself, in every kind of agent; some take none.
        del overrides["cancellation_token"]
    capabilities = _capabilities(overrides.pop("capabilities", None), turn, step_hook)
    if capabilities:
        overrides["capabilities"] = capabilities
    options: dict[str, Any] = {
        "message_history": list(history) if history is not None else None,
        "deps": deps,
        "model": model,
        "toolsets": _toolsets(tools, toolsets),
        "usage_limits": _limits(usage_limits, max_steps),
        **overrides,
    }
    if "output_type" not in options and (output_type := _output_type(agent)) is not None:
        options["output_type"] = output_type
    return AgentStream(
        lambda: agent.run_stream_events(user_prompt, **options),
        message_id=message_id if message_id is not None else _continued(original_messages),
        stop=stop,
        max_steps=max_steps,
        on_error=on_error,
    )


def _capabilities(given: Any, turn: Any, step_hook: Any) -> list[Any]:
    """Those given, and one step hook: what `run_options` brought, or the author's own."""
    from everturn.chat.step_hook import StepHook, with_step_hook

    if step_hook is STANDARD:
        return with_step_hook(given) if turn is not None else list(given or ())
    others = [capability for capability in given or () if not isinstance(capability, StepHook)]
    return others if step_hook is None else [*others, step_hook]


def _decisions(turn: Any) -> Any:
    given = getattr(turn, "deferred_tool_results", None)
    if given is not None:
        return given
    return conversion.deferred_results(getattr(turn, "ui_messages", None) or ())


def _continued(messages: Sequence[Mapping[str, Any]] | None) -> str | None:
    if messages and messages[-1].get("role") == "assistant":
        return messages[-1].get("id")
    return None


def _toolsets(tools: Any, toolsets: Sequence[Any] | None) -> list[Any] | None:
    from everturn.chat.toolsets import toolsets_of

    return [*(toolsets or ()), *toolsets_of(tools)] or None


def _limits(limits: UsageLimits | None, max_steps: int | None) -> UsageLimits | None:
    if max_steps is None:
        return limits
    limits = limits or UsageLimits()
    allowed = limits.request_limit
    return replace(limits, request_limit=max_steps if allowed is None else min(allowed, max_steps))


def _output_type(agent: Any) -> Any:
    """The agent's output type with deferred calls allowed; None when it must stay as it is.

    Without it a call of a tool that a person answers would fail the run. The library refuses
    another output type beside output validators, so such agents say it themselves.
    """
    declared = agent.output_type
    kinds = list(declared) if isinstance(declared, list | tuple) else [declared]
    if DeferredToolRequests in kinds or getattr(agent, "_output_validators", None):
        return None
    return [*kinds, DeferredToolRequests]


# --- what the library gave an author ----------------------------------------------------------


def as_stream(value: Any) -> AgentStream | AsyncIterator[Chunk] | None:
    """Something the library made as chunks; None when it is none of its streams or results.

    Runs become an `AgentStream`, which can be stopped and counts. Takes an `AgentStream` of ours,
    the result of `Agent.run`, what `Agent.run_stream` yields, and the events of
    `Agent.run_stream_events`, entered or not.
    """
    if isinstance(value, AgentStream):
        return value
    if isinstance(value, AgentRunResult):
        return _result_chunks(value)
    if isinstance(value, StreamedRunResult):
        return _streamed_chunks(value)
    if isinstance(value, AgentRunEvents):
        return AgentStream(lambda: nullcontext(value))
    if _is_unentered(value):
        return AgentStream(lambda: value)
    return None


def as_agent_chunks(value: Any) -> AsyncIterator[Chunk] | None:
    """The chunks of `as_stream`."""
    stream = as_stream(value)
    return None if stream is None else aiter(stream)


def from_stream(value: Any) -> AsyncIterator[Chunk]:
    """As `as_agent_chunks`. Raises TypeError for anything else."""
    chunks = as_agent_chunks(value)
    if chunks is None:
        raise TypeError(f"cannot stream a {type(value).__name__}")
    return chunks


def _is_unentered(value: Any) -> bool:
    own = type(value).__module__.partition(".")[0] == "pydantic_ai"
    return own and type(value).__name__ == "_RunStreamEventsContext"


async def _result_chunks(result: AgentRunResult[Any]) -> AsyncIterator[Chunk]:
    """A finished run, told again: its answers become one message."""
    parts: list[Chunk] = []
    for message in VercelAIAdapter.dump_messages(result.new_messages(), sdk_version=6):
        if message.role == "assistant":
            parts.append({"type": "step-start"})
            dumped = (part.model_dump(mode="json", by_alias=True) for part in message.parts)
            parts.extend(part for part in dumped if part["type"] != "step-start")
    for chunk in message_chunks({"role": "assistant", "parts": parts}):
        if chunk["type"] == "finish":
            deferred = isinstance(result.output, DeferredToolRequests)
            chunk = {"type": "finish", "finishReason": "tool-calls" if deferred else "stop"}
        yield chunk


async def _streamed_chunks(result: StreamedRunResult[Any, Any]) -> AsyncIterator[Chunk]:
    """The text of a run that is read inside its own `async with`."""
    yield {"type": "start"}
    yield {"type": "start-step"}
    yield {"type": "text-start", "id": "1"}
    async for delta in result.stream_text(delta=True):
        if delta:
            yield {"type": "text-delta", "id": "1", "delta": delta}
    yield {"type": "text-end", "id": "1"}
    yield {"type": "finish-step"}
    yield {"type": "finish", "finishReason": "stop"}
