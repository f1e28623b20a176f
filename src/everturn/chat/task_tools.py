"""Tools carried out by tasks: `ai.tool_execute` (chat-agent §4.11.5).

A call becomes a child run with the retries, the queue and the machine of its task, visible beside
the chat's own runs. The chat's run stays awake while it waits: a turn in progress answers to a
stop, streams, and may wait for several children at once, none of which a suspended run can do. So
it looks for the result, quickly at first and then at a calm pace.

Calling twice is safe: the request to start the child is named by the tool call, so an approved
call that is carried out again after a crash of the chat's process finds the child it had started.
So a stop cancels the child, and nothing else here does: an attempt that is drained or loses its
lease leaves it to the next one, and the children of a cancelled run are the server's to cancel.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import msgspec

from everturn.chat.local import locals_for_child
from everturn.chat.state import current_run_or_none
from everturn.chat.tool_options import METADATA_KEY, ToolOptions
from everturn.chat.tools import ToolContext
from everturn.errors import ConfigurationError, EverturnError
from everturn.protocol.runs import RunResult
from everturn.tasks import codec, triggers
from everturn.tasks import runtime as runtimes
from everturn.tasks.definition import Task
from everturn.tasks.results import result_of
from everturn.tasks.runtime import RunRuntime
from everturn.tasks.signals import Stopped

TAG_PREFIX: Final = "toolCallId:"
#: The first pause between two looks at the child, and the longest; each is half again as long.
LOOK_S_MIN: Final = 0.05
LOOK_S_MAX: Final = 2.0
#: How long cancelling the child of a stopped call may take.
CANCEL_S_MAX: Final = 5.0

Execute = Callable[[Any, ToolContext], Awaitable[Any]]


def tool_execute(task: Task[Any]) -> Execute:
    """What runs `task` for each call of a tool: the function to give to `chat.tool`.

    `chat.tool(ai.tool_execute(resize))` takes name, description and input model from the task.
    The child's output is the tool's; its failure is the call's error. In the child,
    `ai.chat_context()` tells of the chat, `chat.stream.writer()` writes to it, and its locals
    have the values they had when the tool was called.

    Raises:
        ConfigurationError: the task declares no model for its payload.
    """
    if task.schema is None:
        raise ConfigurationError(
            f"task {task.task_id!r} declares no payload model, and a tool needs one"
        )

    async def execute(input: Any, ctx: ToolContext) -> Any:
        runtime = runtimes.current()
        run_id = await _start(runtime, task, input, ctx)
        try:
            result = await _result(runtime, run_id, ctx)
        finally:
            if _was_stopped():
                with anyio.move_on_after(CANCEL_S_MAX, shield=True):
                    await _cancel(runtime, run_id)
        return result_of(result).unwrap()

    execute.__name__ = task.task_id
    execute.__doc__ = task.description
    execute.input = task.schema  # type: ignore[attr-defined]  # read by `chat.tool`
    return execute


def options_for(ctx: ToolContext) -> ToolOptions:
    """What a child is told of the call and its chat."""
    run = current_run_or_none()
    return ToolOptions(
        tool_call_id=ctx.tool_call_id,
        chat_id=ctx.chat_id,
        turn=ctx.turn,
        continuation=run.continuation if run is not None and ctx.turn is not None else None,
        client_data=codec.decode(codec.encode(ctx.client_data)),
        chat_locals=locals_for_child(),
    )


async def _start(runtime: RunRuntime, task: Task[Any], input: Any, ctx: ToolContext) -> str:
    payload = codec.encode(input)
    task.validate(codec.decode(payload))
    told = {k: v for k, v in msgspec.to_builtins(options_for(ctx)).items() if v not in (None, {})}
    wire = triggers.wire_options(
        {"tags": [f"{TAG_PREFIX}{ctx.tool_call_id}"], "metadata": {METADATA_KEY: told}}
    )
    wire["wait"] = True
    wire["requestKey"] = f"tool:{ctx.tool_call_id}"
    run_id, _ = await runtime.trigger(task.task_id, payload, codec.JSON, wire)
    return run_id


async def _result(runtime: RunRuntime, run_id: str, ctx: ToolContext) -> RunResult:
    """The child's result, once it is final. Raises Stopped when the turn was stopped."""
    pause_s = LOOK_S_MIN
    while True:
        if ctx.signal.aborted:
            raise Stopped(ctx.signal.reason or "stopped")
        result = await runtime.run_result(run_id)
        if result is not None:
            return result
        await runtime.clock.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LOOK_S_MAX)


def _was_stopped() -> bool:
    run = current_run_or_none()
    return run is not None and run.turn is not None and run.turn.stop.aborted


async def _cancel(runtime: RunRuntime, run_id: str) -> None:
    try:
        await runtime.cancel_run(run_id)
    except EverturnError:
        return  # it is final already, or the run that wants it gone is
