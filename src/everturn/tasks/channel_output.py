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

import anyio

from everturn.client.channels import ControlRecord, OutputPart
from everturn.errors import EverturnError, TooLarge
from everturn.protocol.records import (
    NewRecord,
    Record,
    control_record,
    data_body,
    metered_bytes,
    open_envelope,
    trim_record,
)
from everturn.rules import limits
from everturn.tasks import codec
from everturn.tasks.durations import Duration
from everturn.tasks.durations import parse as seconds
from everturn.tasks.racing import within
from everturn.tasks.runtime import RunRuntime, TailReader
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

        Returns how many were written, once all are durable. Raises TooLarge for a value that is
        no record any more; what came before it is written.
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
        self,
        *,
        last_event_id: int | str | None = None,
        timeout: Duration | None = None,
        signal: Signal | None = None,
        on_part: Callable[[OutputPart], object] | None = None,
        on_control: Callable[[ControlRecord], object] | None = None,
        on_complete: Callable[[], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> AsyncIterator[Any]:
        """Values after `last_event_id` (None: all that are kept), and new ones as they come.

        The same as outside of a run: ends after `timeout` (60 s) without a record, or when
        `signal` is aborted; control records go to `on_control` only.
        """
        silence_s = seconds(timeout) if timeout is not None else limits.SSE_TIMEOUT_S_DEFAULT
        after = None if last_event_id is None else int(last_event_id)
        tail = self._runtime.tail("out", after)
        try:
            while records := await self._next(tail, silence_s, signal):
                for record in records:
                    opened = open_envelope(record.body) if record.is_data else None
                    if opened is not None:
                        if on_part is not None:
                            on_part(OutputPart(record.seq_num, opened[0], record.timestamp_ms))
                        yield opened[0]
                    elif record.control is not None and on_control is not None:
                        on_control(_control(record))
        except EverturnError as error:
            if on_error is not None:
                on_error(error)
            raise
        finally:
            tail.close()
        if on_complete is not None:
            on_complete()

    async def _next(
        self, tail: TailReader, silence_s: float, signal: Signal | None
    ) -> Sequence[Record]:
        """The next records; none when it stayed silent, or `signal` is aborted."""
        found: Sequence[Record] = ()

        async def wait() -> None:
            nonlocal found
            found = await tail.next()

        with anyio.CancelScope() as scope:
            undo = signal.on_abort(lambda _: scope.cancel()) if signal is not None else None
            try:
                await within(self._runtime.clock, silence_s, wait)
            finally:
                if undo is not None:
                    undo()
        return found

    async def stored(
        self, *, after: int | None = None, limit: int = limits.READ_RECORDS_MAX
    ) -> Sequence[Any]:
        """The values of stored data records after a cursor, without waiting for more."""
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
        """Queue one record without waiting for it. Raises TooLarge, which nobody would await."""
        record = self._record(value)
        size = metered_bytes(record.headers, record.body)
        if size > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a record of {size} bytes, at most {limits.RECORD_BYTES_MAX}",
                what="record",
                bytes=size,
                bytes_max=limits.RECORD_BYTES_MAX,
            )
        self._runtime.append([record])


def _control(record: Record) -> ControlRecord:
    return ControlRecord(
        record.control or "", record.headers[1:], record.seq_num, record.timestamp_ms
    )


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
