"""Declared tools as a toolset of the model library (chat-agent §8.2).

The library validates arguments against the tool's input model, defers calls of client tools and
calls that need approval, and feeds results back to the model. Added here is what a durable chat
needs around a call:

* A failing tool is the call's error and no failure of the turn: the model is told the sanitised
  text the client is shown (§4.14). What ends the attempt passes through.
* `to_model_output` gives the model one value and the client another. The full output rides in the
  result's metadata, which the library never sends to a model, and is put back into the chunk.
* Preliminary outputs travel through the run's own event stream, so that they reach `.out` after
  the chunk that announced their call and before whatever the model says next.

How many preliminary outputs may wait to be read is bounded: beyond PRELIMINARY_MAX the newest
waiting one is replaced, which loses nothing, since each is the whole output so far.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread
from opentelemetry.trace import NoOpTracer
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed
from pydantic_ai.messages import ToolReturn
from pydantic_ai.tools import Tool as LibraryTool
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset, ToolsetTool

from everturn.chat import conversion, tracing
from everturn.chat.adapters.events import FullOutput, PreliminaryOutput, error_text
from everturn.chat.failures import ends_attempt
from everturn.chat.state import current_run_or_none
from everturn.chat.tools import Tool, ToolContext, context_of, listed
from everturn.tasks import codec

log = logging.getLogger("everturn.chat")
T = TypeVar("T")

#: Preliminary outputs of one call that may wait for the stream's reader.
PRELIMINARY_MAX: Final = 64
#: How long a tool that is being stopped may take to clean up.
CLOSE_S_MAX: Final = 15.0
#: The library's own words of control flow: they are not failures.
_CONTROL: Final = (ModelRetry, ToolFailed, ApprovalRequired, CallDeferred)


class DeclaredToolset(FunctionToolset[Any]):
    """Tools of ours, and functions and tools of the library beside them."""

    def __init__(self, tools: Sequence[Any]) -> None:
        self._client = frozenset(
            t.name for t in tools if isinstance(t, Tool) and t.kind == "client"
        )
        super().__init__([_library_tool(t) if isinstance(t, Tool) else t for t in tools])

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """Client tools keep the validation of their input, and are answered elsewhere."""
        found = await super().get_tools(ctx)
        for name in self._client.intersection(found):
            definition = replace(found[name].tool_def, kind="external")
            found[name] = replace(found[name], tool_def=definition)
        return found


def toolsets_of(tools: Any) -> list[AbstractToolset[Any]]:
    """Whatever an author lists as tools, as toolsets. Toolsets among them stay as they are."""
    given = listed(tools)
    whole = [item for item in given if isinstance(item, AbstractToolset)]
    single = [item for item in given if not isinstance(item, AbstractToolset)]
    return [*([DeclaredToolset(single)] if single else []), *whole]


def _library_tool(tool: Tool) -> LibraryTool[Any]:
    return LibraryTool(
        _function(tool),
        takes_ctx=True,
        name=tool.name,
        description=tool.description,
        requires_approval=tool.needs_approval is True,
    )


def _function(tool: Tool) -> Callable[..., Awaitable[Any]]:
    """A function the library can read: annotated with the tool's input.

    A single parameter that is a model is described by the model's own fields.
    """

    async def bare(ctx: RunContext[Any]) -> Any:
        return await _run(tool, ctx, None)

    async def call(ctx: RunContext[Any], input: Any) -> Any:
        return await _run(tool, ctx, input)

    if tool.input is None:
        return bare
    call.__annotations__ = {"ctx": RunContext[Any], "input": tool.input, "return": Any}
    return call


# --- one call -------------------------------------------------------------------------------------


async def _run(tool: Tool, ctx: RunContext[Any], given: Any) -> Any:
    """Carry out one call. Raises the library's control flow and what ends the attempt."""
    call_id = ctx.tool_call_id or ""
    context = context_of(call_id)
    try:
        if not ctx.tool_call_approved and tool.asks_approval(given, context):
            raise ApprovalRequired
        with _traced(tool, ctx):
            made = await _output(tool, ctx, given, context)
        output = codec.decode(codec.encode(made))
        if tool.to_model_output is None:
            return output
        wire = codec.decode(codec.encode(given))
        for_model = conversion.model_output(tool.to_model_output, output, wire, call_id)
    except _CONTROL:
        raise
    except Exception as error:  # author code: the call fails, the turn goes on
        if ends_attempt(error):
            raise
        log.warning("tool.failed: %s", tool.name, exc_info=error)
        raise ToolFailed(_text_of(error)) from error
    return ToolReturn(return_value=for_model, metadata=FullOutput(output))


