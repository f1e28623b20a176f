"""The channels of a session from outside of its runs, over HTTP (chat-agent §6.2, §6.3).

Inside a run `sessions.open` answers another handle with the same methods, which writes under the
run's lease and can suspend (`tasks/channels.py`).

The reading side of `.in` is for long-lived clients, such as a bridge that shows a person what
others send. One iteration, one cursor: whatever method is used, each record is handed out once,
oldest first, and `peek` shows what arrived and was not taken yet. Unlike in a run nothing arrives
in the background: records are read while somebody waits for one (`once`, iteration, `run`), so
there is no task to leave behind, and the buffer never holds more than one batch.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from typing import Any, NamedTuple

import anyio
import msgspec

from everturn.client import wire
from everturn.client.api import Api
from everturn.client.follow import Arrived, Follower
from everturn.client.results import Err, Ok
from everturn.client.turns import AbortSignal
from everturn.errors import EverturnError, InputStreamTimeoutError, NotInRunError
from everturn.protocol.records import Record
from everturn.rules import durations, limits

log = logging.getLogger("everturn.client")

#: `.in` is read with the longest silence a server allows, and again after it.
_TIMEOUT_S = limits.SSE_TIMEOUT_S_MAX
#: Records of one `pipe` or `writer` that travel in one request.
_BATCH_RECORDS = 100
_BATCH_BYTES = 256 * limits.KIB


class InputRecord(NamedTuple):
    """One record of `.in`: its number, and its value (JSON text is decoded)."""

    seq_num: int
    value: Any


class InputChannel:
    """The `.in` of a session. `aclose` gives its connection back, if it has one."""

    def __init__(self, api: Api, session: str) -> None:
        self._api = api
        self._session = session
        self._cursor: int | None = None
        self._handlers: list[Callable[[Any], object]] = []
        self._buffer: deque[InputRecord] = deque()
        self._follower: Follower | None = None
        #: Held by whoever reads; the others queue for it, which is also their order.
        self._turn = anyio.Lock()

    async def send(self, value: Any) -> int | None:
        """Append one record: text as it is, anything else as JSON. Returns its number.

        One part id over all tries: a record whose acknowledgement was lost is stored once.
        Raises SessionNotFound, SessionClosedError, TooLarge.
        """
        text = value if isinstance(value, str) else wire.encode(value)
        return await self._api.append(self._session, "in", text, part_id=self._api.ids.part())

    def peek(self) -> Any:
        """The next record if it has arrived, else None. Never waits, never connects."""
        return self._buffer[0].value if self._buffer else None

    def on(self, handler: Callable[[Any], object]) -> Callable[[], None]:
        """Call `handler` with each record, those that arrived already first.

        A handler that returns exactly True consumes the record. What one raises is logged.
        Records arrive while somebody iterates, waits in `once`, or is in `run`. Returns how to
        undo it.
        """
        self._handlers.append(handler)
        self._buffer = deque(item for item in self._buffer if not _offer(handler, item))

        def undo() -> None:
            if handler in self._handlers:
                self._handlers.remove(handler)

        return undo

    async def run(self) -> None:
        """Read for the handlers until cancelled; what no handler consumes is dropped."""
        while True:
            await self._next()

    async def once(
        self, timeout: durations.Duration | None = None, *, signal: AbortSignal | None = None
    ) -> Ok[Any] | Err:
        """The next record, or `Err` when none came in time. Giving up loses no record.

        Raises InterruptedError when `signal` is aborted.
        """
        limit_s = None if timeout is None else durations.parse(timeout)
        item: InputRecord | None = None
        with anyio.move_on_after(limit_s) as scope:
            undo = signal.on_abort(lambda _reason: scope.cancel()) if signal else lambda: None
            try:
                item = await self._next()
            finally:
                undo()
        if item is not None:
            return Ok(item.value, item.seq_num)
        if signal is not None and signal.aborted:
            raise InterruptedError("the wait was aborted")
        return Err(InputStreamTimeoutError(f"no input within {limit_s} s", timeout_s=limit_s))

    async def receive(self, timeout: durations.Duration | None = None) -> Any:
        """`once`, unwrapped. Raises InputStreamTimeoutError."""
        return (await self.once(timeout)).unwrap()

    async def wait(self, timeout: durations.Duration | None = None, **options: Any) -> Any:
        """Raises NotInRunError: only a run can be suspended."""
        raise NotInRunError("only a run can wait suspended; use `once` outside of runs")

    async def wait_with_idle_timeout(
        self, idle_timeout: durations.Duration, *, skip_suspend: bool = False, **options: Any
    ) -> Any:
        """Waits `idle_timeout` for a record. Raises NotInRunError where a run would suspend."""
        result = await self.once(idle_timeout)
        if result.ok or skip_suspend:
            return result
        raise NotInRunError("only a run can wait suspended; use `once` outside of runs")

    def last_dispatched_seq_num(self) -> int | None:
        """None: what is committed is known inside a run only."""
        return None

    def seek(self, seq_num: int) -> None:
        """Read on from this number; 0 reads all that is kept. Not while somebody reads."""
        self._cursor = seq_num - 1 if seq_num > 0 else None
        self._buffer.clear()
        self._follower = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            yield (await self._next()).value

    async def aclose(self) -> None:
        """Give the connection back; reading again opens another and loses nothing."""
        follower, self._follower = self._follower, None
        if follower is not None:
            await follower.aclose()

    async def __aenter__(self) -> InputChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _next(self) -> InputRecord:
        """The oldest record that was not taken yet."""
        async with self._turn:
            while not self._buffer:
                self._arrive(await self._batch())
            return self._buffer.popleft()

    async def _batch(self) -> Sequence[Arrived]:
        """The next records, at least one."""
        while True:
            if self._follower is None:
                self._follower = Follower(
                    self._api,
                    self._session,
                    "in",
                    after=self._cursor,
                    timeout_s=_TIMEOUT_S,
                    endless=True,
                )
            first = await self._follower.next()
            if first is not None:
                batch = [first, *self._follower.take_ready()]
                self._cursor = batch[-1].record.seq_num
                return batch
            self._follower = None  # closed by somebody else meanwhile

    def _arrive(self, batch: Iterable[Arrived]) -> None:
        # The reader and those who queue behind it come before any handler that would consume.
        pending = 1 + self._turn.statistics().tasks_waiting
        for arrived in batch:
            if not arrived.record.is_data:
                continue
            item = InputRecord(arrived.record.seq_num, _decoded(arrived.data))
            taken = [_offer(handler, item) for handler in tuple(self._handlers)]
            if len(self._buffer) < pending or not any(taken):
                self._buffer.append(item)


def _offer(handler: Callable[[Any], object], item: InputRecord) -> bool:
    """Show a record to a handler. True when it consumed it."""
    try:
        return handler(item.value) is True
    except Exception:
        # The handler is the caller's code; its failure is its own and must not stop the others.
        log.exception("input.handler_failed", extra={"seq_num": item.seq_num})
        return False


def _decoded(data: Any) -> Any:
    """A record's value: text that is JSON is decoded, other text stays."""
    if not isinstance(data, str):
        return data
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return data


