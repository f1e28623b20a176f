"""The model library's events as chunks: its own Vercel event stream, with our ending.

The library knows its parts best (signatures of reasoning, native tools, citations), so its stream
does the mapping, with protocol version 6. Changed here is what a durable chat needs otherwise:

* ids come from a counter, not from chance; they name parts inside one stream only;
* a stop closes open text and reasoning and ends with `abort`. Calls that were running are not
  answered with a made-up result: cleaning drops them (chat-agent §2.17);
* an error is one `error` chunk, then a `finish` that says so, and no exception (§4.14);
* the last chunk is `finish`; the library's `done` sentinel never leaves here (§4.2.1);
* no metadata of the library's own is attached to the message;
* chunks that we put between two steps keep their place there (`between`);
* messages that the step hook enqueued are not shown as such: it has said what there is to say;
* a result whose model saw something else than the client is sent whole (`FullOutput`), and
  outputs that are not final yet are marked so (`PreliminaryOutput`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Final, cast

from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import (
    CustomEvent,
    EnqueuedMessagesEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    OutputToolResultEvent,
    ToolReturnPart,
)
from pydantic_ai.run import AgentRunResultEvent
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.ui.vercel_ai import VercelAIEventStream
from pydantic_ai.ui.vercel_ai.response_types import (
    AbortChunk,
    BaseChunk,
    DataChunk,
    ErrorChunk,
    FinishChunk,
    FinishStepChunk,
    StartChunk,
    StartStepChunk,
    ToolApprovalRequestChunk,
    ToolOutputAvailableChunk,
)
from pydantic_core import to_jsonable_python

from everturn.chat.adapters.between import Between, OurChunks
from everturn.chat.failures import ends_attempt

Chunk = dict[str, Any]

#: Metadata of messages that the step hook added: clients are told of them by it, or not at all.
JOINED: Final = "everturn.joined"
#: What our own chunks may be besides data parts.
_CLASSES: Final[dict[str, type[BaseChunk]]] = {
    "start-step": StartStepChunk,
    "finish-step": FinishStepChunk,
}
_FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_call": "tool-calls",
    "error": "error",
}


def error_text(error: BaseException) -> str:
    """The default text of an `error` chunk: what the exception says, else what it is."""
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class FullOutput:
    """Metadata of a tool's result whose model was given something else than its output."""

    output: Any


@dataclass(kw_only=True)
class PreliminaryOutput(CustomEvent, name="everturn.preliminary_output"):
    """An event of a tool that is still working: its whole output so far."""

    output: Any
    #: Set when the stream's reader has it.
    taken: bool = False


