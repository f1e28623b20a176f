"""Compaction: a long conversation goes on from a summary (chat-agent §4.6).

What clients see never shrinks by itself: only the model lane does, and only in this run. A later
run starts from the whole of the UI messages again (Q-10), unless `compact_ui_messages` has
shortened those.

*Inner* compaction happens between two steps of an answer, at most once per turn, and only when
the last step is settled: every call has its result, none failed. The request that follows starts
from the summary as a user message; requests after it send the summary and what came since
(`Inner.rebuilt`). The model run's own history keeps everything: what is compacted is what is
sent. *Outer* compaction happens when an answer is complete, unless it was stopped, its cost is
unknown, or it was compacted inside.

What is left for the turns after is a `LaneStart`: model messages that stand for the first so many
UI messages. It holds only as long as those are the same; a rollback, or an author who rewrites
history, makes it void, and the model lane is built from the UI lane as ever.

A summary that cannot be written changes nothing: it is logged, the `complete` chunk is not sent,
and the turn goes on. Other functions of the author fail the turn, as any code in it does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from everturn.chat import hooks, tracing
from everturn.chat.failures import ends_attempt, logged
from everturn.chat.hooks import call_declared
from everturn.chat.parts import Message, is_tool_part, parts_of
from everturn.chat.prepare import prepared
from everturn.chat.ui_messages import UIMessage, id_of
from everturn.protocol.chunks import COMPACTION_CHUNK

if TYPE_CHECKING:
    from everturn.chat.state import ChatRun, TurnState
    from everturn.chat.steering import Boundary

log = logging.getLogger("everturn.chat")
Source = Literal["inner", "outer"]
SUMMARY_TITLE: Final = "[Conversation summary]"
_UNRESOLVED: Final = (
    "input-streaming",
    "input-available",
    "approval-requested",
    "approval-responded",
    "partial-call",
    "call",
)


@dataclass(frozen=True, kw_only=True)
class ShouldCompactEvent:
    """Asked whether to compact.

    Attributes:
        messages: the model lane: what would be summarised.
        total_tokens, input_tokens, output_tokens, usage: of the last step (inner), of the turn
            (outer).
        total_usage: of the run so far; outer only.
        steps: the model's responses of this turn, and `step_number` of the last; inner only.
    """

    messages: list[Any]
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    usage: Any
    chat_id: str
    turn: int
    client_data: Any
    source: Source
    total_usage: Any = None
    steps: list[Any] = field(default_factory=list)
    step_number: int | None = None


@dataclass(frozen=True, kw_only=True)
class SummarizeEvent:
    """Asked for the summary of `messages`."""

    messages: list[Any]
    usage: Any
    total_usage: Any
    chat_id: str
    turn: int
    client_data: Any
    source: Source
    step_number: int | None


@dataclass(frozen=True, kw_only=True)
class CompactMessagesEvent:
    """Asked what a lane becomes, now that there is a summary."""

    summary: str
    ui_messages: list[UIMessage]
    model_messages: list[Any]
    chat_id: str
    turn: int
    client_data: Any
    source: Source


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """When and how an agent's model lane is compacted. Functions may be sync or async.

    Attributes:
        should_compact: `(ShouldCompactEvent) -> bool`.
        summarize: `(SummarizeEvent) -> str`.
        compact_ui_messages: `(CompactMessagesEvent) -> list` of UI messages. By default clients
            keep seeing everything.
        compact_model_messages: `(CompactMessagesEvent) -> list` of model messages that later
            turns of this run start from. By default one assistant message with the summary.
    """

    should_compact: Callable[..., Any]
    summarize: Callable[..., Any]
    compact_ui_messages: Callable[..., Any] | None = None
    compact_model_messages: Callable[..., Any] | None = None


class CompactionState(NamedTuple):
    """What was compacted in the turn in progress (`chat.compaction_state`).

    Attributes:
        summary: the summary.
        base_response_message_count: how many of the turn's own model messages (responses, tool
            results) it covers; what came after them is sent as it is.
    """

    summary: str
    base_response_message_count: int


# --- the model lane of later turns --------------------------------------------------------------


@dataclass(frozen=True)
class LaneStart:
    """Model messages in place of the first UI messages of a chat."""

    model: tuple[Any, ...]
    covered: tuple[Message, ...]

    def holds(self, ui_messages: Sequence[Message]) -> bool:
        """Whether the messages it stands for are still the ones history begins with."""
        return len(ui_messages) >= len(self.covered) and all(
            ours is theirs or ours == theirs
            for ours, theirs in zip(self.covered, ui_messages, strict=False)
        )

    def following(self, message: Message) -> LaneStart:
        """The same for a message that got data parts since; no model hears of those."""
        found = (message if id_of(ours) == id_of(message) else ours for ours in self.covered)
        return LaneStart(self.model, tuple(found))


# --- inner --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """The compaction of a turn in progress."""

    summary: str
    #: What requests start from: the system prompts there were, and the summary.
    opening: tuple[Any, ...]
    #: How much of the model run's history the summary stands for.
    base: int
    responses: int
    run_id: str
    #: The model lane it was made of.
    before: tuple[Any, ...]

    def rebuilt(self, history: Sequence[Any]) -> list[Any]:
        return [*self.opening, *history[self.base :]]


async def at_boundary(
    run: ChatRun, state: TurnState, config: Compaction, boundary: Boundary
) -> list[Any] | None:
    """The messages of the next request, when it is a compacted one; else None."""
    done = state.compacted
    if done is not None:
        if done.run_id != boundary.run_id:
            return None
        return await prepared(run, state, done.rebuilt(boundary.history), "compaction-rebuild")
    if not boundary.steps or not is_settled(boundary.history):
        return None
    if not await call_declared(config.should_compact, _should(run, state, boundary)):
        return None
    made = await _compact(run, state, config, boundary)
    if made is None:
        return None
    return await prepared(run, state, list(made.opening), "compaction-result")


async def _compact(
    run: ChatRun, state: TurnState, config: Compaction, boundary: Boundary
) -> Inner | None:
    usage = _usage(boundary.steps[-1])
    tokens = usage.total_tokens
    boundary.show({"type": "start-step"}, _chunk("compacting", tokens))
    event = SummarizeEvent(
        messages=list(boundary.request),
        usage=usage,
        total_usage=run.total_usage,
        chat_id=run.chat_id,
        turn=state.turn,
        client_data=state.client_data,
        source="inner",
        step_number=boundary.step_number,
    )
    summary = await _summary(run, config, event)
    if summary is None:
        boundary.show({"type": "finish-step"})
        return None
    end = len(boundary.history)
    first = next((i for i, m in enumerate(boundary.history) if m is boundary.steps[0]), end)
    made = Inner(
        summary=summary,
        opening=_opening(boundary.request, summary),
        base=end,
        responses=end - first,
        run_id=boundary.run_id,
        before=tuple(boundary.request),
    )
    state.compacted = made
    await _told(run, state, summary, event)
    boundary.show(_chunk("complete", tokens), {"type": "finish-step"})
    return made


def is_settled(history: Sequence[Any]) -> bool:
    """Whether the newest step is over: each of its calls has a result, and none failed."""
    index = next((i for i in reversed(range(len(history))) if history[i].kind == "response"), None)
    if index is None:
        return False
    wanted = {p.tool_call_id for p in history[index].parts if p.part_kind == "tool-call"}
    for message in history[index + 1 :]:
        for part in message.parts:
            if part.part_kind.startswith("retry") or getattr(part, "outcome", None) == "failed":
                return False
            if part.part_kind == "tool-return":
                wanted.discard(part.tool_call_id)
    return not wanted


def _opening(request: Sequence[Any], summary: str) -> tuple[Any, ...]:
    """The summary as a user message, behind the system prompts that would else be lost."""
    from pydantic_ai.messages import ModelRequest, SystemPromptPart, UserPromptPart

    system = [
        part
        for message in request
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, SystemPromptPart)
    ]
    return (ModelRequest(parts=[*system, UserPromptPart(content=summary)]),)


async def settle(run: ChatRun, state: TurnState, response: Message | None) -> None:
    """T24: what an inner compaction leaves to later turns.

    Called before the response joins the lane: it comes after the summary, whole.
    """
    response_id = id_of(response) if response is not None else ""
    done, config = state.compacted, run.compaction
    if done is None:
        return
    # A continued answer is in the lane already; it is not what the summary stands for alone.
    covers = [m for m in run.lane.messages if not response_id or m.get("id") != response_id]
    await _replace_lanes(run, state, config, done.summary, list(done.before), covers, "inner")


# --- outer --------------------------------------------------------------------------------------


async def outer(
    run: ChatRun,
    state: TurnState,
    lane: Callable[[], list[Any]],
    context: Mapping[str, Any] | None = None,
) -> None:
    """T29: compact between turns, if the author wants it.

    Args:
        lane: gives the model messages.
        context: fields of the events that the caller knows better than the run.
    """
    config = run.compaction
    if config is None or state.compacted is not None or state.usage is None or state.stopped:
        return
    from everturn.chat.output import add_usage

    model = lane()
    usage = state.usage
    total = add_usage(run.total_usage, usage)
    should = ShouldCompactEvent(
        messages=model,
        total_tokens=usage.total_tokens,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        usage=usage,
        total_usage=total,
        chat_id=run.chat_id,
        turn=state.turn,
        client_data=state.client_data,
        source="outer",
    )
    if not await call_declared(config.should_compact, replace(should, **(context or {}))):
        return
    run.out.write(_chunk("compacting", usage.total_tokens), ours=True)
    event = SummarizeEvent(
        messages=model,
        usage=usage,
        total_usage=total,
        chat_id=run.chat_id,
        turn=state.turn,
        client_data=state.client_data,
        source="outer",
        step_number=None,
    )
    event = replace(event, **(context or {}))
    summary = await _summary(run, config, event)
    if summary is None:
        return
    await _replace_lanes(run, state, config, summary, model, run.lane.messages, "outer")
    await _told(run, state, summary, event)
    run.out.write(_chunk("complete", usage.total_tokens), ours=True)


# --- both ---------------------------------------------------------------------------------------


async def _replace_lanes(
    run: ChatRun,
    state: TurnState,
    config: Compaction | None,
    summary: str,
    model: list[Any],
    covers: Sequence[Message],
    source: Source,
) -> None:
    """Both lanes as later turns find them."""
    event = CompactMessagesEvent(
        summary=summary,
        ui_messages=run.lane.messages,
        model_messages=model,
        chat_id=run.chat_id,
        turn=state.turn,
        client_data=state.client_data,
        source=source,
    )
    start = [_summary_message(summary)]
    if config is not None and config.compact_model_messages is not None:
        start = list(await call_declared(config.compact_model_messages, event))
    if config is not None and config.compact_ui_messages is not None:
        shortened = await call_declared(config.compact_ui_messages, event)
        run.lane.replace_all(hooks.history(shortened, "compact_ui_messages"))
        state.history_changed = True
        covers = run.lane.messages
    run.lane_start = LaneStart(tuple(start), tuple(covers))


def _summary_message(summary: str) -> Any:
    from pydantic_ai.messages import ModelResponse, TextPart

    return ModelResponse(parts=[TextPart(content=f"{SUMMARY_TITLE}\n\n{summary}")])


async def _summary(run: ChatRun, config: Compaction, event: SummarizeEvent) -> str | None:
    """The author's summary; None when there is none, for whatever reason (D-17)."""
    about = {
        "compaction.source": event.source,
        "compaction.message_count": len(event.messages),
        "compaction.total_tokens": event.usage.total_tokens or 0,
    }
    try:
        with tracing.span(run, "context compaction", about):
            summary = await call_declared(config.summarize, event)
    except Exception as error:  # author code: without a summary everything stays as it is
        if ends_attempt(error):
            raise
        log.exception("compaction.failed")
        return None
    if isinstance(summary, str) and summary:
        return summary
    log.error("compaction.failed: summarize returned %s, not text", type(summary).__name__)
    return None


