"""Runs of the OpenAI Agents SDK as streamables.

    @chat.agent("assistant")
    async def assistant(turn: chat.Turn):
        result = Runner.run_streamed(agent, input=…)
        return agents_chunks(result)

`Runner.run_streamed` gives three kinds of events. The *raw* ones are events of the responses
interface, whatever model answers, and are mapped as those are: one response is one step. Of the
*run items* only results are shown (tool outputs and handoffs), because everything else came raw
before. A change of agent is not shown. The SDK is not imported; a stop or a client that is gone
cancels its run.

An SDK run that waits for an approval (`result.interruptions`) ends the answer; showing the
question, and keeping the SDK's run state until the reply, is the author's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from everturn.chat.adapters.building import Builder, Chunk, get, plain, text_field
from everturn.chat.adapters.openai_events import response_event
from everturn.chat.adapters.plain import ProviderStream

_RESULTS: Final = ("tool_call_output_item", "handoff_output_item")


def agents_chunks(result: Any) -> ProviderStream:
    """The chunks of an agent run.

    Args:
        result: what `Runner.run_streamed` returns, or an iterator of its stream events.
    """
    open_events = getattr(result, "stream_events", None)
    events = open_events() if callable(open_events) else result
    return ProviderStream(events, _event, on_leave=getattr(result, "cancel", None))


def _event(builder: Builder, event: Any) -> Iterator[Chunk]:
    kind = get(event, "type")
    if kind == "raw_response_event":
        raw = get(event, "data")
        if get(raw, "type") == "response.created":
            yield from builder.end_step()
            yield from builder.step()
        yield from response_event(builder, raw)
    elif kind == "run_item_stream_event":
        item = get(event, "item")
        if get(item, "type") in _RESULTS:
            yield from _result(builder, item)


def _result(builder: Builder, item: Any) -> Iterator[Chunk]:
    raw = get(item, "raw_item")
    call_id = text_field(raw, "call_id")
    if call_id in {call.id for call in builder.calls}:
        output = plain(get(item, "output", get(raw, "output")))
        yield {"type": "tool-output-available", "toolCallId": call_id, "output": output}
