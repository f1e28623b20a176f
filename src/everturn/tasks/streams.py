"""Streams of a run: output others read while the run goes on (tasks-and-runs §19.1).

    await streams.append({"done": 3}, "progress")        # inside the run
    async for value in streams.read(run.id, "progress"): # anywhere
    async for word in streams.inputs("words"):           # inside: what others send to the run

A stream is made by its first value, kept after the run has ended, and read from any index. Every
value has a part id made once, so a value whose answer was lost is sent again and stored once. A
recovered run writes again what it wrote since its last step: at least once, as with every effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, Literal

from everturn.tasks import codec
from everturn.tasks import runtime as runtimes
from everturn.tasks.bridge import either

Target = Literal["self", "parent", "root"]
#: Values sent together by `pipe`.
_VALUES_MAX = 100


@either
async def append(value: Any, stream: str = "default", *, target: Target = "self") -> None:
    """Add one value; durable before it returns.

    Raises:
        NotInRunError: called outside a run.
        InvalidRequest: the target has ended.
    """
    await _send([value], stream, target)


@either
async def pipe(
    source: AsyncIterable[Any] | Iterable[Any], stream: str = "default", *, target: Target = "self"
) -> int:
    """Add everything a source yields, as it comes; how many values that were."""
    count = 0
    if isinstance(source, AsyncIterable):
        async for value in source:
            await _send([value], stream, target)
            count += 1
        return count
    held: list[Any] = []
    for value in source:
        held.append(value)
        count += 1
        if len(held) == _VALUES_MAX:
            await _send(held, stream, target)
            held = []
    if held:
        await _send(held, stream, target)
    return count


def read(
    run_id: str, stream: str = "default", *, start_index: int = 0, timeout_s: int = 60
) -> AsyncIterator[Any]:
    """What a run writes to a stream; see `client.streams.read`."""
    from everturn.client import streams

    return streams.read(run_id, stream, start_index=start_index, timeout_s=timeout_s)


async def inputs(
    stream: str = "default", *, start_index: int = 0, timeout_s: int = 60
) -> AsyncIterator[Any]:
    """What others send to an input stream of this run, from its first value on.

    The run stays hot while it waits; the iteration ends when nothing came for `timeout_s` seconds
    (1 to 600). A recovered run reads from `start_index` again: count what was handled in a `step`
    to go on behind it. Raises NotInRunError outside a run.
    """
    # As in `_send`.
    from everturn.client import streams

    run_id = runtimes.current().info.run_id
    async for value in streams.read_input(
        run_id, stream, start_index=start_index, timeout_s=timeout_s
    ):
        yield value


@either
async def send(run_id: str, stream: str, data: Any) -> None:
    """Send one value to an input stream of a run. Raises RunNotFound and InvalidRequest."""
    from everturn.client import streams

    await streams.send_input(run_id, stream, data)


async def _send(values: list[Any], stream: str, target: Target) -> None:
    # The HTTP client is resolved on first use, as everywhere in this room.
    from everturn.client.api import Api

    runtime = runtimes.current()
    lines = b"\n".join(codec.encode(value) for value in values)
    await Api().write_run_stream(
        runtime.info.run_id, target, stream, lines, client_id=runtime.ids.part()
    )