def _traced(tool: Tool, ctx: RunContext[Any]) -> AbstractContextManager[object]:
    """A span for the call, unless the library makes one: it does when it is instrumented."""
    run = current_run_or_none()
    if run is None or not isinstance(ctx.tracer, NoOpTracer):
        return nullcontext()
    about = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool.name,
        "gen_ai.tool.call.id": ctx.tool_call_id or "",
    }
    return tracing.span(run, f"execute_tool {tool.name}", about)


def _text_of(error: Exception) -> str:
    run = current_run_or_none()
    return run.error_text(error) if run is not None else error_text(error)


async def _output(tool: Tool, ctx: RunContext[Any], given: Any, context: ToolContext) -> Any:
    if tool.kind == "streaming":
        return await _stream(tool, ctx, given, context)
    assert tool.function is not None
    if inspect.iscoroutinefunction(tool.function):
        return await tool.call(given, context)
    # A thread cannot be stopped: a stopped turn does not wait for it, and drops what it returns.
    value = await anyio.to_thread.run_sync(
        partial(tool.call, given, context), abandon_on_cancel=True
    )
    return await value if inspect.isawaitable(value) else value


async def _stream(tool: Tool, ctx: RunContext[Any], given: Any, context: ToolContext) -> Any:
    """Run an async generator; show each yield before the next, and return the last one."""
    shown = _Shown(ctx, context.tool_call_id)
    newest: Any = None
    fresh = False

    def show() -> None:
        nonlocal fresh
        if fresh:
            fresh = False
            shown.add(newest)

    async with _closed_in_time(tool.call(given, context)) as values:
        while True:
            try:
                value = await _Watched(anext(values), show)
            except StopAsyncIteration:
                return newest
            show()
            newest, fresh = codec.decode(codec.encode(value)), True


@asynccontextmanager
async def _closed_in_time(
    values: AsyncGenerator[T, None],
) -> AsyncIterator[AsyncGenerator[T, None]]:
    """A generator that is closed when the block is left, for a bounded time.

    A stopped turn cancels the tool, and the generator's `finally` blocks are where a connection
    is closed and a sub-agent let go: they must be able to await.
    """
    try:
        yield values
    finally:
        with anyio.move_on_after(CLOSE_S_MAX, shield=True):
            await values.aclose()


class _Shown:
    """Preliminary outputs of one call, on their way through the run's event stream."""

    def __init__(self, ctx: RunContext[Any], call_id: str) -> None:
        self._ctx = ctx
        self._call_id = call_id
        self._waiting: deque[PreliminaryOutput] = deque()

    def add(self, output: Any) -> None:
        while self._waiting and self._waiting[0].taken:
            self._waiting.popleft()
        if len(self._waiting) >= PRELIMINARY_MAX:
            self._waiting[-1].output = output
            return
        event = PreliminaryOutput(output=output, tool_call_id=self._call_id)
        self._waiting.append(event)
        _without_waiting(self._ctx.emit(event))


def _without_waiting(emitting: Awaitable[Any]) -> None:
    """Finish an awaitable that only has to be called, from code that cannot await.

    Emitting waits for listeners of events that decide something; ours decides nothing.
    """
    steps = emitting.__await__()
    try:
        next(steps)
    except StopIteration:
        return
    steps.close()


class _Watched(Generic[T]):
    """Awaits `awaitable`, and calls `waits` when it first has to wait for something.

    That moment is what tells a generator that goes on working from one that is about to end: its
    newest yield is an interim state in the one case and the result in the other.
    """

    def __init__(self, awaitable: Awaitable[T], waits: Callable[[], None]) -> None:
        self._awaitable = awaitable
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._awaitable.__await__()
        try:
            asked = next(steps)
            self._waits()
            while True:
                try:
                    answer = yield asked
                except BaseException as error:
                    # Cancellation too: it belongs to whatever waits in there.
                    asked = steps.throw(error)
                else:
                    asked = steps.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()
