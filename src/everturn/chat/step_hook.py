"""The step hook: what happens before every request a turn makes to its model (chat-agent §4.8).

A capability of the model library. Its order is fixed: compaction first, because what comes after
must not be summarised away; then messages that wait (steering); then messages of the background.

Two lists matter, and they are not the same. `ctx.messages` is the run's own history: what is
added there is in all its later requests. `request_context.messages` is what this one request
sends. A compacted request replaces the second only, so that nothing the run has said or heard is
forgotten by the library. Messages that join the conversation are given to the library's queue
(`ctx.enqueue`), which adds them to both behind everything that hooks put there, and holds them
back where a request takes nothing new (one that goes on with a response the provider suspended).
They are marked, so that the event stream does not show a second time what the marker chunk of
steering shows, nor at all what is for the model only.

It finds the turn through the context; outside of a turn it does nothing. `turn.stream` brings one
by itself. A sub-agent that a tool runs has none, unless its author hands it `chat.run_options()`:
then what a user says meanwhile reaches the sub-agent, for better or worse. The chat's compaction
does not: a sub-agent has a history of its own, and a summary of it in the place of the chat's
would be the end of the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from pydantic_ai.capabilities import AbstractCapability, WrapRunHandler
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import RunContext

from everturn.chat import compaction
from everturn.chat.adapters import between
from everturn.chat.adapters.events import JOINED
from everturn.chat.compaction import Compaction
from everturn.chat.state import ChatRun, TurnState, current_run_or_none
from everturn.chat.steering import Boundary

#: The model run that the calling code is inside of, the outermost one with a step hook.
_outermost: ContextVar[str | None] = ContextVar("everturn.chat.model_run", default=None)


class StepHook(AbstractCapability[Any]):
    """Compaction, steering and background messages, for one model run of a turn."""

    def __init__(self, *, only: Compaction | None = None) -> None:
        """`only`: compact this way and do nothing else; by default, what the agent declares."""
        self._only = only

    async def wrap_run(
        self, ctx: RunContext[Any], *, handler: WrapRunHandler
    ) -> AgentRunResult[Any]:
        if _outermost.get() is not None:
            return await handler()
        _outermost.set(ctx.run_id)
        try:
            return await handler()
        finally:
            # Another run of the same task is not inside of this one.
            _outermost.set(None)

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        run = current_run_or_none()
        if run is None or run.turn is None:
            return request_context
        state = run.turn
        boundary = Boundary(
            history=ctx.messages,
            request=list(request_context.messages),
            steps=[m for m in ctx.messages if _is_step(m, ctx.run_id)],
            run_id=ctx.run_id or "",
            show=shower(run),
        )
        await self._compact(run, state, boundary, request_context)
        if self._only is None:
            _join(ctx, await run.steering.at_boundary(run, state, boundary))
            _join(ctx, run.background.take(run.lane.messages))
        return request_context

    async def _compact(
        self, run: ChatRun, state: TurnState, boundary: Boundary, request: ModelRequestContext
    ) -> None:
        nested = _outermost.get() not in (None, boundary.run_id)
        config = self._only or (None if nested else run.compaction)
        if config is None:
            return
        compacted = await compaction.at_boundary(run, state, config, boundary)
        if compacted is not None:
            request.messages = boundary.request = compacted


def _is_step(message: ModelMessage, run_id: str | None) -> bool:
    return isinstance(message, ModelResponse) and message.run_id == run_id


def _join(ctx: RunContext[Any], made: Sequence[ModelMessage]) -> None:
    """Messages become part of the run: of this request and of all that follow."""
    ctx.enqueue(*(replace(m, metadata={**(m.metadata or {}), JOINED: True}) for m in made))


def shower(run: ChatRun) -> Callable[..., None]:
    """How chunks are shown between two steps: in the stream that is being read.

    Where nobody reads the model run as a stream of ours there is no place in it: the chunks go
    straight to the client, and parts that are kept to the end of the response.
    """
    stream = between.current()
    if stream is not None:
        return stream.put

    def write(*chunks: dict[str, Any]) -> None:
        writer = run.writer()
        for chunk in chunks:
            writer.write(chunk)

    return write


def with_step_hook(capabilities: Any) -> list[Any]:
    """Capabilities of a model run, with the standard step hook unless they hold one."""
    given = list(capabilities or ())
    if any(isinstance(capability, StepHook) for capability in given):
        return given
    return [*given, StepHook()]