@dataclass
class ChunkEvents(VercelAIEventStream[Any, Any]):
    """Maps the events of one run to chunks. One instance per run.

    Args:
        on_error: gives the text of the error chunk; sanitise here.
        stop_reason: asked when the run was cancelled: why.
        ends_quietly: whether an exception is an agreed end (the step limit), not an error.
    """

    _: KW_ONLY
    on_error_text: Callable[[BaseException], str] = error_text
    stop_reason: Callable[[], str | None] = lambda: None
    ends_quietly: Callable[[BaseException], bool] = lambda error: False
    reason: str | None = None
    _parts: int = field(default=0, init=False)
    _in_step: bool = field(default=False, init=False)

    def new_message_id(self) -> str:
        self._parts += 1
        self.message_id = str(self._parts)
        return self.message_id

    async def before_stream(self) -> AsyncIterator[BaseChunk]:
        yield StartChunk(message_id=self.server_message_id)

    async def before_response(self) -> AsyncIterator[BaseChunk]:
        if self._in_step:
            yield FinishStepChunk()
        self._in_step = True
        yield StartStepChunk()

    async def handle_event(self, event: Any) -> AsyncIterator[BaseChunk]:
        if not isinstance(event, OurChunks):
            async for made in super().handle_event(event):
                yield made
            return
        # Between two steps: the one before is over.
        if self._in_step:
            self._in_step = False
            yield FinishStepChunk()
        for chunk in event.chunks:
            yield _CLASSES.get(chunk["type"], DataChunk).model_validate(chunk)

    async def handle_run_result(self, event: AgentRunResultEvent[Any]) -> AsyncIterator[BaseChunk]:
        output = event.result.output
        if isinstance(output, DeferredToolRequests):
            self.reason = "tool-calls"
            for call in output.approvals:
                yield ToolApprovalRequestChunk(
                    approval_id=_approval_id(output, call.tool_call_id),
                    tool_call_id=call.tool_call_id,
                )
            return
        said = event.result.response.finish_reason
        # A run that ended by itself has ended normally, whatever its last response was: output
        # tools leave `tool_call` there, and some providers say nothing.
        self.reason = "stop" if said in (None, "tool_call") else _FINISH_REASONS.get(said, "other")

    async def on_cancelled(self, cancelled: RunCancelled) -> AsyncIterator[BaseChunk]:
        yield AbortChunk(reason=self.stop_reason())

    async def on_error(self, error: Exception) -> AsyncIterator[BaseChunk]:
        if ends_attempt(error):
            raise error  # out of memory or of its lease: no answer of the model, but the end of us
        if self.ends_quietly(error):
            self.reason = "tool-calls"
            return
        self.reason = "error"
        yield ErrorChunk(error_text=self.on_error_text(error))

    async def after_stream(self) -> AsyncIterator[BaseChunk]:
        if self.cancelled is not None:
            return
        if self._in_step:
            yield FinishStepChunk()
        yield FinishChunk.model_construct(type="finish", finish_reason=self.reason)

    async def handle_function_tool_call(
        self, event: FunctionToolCallEvent
    ) -> AsyncIterator[BaseChunk]:
        # A call that did not stream in this run is an approved one, carried out now: its input was
        # announced when it was made, and doing so again would make a second part of it.
        if event.args_valid and event.part.tool_call_id not in self._streamed_call_parts:
            return
        async for chunk in super().handle_function_tool_call(event):
            yield chunk

    async def handle_function_tool_result(
        self, event: FunctionToolResultEvent
    ) -> AsyncIterator[BaseChunk]:
        if event.part.outcome != "interrupted":
            async for chunk in super().handle_function_tool_result(_whole(event)):
                yield chunk

    async def handle_enqueued_messages(
        self, event: EnqueuedMessagesEvent
    ) -> AsyncIterator[BaseChunk]:
        if not all((message.metadata or {}).get(JOINED) for message in event.messages):
            async for chunk in super().handle_enqueued_messages(event):
                yield chunk

    async def handle_custom_event(self, event: CustomEvent) -> AsyncIterator[BaseChunk]:
        if isinstance(event, PreliminaryOutput):
            event.taken = True
            yield ToolOutputAvailableChunk(
                tool_call_id=event.tool_call_id or "", output=event.output, preliminary=True
            )
            return
        async for chunk in super().handle_custom_event(event):
            yield chunk

    async def handle_output_tool_result(
        self, event: OutputToolResultEvent
    ) -> AsyncIterator[BaseChunk]:
        if event.part.outcome != "interrupted":
            async for chunk in super().handle_output_tool_result(event):
                yield chunk

    async def chunks(self, events: AsyncIterator[Any]) -> AsyncGenerator[Chunk, None]:
        """The whole run as chunk dicts, without an exception of the model's."""
        stream = self.transform_stream(Between(events))
        mapped = cast(AsyncGenerator[BaseChunk, None], stream)
        async with aclosing(mapped) as made:
            async for chunk in made:
                yield chunk_dict(chunk)


def _whole(event: FunctionToolResultEvent) -> FunctionToolResultEvent:
    """The result as the client is to see it."""
    part = event.part
    if not isinstance(part, ToolReturnPart) or not isinstance(part.metadata, FullOutput):
        return event
    return replace(event, part=replace(part, content=part.metadata.output, metadata=None))


def _approval_id(requests: DeferredToolRequests, call_id: str) -> str:
    """The approval id a tool supplied in its request's metadata; else the call's own id."""
    supplied = requests.metadata.get(call_id, {}).get("approval_id")
    return supplied if isinstance(supplied, str) else call_id


# --- models to dicts --------------------------------------------------------------------------

#: Per chunk class: attribute, wire name, whether the field is part of the type's shape.
_FIELDS: dict[type[BaseChunk], tuple[tuple[str, str, bool], ...]] = {}


def chunk_dict(chunk: BaseChunk) -> Chunk:
    """A chunk of the library in wire form.

    Not `model_dump(exclude_none=True)`: a tool that returns None has an output, and it is null.
    """
    kind = type(chunk)
    fields = _FIELDS.get(kind)
    if fields is None:
        fields = _FIELDS[kind] = tuple(
            (name, info.serialization_alias or info.alias or name, info.is_required())
            for name, info in kind.model_fields.items()
        )
    made: Chunk = {}
    for name, alias, required in fields:
        value = getattr(chunk, name, None)
        if value is None and not (required and name in ("output", "input", "data")):
            continue
        made[alias] = value if isinstance(value, str | bool) else to_jsonable_python(value)
    return made
