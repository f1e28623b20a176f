"""Runs of the OpenAI Agents SDK as streamables.

    @chat.agent("assistant")
    async def assistant(turn: chat.Turn):
        return run_agent(agent, turn)

`run_agent` gives the SDK the chat's history, continues with the agent the conversation was handed
to, asks a person where a tool needs approval, and carries the decision out when it comes.
`agents_chunks` only maps: for runs an author starts himself.

A run gives three kinds of events. The *raw* ones are events of the responses interface, whatever
model answers, and are mapped as those are: one response is one step. Of the *run items* only
results are shown (tool outputs and handoffs), because everything else came raw before. A change
of agent is not shown. At its end come the questions: each interruption is an approval request for
the call it is about, and the turn is over.

**Approvals.** The SDK keeps a run that waits for a person as a run state, to be stored by whoever
runs it. Here nothing is stored beside the chat: history has the call and the decision, in any
process and after any crash. When a decision has come, the run starts with the history up to the
step that asked, and its first response is not asked of the model: it is that step's decided
calls, as stored (`_Recorded`). The SDK then runs or refuses them, as decided, and goes on.

The SDK is imported when a run starts, and only then. A stop or a client that is gone cancels the
run, and its end is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

import anyio

from everturn.chat.adapters.building import Builder, Chunk, get, plain, text_field
from everturn.chat.adapters.openai_events import response_event
from everturn.chat.adapters.openai_items import call_item, reason_of, to_items
from everturn.chat.adapters.plain import ProviderStream
from everturn.chat.parts import Message, Part, is_tool_part, parts_of, tool_name

_RESULTS: Final = ("tool_call_output_item", "handoff_output_item")
#: An event of ours, after the last one of a run: what it wants a person to decide.
_QUESTIONS: Final = "everturn.questions"
#: How long the end of a cancelled run is waited for.
_CLOSE_S: Final = 5.0


def run_agent(
    agent: Any, turn: Any, *, context: Any = None, run_config: Any = None, **options: Any
) -> ProviderStream:
    """Run an agent of the SDK on a turn's history; the stream starts it when it is read.

    Args:
        agent: the agent that conversations begin with. Where history says that it handed over to
            another, that one answers.
        turn: the chat turn: its history, with a decided approval where one has come.
        context: the SDK's `context`, for tools and hooks.
        run_config: the SDK's `RunConfig`.
        **options: anything else `Runner.run_streamed` takes, such as `max_turns` and `hooks`.

    What the run raises (too many turns, a guardrail) fails the turn, and shows the partial answer.
    """
    history = turn.asked
    decided = _decided_calls(history)
    started = _Run(agent, history, decided, context, run_config, options)
    mapper = _Mapper(
        recorded=frozenset(part["toolCallId"] for part in decided),
        denied=frozenset(part["toolCallId"] for part in decided if not _is_approved(part)),
    )
    return ProviderStream(started.events(), mapper.event)


def agents_chunks(result: Any) -> ProviderStream:
    """The chunks of an agent run.

    Args:
        result: what `Runner.run_streamed` returns, or an iterator of its stream events.
    """
    whole = callable(getattr(result, "stream_events", None))
    events = _events_of(result) if whole else result
    return ProviderStream(events, _Mapper().event)


def last_agent(agent: Any, ui_messages: Sequence[Message]) -> Any:
    """The agent a conversation is with: `agent`, or whom it was handed to, step by step."""
    for message in ui_messages:
        for part in parts_of(message) if message.get("role") == "assistant" else ():
            if is_tool_part(part) and part.get("state") == "output-available":
                agent = _handed_to(agent, tool_name(part)) or agent
    return agent


def _handed_to(agent: Any, called: str) -> Any:
    """The agent that a call of this name hands over to; None when it is no handoff of `agent`."""
    from agents import Handoff

    for target in getattr(agent, "handoffs", None) or ():
        if not isinstance(target, Handoff):
            if Handoff.default_tool_name(target) == called:
                return target
        elif target.tool_name == called:
            # Only a reference is kept by the SDK, and only by its newer releases.
            found = getattr(target, "_agent_ref", None)
            return found() if callable(found) else None
    return None


# --- events to chunks -----------------------------------------------------------------------------


class _Mapper:
    """Maps the events of one run.

    Args:
        recorded: the calls of a first response that was shown before, in the turn that asked.
        denied: those of them that were refused.
    """

    def __init__(
        self, recorded: frozenset[str] = frozenset(), denied: frozenset[str] = frozenset()
    ) -> None:
        self._recorded = recorded
        self._denied = denied

    def event(self, builder: Builder, event: Any) -> Iterator[Chunk]:
        kind = get(event, "type")
        if kind == "raw_response_event":
            yield from self._raw(builder, get(event, "data"))
        elif kind == "run_item_stream_event":
            item = get(event, "item")
            if get(item, "type") in _RESULTS:
                yield from self._result(builder, item)
        elif kind == _QUESTIONS:
            yield from self._questions(builder, event["items"])

    def _raw(self, builder: Builder, raw: Any) -> Iterator[Chunk]:
        # A recorded response is never created, only completed: nothing of it is shown again.
        if get(raw, "type") == "response.created":
            yield from builder.end_step()
            yield from builder.step()
        yield from response_event(builder, raw)

    def _result(self, builder: Builder, item: Any) -> Iterator[Chunk]:
        raw = get(item, "raw_item")
        call_id = text_field(raw, "call_id")
        if call_id in self._denied:
            yield {"type": "tool-output-denied", "toolCallId": call_id}
        elif self._is_ours(builder, call_id):
            output = plain(get(item, "output", get(raw, "output")))
            yield {"type": "tool-output-available", "toolCallId": call_id, "output": output}

    def _questions(self, builder: Builder, items: Sequence[Any]) -> Iterator[Chunk]:
        for item in items:
            call_id = text_field(get(item, "raw_item"), "call_id")
            if not self._is_ours(builder, call_id):
                # Of an agent that runs inside a tool: no part of this chat's history could
                # bring the decision back to it.
                builder.error = "a call inside of an agent used as a tool asks for approval"
                return
            builder.finish_reason = "tool-calls"
            yield {"type": "tool-approval-request", "approvalId": call_id, "toolCallId": call_id}

    def _is_ours(self, builder: Builder, call_id: str) -> bool:
        return call_id in self._recorded or call_id in {call.id for call in builder.calls}


async def _events_of(result: Any) -> AsyncIterator[Any]:
    """A run's events, its questions behind them. Left early, the run is cancelled and ended."""
    whole = False
    try:
        async for event in result.stream_events():
            yield event
        whole = True
        questions = getattr(result, "interruptions", None)
        if questions:
            yield {"type": _QUESTIONS, "items": questions}
    finally:
        if not whole:
            await _cancel(result)