async def _told(run: ChatRun, state: TurnState, summary: str, event: SummarizeEvent) -> None:
    """`on_compacted`; what it raises is logged (Q-11)."""
    if not run.agent.hooks.has("on_compacted"):
        return
    told = hooks.CompactedEvent(
        ctx=run.ctx,
        chat_id=run.chat_id,
        turn=state.turn,
        summary=summary,
        messages=event.messages,
        message_count=len(event.messages),
        usage=event.usage,
        total_tokens=event.usage.total_tokens,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
        step_number=-1 if event.step_number is None else event.step_number,
        writer=run.writer(),
    )
    await logged(lambda: run.hook("on_compacted", told), "on_compacted")


def _should(run: ChatRun, state: TurnState, boundary: Boundary) -> ShouldCompactEvent:
    usage = _usage(boundary.steps[-1])
    return ShouldCompactEvent(
        messages=list(boundary.request),
        total_tokens=usage.total_tokens,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        usage=usage,
        chat_id=run.chat_id,
        turn=state.turn,
        client_data=state.client_data,
        source="inner",
        steps=list(boundary.steps),
        step_number=boundary.step_number,
    )


def _usage(step: Any) -> Any:
    from everturn.chat.adapters.usage import usage_of_run

    return usage_of_run(step.usage)


def _chunk(status: str, total_tokens: int | None) -> dict[str, Any]:
    data: dict[str, Any] = {"status": status}
    if total_tokens is not None:
        data["totalTokens"] = total_tokens
    return {"type": COMPACTION_CHUNK, "data": data, "transient": True}


def is_compaction_safe(ui_messages: Sequence[Message]) -> bool:
    """Whether no tool call of these messages waits for its result or an approval."""
    return not any(
        is_tool_part(part) and (part.get("state") in _UNRESOLVED or part.get("preliminary") is True)
        for message in ui_messages
        for part in parts_of(message)
    )
