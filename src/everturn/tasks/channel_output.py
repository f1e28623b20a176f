"""The `.out` channel of a session as a run sees it: raw access beside the turn loop.

Order on the channel is the order of the calls (chat-agent §6.2, D-01), whoever makes them: the
runtime has one queue per run.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from everturn.protocol.records import (
    NewRecord,
    control_record,
    data_body,
    open_envelope,
    trim_record,
)
from everturn.rules import limits
from everturn.tasks import codec
from everturn.tasks.runtime import RunRuntime
from everturn.tasks.signals import Signal

log = logging.getLogger("everturn.channels")


class SessionOutput:
    """The `.out` channel of the run's session."""

    def __init__(self, runtime: RunRuntime) -> None:
        self._runtime = runtime

    async def append(self, value: Any) -> int:
        """Write one record; return its seq_num once it is durable."""
        await self._runtime.room()
        return (await self._runtime.append([self._record(value)]))[0]

    async def pipe(
        self, source: AsyncIterable[Any] | Iterable[Any], *, signal: Signal | None = None
    ) -> int:
        """Stream values as records until the source ends or `signal` is aborted.

        Returns how many were written, once all are durable.
        """
        count = 0
        async for value in _iterate(source):
            if signal is not None and signal.aborted:
                break
            await self._runtime.room()
            self._send(value)
            count += 1
        await self._runtime.flush()
        return count

    async def writer(self, fill: Callable[[OutputWriter], object]) -> None:
        """Let `fill(writer)` write and merge streams; an error in it is logged, not raised."""
        writer = OutputWriter(self)
        try:
            result = fill(writer)
            if inspect.isawaitable(result):
                await result
            await writer.finish()
        except Exception:  # author code, and the contract says: logged
            log.exception("output.writer_failed")
        await self._runtime.flush()

    async def read(
        self, *, after: int | None = None, limit: int = limits.READ_RECORDS_MAX
    ) -> Sequence[Any]:
        """The values of stored data records after a cursor; control records are left out."""
        records = await self._runtime.read("out", after=after, limit=limit)
        opened = (open_envelope(record.body) for record in records if record.is_data)
        return [item[0] for item in opened if item is not None]

    async def write_control(self, subtype: str, headers: Sequence[tuple[str, str]] = ()) -> int:
        """Write an empty-body control record; returns its seq_num."""
        return (await self._runtime.append([control_record(subtype, headers)]))[0]

    async def trim_to(self, seq_num: int) -> None:
        """Records below `seq_num` may be forgotten. The author's word: no snapshot is asked."""
        await self._runtime.append([trim_record(seq_num)])

    def _record(self, value: Any) -> NewRecord:
        body = data_body(codec.encode(value), self._runtime.part_id())
        return NewRecord(body=body)

    def _send(self, value: Any) -> None:
        self._runtime.append([self._record(value)])


class OutputWriter:
    """What `SessionOutput.writer` hands to its function."""

    def __init__(self, out: SessionOutput) -> None:
        self._out = out
        self._merged: deque[AsyncIterable[Any] | Iterable[Any]] = deque()

    def write(self, value: Any) -> None:
        self._out._send(value)

    def merge(self, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        """Stream a source after the function returns, in the order of these calls."""
        self._merged.append(source)

    async def finish(self) -> None:
        while self._merged:
            await self._out.pipe(self._merged.popleft())


async def _iterate(source: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        async for value in source:
            yield value
    else:
        for value in source:
            yield value