async def _cancel(result: Any) -> None:
    result.cancel()
    running = getattr(result, "run_loop_task", None)
    if running is not None:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([running], timeout=_CLOSE_S)


# --- a run of ours --------------------------------------------------------------------------------


class _Run:
    """One run, on a chat's history."""

    def __init__(
        self,
        agent: Any,
        history: Sequence[Message],
        decided: Sequence[Part],
        context: Any,
        run_config: Any,
        options: Mapping[str, Any],
    ) -> None:
        self._agent = agent
        self._history = history
        self._decided = decided
        self._context = context
        self._config = run_config
        self._options = options

    async def events(self) -> AsyncIterator[Any]:
        """Start it and give its events."""
        from agents import Runner

        agent, context, config = self._prepared()
        result = Runner.run_streamed(
            agent,
            to_items(self._history),
            context=context,
            run_config=config,
            **self._options,
        )
        async for event in _events_of(result):
            yield event

    def _prepared(self) -> tuple[Any, Any, Any]:
        """Agent, context and config: as given, or such that the decided calls come first."""
        agent = last_agent(self._agent, self._history)
        if not self._decided:
            return agent, self._context, self._config
        from dataclasses import replace

        from agents import RunConfig

        from everturn.chat.adapters.openai_recorded import approvals, recorded_model

        calls = [call_item(part) for part in self._decided]
        config = self._config or RunConfig()
        if config.model is not None:
            model = recorded_model(calls, config.model, config.model_provider)
            config = replace(config, model=model)
        else:
            model = recorded_model(calls, agent.model, config.model_provider)
            agent = agent.clone(model=model)
        decisions = [None if _is_approved(part) else reason_of(part) for part in self._decided]
        return agent, approvals(agent, calls, decisions, self._context), config


def _decided_calls(history: Sequence[Message]) -> list[Part]:
    """The calls at the end of a history that a person has just decided."""
    if not history or history[-1].get("role") != "assistant":
        return []
    return [part for part in parts_of(history[-1]) if _is_decided(part)]


def _is_decided(part: Part) -> bool:
    return (
        is_tool_part(part)
        and part.get("state") == "approval-responded"
        and isinstance(part.get("toolCallId"), str)
        and isinstance(part.get("approval"), dict)
    )


def _is_approved(part: Part) -> bool:
    # Only a plain true: the value comes from a client.
    return bool(part["approval"].get("approved") is True)