class ControlRecord(NamedTuple):
    """A control record of `.out`, as `read` shows it."""

    subtype: str
    headers: tuple[tuple[str, str], ...]
    seq_num: int
    timestamp_ms: int


class OutputPart(NamedTuple):
    """A data record of `.out` with its number."""

    seq_num: int
    data: Any
    timestamp_ms: int


class OutputChannel:
    """The `.out` of a session. Writing needs the secret key.

    Values are stored as they are: readers get the object, not its text.
    """

    def __init__(self, api: Api, session: str) -> None:
        self._api = api
        self._session = session

    async def append(self, value: Any) -> int:
        """Write one record; returns its number once it is stored."""
        [seq] = await self._write([value])
        return seq

    async def pipe(
        self,
        source: AsyncIterable[Any] | Iterable[Any],
        *,
        signal: AbortSignal | None = None,
    ) -> int | None:
        """Write what `source` yields, in order, until it ends or `signal` is aborted.

        Values that are ready together travel together. Returns the number of the last record,
        None if there was none.
        """
        last: int | None = None
        async for batch in _batches(source, signal):
            last = (await self._write(batch))[-1]
        return last

    async def writer(self, fill: Callable[[OutputWriter], Awaitable[object] | object]) -> None:
        """Call `fill(out)` and write what it gives to `out.write` and `out.merge`.

        Returns when `fill` and everything it merged have finished. What `fill` raises is logged.
        """
        out = OutputWriter(self)
        try:
            result = fill(out)
            if inspect.isawaitable(result):
                await result
        except Exception:
            # The caller's code; what it wrote so far is written all the same.
            log.exception("output.writer_failed")
        await out.finish()

    async def write_control(self, subtype: str, headers: Sequence[tuple[str, str]] = ()) -> int:
        """Write a control record; returns its number."""
        record = {"control": subtype, "headers": [list(header) for header in headers]}
        [seq] = await self._api.write_records(self._session, [record])
        return seq

    async def trim_to(self, seq_num: int) -> None:
        """Let records below `seq_num` vanish. Going back changes nothing."""
        await self._api.write_records(self._session, [{"trim": seq_num}])

    async def read(
        self,
        *,
        last_event_id: int | str | None = None,
        timeout: durations.Duration | None = None,
        signal: AbortSignal | None = None,
        on_part: Callable[[OutputPart], object] | None = None,
        on_control: Callable[[ControlRecord], object] | None = None,
        on_complete: Callable[[], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> AsyncIterator[Any]:
        """Values after `last_event_id` (None: all that are kept), and new ones as they come.

        Reconnects by itself. Ends after `timeout` (60 s) without a record, or when `signal` is
        aborted. Control records go to `on_control` only.
        """
        follower = Follower(
            self._api,
            self._session,
            "out",
            after=None if last_event_id is None else int(last_event_id),
            timeout_s=None if timeout is None else wire.whole_seconds(timeout),
        )
        try:
            while (arrived := await _unless_aborted(follower, signal)) is not None:
                _show(arrived.record, arrived.data, on_part, on_control)
                if arrived.record.is_data:
                    yield arrived.data
        except EverturnError as error:
            if on_error is not None:
                on_error(error)
            raise
        finally:
            await follower.aclose()
        if on_complete is not None:
            on_complete()

    async def _write(self, values: Sequence[Any]) -> list[int]:
        ids = self._api.ids
        records = [{"data": wire.plain(value), "partId": ids.part()} for value in values]
        return await self._api.write_records(self._session, records)


class OutputWriter:
    """What `OutputChannel.writer` hands to its function."""

    def __init__(self, out: OutputChannel) -> None:
        self._out = out
        self._sources: deque[AsyncIterable[Any] | Iterable[Any]] = deque()

    def write(self, value: Any) -> None:
        """Write one value, after everything given before."""
        self._sources.append((value,))

    def merge(self, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        """Write what `source` yields, after everything given before."""
        self._sources.append(source)

    async def finish(self) -> None:
        """Write what was given and not written yet."""

        async def all_values() -> AsyncIterator[Any]:
            while self._sources:
                async for value in _each(self._sources.popleft()):
                    yield value

        await self._out.pipe(all_values())


async def _each(source: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        async for value in source:
            yield value
    else:
        for value in source:
            yield value


async def _batches(
    source: AsyncIterable[Any] | Iterable[Any], signal: AbortSignal | None
) -> AsyncIterator[list[Any]]:
    """Values of a ready-made collection in groups; of a live source one by one, without delay."""
    batch: list[Any] = []
    size = 0
    together = not isinstance(source, AsyncIterable)
    async for value in _each(source):
        if signal is not None and signal.aborted:
            break
        batch.append(value)
        size += len(wire.encode(value)) if together else 0
        if not together or len(batch) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _unless_aborted(follower: Follower, signal: AbortSignal | None) -> Arrived | None:
    if signal is None:
        return await follower.next()
    arrived: Arrived | None = None
    with anyio.CancelScope() as scope:
        undo = signal.on_abort(lambda _reason: scope.cancel())
        try:
            arrived = await follower.next()
        finally:
            undo()
    return arrived


def _show(
    record: Record,
    data: Any,
    on_part: Callable[[OutputPart], object] | None,
    on_control: Callable[[ControlRecord], object] | None,
) -> None:
    subtype = record.control
    if subtype is not None:
        if on_control is not None:
            on_control(
                ControlRecord(subtype, record.headers[1:], record.seq_num, record.timestamp_ms)
            )
    elif record.is_data and on_part is not None:
        on_part(OutputPart(record.seq_num, data, record.timestamp_ms))
