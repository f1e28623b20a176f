"""`chat.stream`: raw access to the chat's `.out`, beside any answer (chat-agent §4.1).

What is written here reaches clients and is never part of a response message: it is for chunks of
an author's own making, in a loop of his own or beside the managed one. Order on the channel is
the order of the calls, whoever makes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from everturn.chat.guest_output import guest_writer
from everturn.chat.output import Chunk, Writer
from everturn.chat.state import current_run, current_run_or_none
from everturn.chat.tool_options import chat_context
from everturn.protocol.records import open_envelope
from everturn.rules import limits
from everturn.tasks.signals import Signal


class RawOutput:
    """`chat.stream`. Everything raises ChatContextError outside of a run.

    Chunks are checked as everywhere: UIMessageStreamError for what is none, and
    ChatChunkTooLargeError for a large one.
    """

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Writer]:
        """A writer; on leaving the block everything it wrote and merged is durable.

        In a task that carries out a tool call it writes to the chat that made the call, as a guest.
        """
        run = current_run_or_none()
        if run is None:
            async with guest_writer(_calling_chat()) as guest:
                yield guest
            return
        writer = Writer(run.out, None)
        yield writer
        await writer.flush()
        await run.runtime.flush()

    async def append(self, chunk: Chunk) -> int:
        """Write one chunk; returns its seq_num once it is durable."""
        run = current_run()
        await run.runtime.room()
        return (await run.runtime.append([run.out.record(chunk)]))[0]

    async def pipe(
        self, source: AsyncIterable[Chunk] | Iterable[Chunk], *, signal: Signal | None = None
    ) -> None:
        """Write chunks as they come until the source ends or `signal` is aborted."""
        run = current_run()
        await run.out.write_all(source if signal is None else _until(source, signal))
        await run.runtime.flush()

    async def read(
        self, *, after: int | None = None, limit: int = limits.READ_RECORDS_MAX
    ) -> Sequence[Chunk]:
        """Stored chunks after a cursor, oldest first, without waiting; at most `limit` records."""
        records = await current_run().runtime.read("out", after=after, limit=limit)
        opened = (open_envelope(record.body) for record in records if record.is_data)
        return [item[0] for item in opened if item is not None and isinstance(item[0], dict)]


def _calling_chat() -> str:
    """The chat this run was called by as a tool. Raises ChatContextError where there is none."""
    context = chat_context()
    return context.chat_id if context is not None else current_run().chat_id


async def _until(source: AsyncIterable[Any] | Iterable[Any], signal: Signal) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            if signal.aborted:
                return
            yield item
        return
    for item in source:
        if signal.aborted:
            return
        yield item


stream = RawOutput()
