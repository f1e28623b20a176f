"""The channels of a session as a run sees them (chat-agent §6.2-§6.5).

One reader, one cursor. `SessionInput` follows `.in` with a background tail and hands every record
to whoever should have it, in one synchronous step (`_receive`): the oldest waiting `once`, else
the handlers, else the buffer. Since that step never awaits, a record is always in exactly one
place, and the tail cursor names the highest record that was taken in, by whatever path.

Suspending is where records get lost in other designs, so its order is fixed: the tail is closed
and *has ended* before the wait is made with the tail cursor; a record that the tail delivered
meanwhile lies in the buffer (or satisfied the waiter) and the wait is not made at all. What a
wake carries goes through the same step, so the tail, reopened from the cursor, cannot bring it
again. The server's side of the promise is that a wait on `after` ends at once when a record
after it is stored already.

Bounds: the buffer holds `limits.INPUT_BUFFER_MAX` records; past it the tail is not read.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup

from everturn.client.results import Err, Ok
from everturn.errors import InputStreamTimeoutError, WaitTimeoutError
from everturn.protocol.records import (
    Record,
    open_envelope,
)
from everturn.rules import limits
from everturn.tasks.channel_output import OutputWriter, SessionOutput
from everturn.tasks.durations import Duration
from everturn.tasks.durations import parse as seconds
from everturn.tasks.racing import within
from everturn.tasks.runtime import RunRuntime, TailReader
from everturn.tasks.signals import Signal

__all__ = [
    "Err",
    "Ok",
    "OutputWriter",
    "SessionInput",
    "SessionOutput",
    "decode_data",
    "within",
]

T = TypeVar("T")
log = logging.getLogger("everturn.channels")


def decode_data(record: Record) -> Any:
    """What a sender put into a record: its JSON value, or the text itself when it is no JSON."""
    opened = open_envelope(record.body)
    value: Any = opened[0] if opened is not None else record.body.decode("utf-8", "replace")
    if isinstance(value, str):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value


class _Item(NamedTuple, Generic[T]):
    seq_num: int
    value: T


class _Waiter(Generic[T]):
    """One pending `once` or `wait`."""

    __slots__ = ("consumed", "event", "item")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.item: _Item[T] | None = None
        #: What the author had finished with when the item came.
        self.consumed: int | None = None


class SessionInput(Generic[T]):
    """The `.in` channel of the run's session. `T` is what `decode` makes of a record."""

    __slots__ = (
        "_buffer",
        "_consumed",
        "_decode",
        "_ended",
        "_generation",
        "_handlers",
        "_remember",
        "_reported",
        "_room",
        "_runtime",
        "_scope",
        "_shrunk",
        "_tail_cursor",
        "_tasks",
        "_waiters",
    )

    def __init__(
        self,
        runtime: RunRuntime,
        tasks: TaskGroup,
        *,
        decode: Callable[[Record], T],
        after: int | None = None,
        remember: bool = False,
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`after` seeds the tail cursor.

        Args:
            tasks: where the tail runs; the owner cancels it when the run ends.
            remember: report what was consumed (raw tasks; rulings §1.16).
            room: awaited between batches of the tail, by owners that queue records themselves.
        """
        self._runtime = runtime
        self._tasks = tasks
        self._decode = decode
        self._tail_cursor = after
        self._remember = remember
        self._consumed = self._reported = after
        #: Lists, because empty ones cost nothing and full ones are short enough to shift.
        self._buffer: list[_Item[T]] = []
        self._waiters: list[_Waiter[T]] = []
        self._handlers: list[Callable[[T], object]] = []
        self._room = room if room is not None else self._buffer_room
        self._shrunk: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None
        self._ended: anyio.Event | None = None
        self._generation = 0

    # --- reading -------------------------------------------------------------------------------

    @property
    def tail_cursor(self) -> int | None:
        """The highest seq_num taken in by any path."""
        return self._tail_cursor

    def last_dispatched_seq_num(self) -> int | None:
        """The highest seq_num handed to the author with nothing older still buffered."""
        return self._consumed

    def seek(self, seq_num: int) -> None:
        """Read on from `seq_num`, forgetting what is buffered; `seek(0)` reads all again.

        Must not be called while a `once` or `wait` is pending.
        """
        self._generation += 1
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None
        self._buffer.clear()
        self._tail_cursor = self._consumed = seq_num - 1 if seq_num > 0 else None
        if self._handlers:
            self.open()

    def peek(self) -> T | None:
        """The head of the local buffer or None; never waits, never connects."""
        return self._buffer[0].value if self._buffer else None

    def on(self, handler: Callable[[T], object]) -> Callable[[], None]:
        """Call `handler` for each record, buffered ones first. Returns how to undo it.

        A handler that returns exactly True consumes the record; an async one never does, and
        what it returns is not awaited here but started in the run's task group.
        """
        self._handlers.append(handler)
        kept = [item for item in self._buffer if not self._offer(handler, item)]
        self._buffer = kept
        self._shrank()
        self.open()

        def undo() -> None:
            if handler in self._handlers:
                self._handlers.remove(handler)

        return undo

    async def once(
        self, timeout: Duration | None = None, *, signal: Signal | None = None
    ) -> Ok[T] | Err:
        """The next record; the run stays hot. Raises Stopped when `signal` is aborted."""
        limit_s = None if timeout is None else seconds(timeout)
        item = await self._next(limit_s, signal)
        if item is not None:
            return Ok(item.value, item.seq_num)
        return Err(InputStreamTimeoutError(f"no input within {limit_s} s", timeout_s=limit_s))

    async def receive(self, timeout: Duration | None = None) -> T:
        """`once`, unwrapped. Raises InputStreamTimeoutError."""
        result: T = (await self.once(timeout)).unwrap()
        return result

    async def wait(self, timeout: Duration | None = None) -> Ok[T] | Err:
        """The next record, with the run suspended until it comes."""
        return await self.wait_with_idle_timeout(0, timeout=timeout)

    async def wait_with_idle_timeout(
        self,
        idle_timeout: Duration,
        *,
        timeout: Duration | None = None,
        skip_suspend: bool = False,
        on_suspend: Callable[[], object] | None = None,
        on_resume: Callable[[], object] | None = None,
    ) -> Ok[T] | Err:
        """The next record: warm for `idle_timeout`, then suspended for at most `timeout`."""
        idle_s = seconds(idle_timeout)
        limit_s = None if timeout is None else seconds(timeout)
        if self._buffer or idle_s > 0:
            item = await self._next(idle_s, None)
            if item is not None:
                return Ok(item.value, item.seq_num)
        if skip_suspend:
            return Err(WaitTimeoutError(f"no input within {idle_s} s"))
        await self.settle()
        if on_suspend is not None:
            await _maybe_await(on_suspend())
        item = await self._suspended(limit_s)
        if item is None:
            return Err(WaitTimeoutError(f"no input within {limit_s} s of waiting"))
        if on_resume is not None:
            await _maybe_await(on_resume())
        return Ok(item.value, item.seq_num)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._each()

    async def _each(self) -> AsyncIterator[T]:
        while True:
            yield await self.receive()

    # --- for owners that queue records themselves (the chat turn loop) ---------------------------

    def open(self) -> None:
        """Follow the channel from the tail cursor, unless that is being done."""
        if self._scope is None:
            self._scope = anyio.CancelScope()
            self._ended = anyio.Event()
            reader = self._runtime.tail("in", self._tail_cursor)
            self._tasks.start_soon(self._pump, reader, self._scope, self._ended)

    async def close(self) -> None:
        """Stop following. On return nothing more arrives until `open`."""
        scope, ended, self._scope, self._ended = self._scope, self._ended, None, None
        if scope is not None and ended is not None:
            scope.cancel()
            await ended.wait()

    async def suspend(self, *, until_ms: int | None, ready: Callable[[], bool]) -> bool:
        """Release the slot until a record comes. False when `until_ms` came first.

        `ready` is asked after the tail has ended: True means that what is waited for arrived
        meanwhile, and nothing is suspended.
        """
        await self.close()
        if ready():
            return True
        woken = await self._runtime.suspend_on_input(self._tail_cursor, until_ms=until_ms)
        for record in woken.records:
            self.take(record)
        return not woken.timed_out

    def take(self, record: Record) -> None:
        """A record from any path: the tail, a wake, a read at boot. Repeats are ignored."""
        if self._tail_cursor is not None and record.seq_num <= self._tail_cursor:
            return
        self._tail_cursor = record.seq_num
        if record.is_data:
            self._receive(_Item(record.seq_num, self._decode(record)))

    def advance(self, seq_num: int) -> None:
        """Records up to `seq_num` came by another path: do not deliver them. Before `open`."""
        if self._tail_cursor is None or seq_num > self._tail_cursor:
            self._tail_cursor = seq_num

    # --- inside --------------------------------------------------------------------------------

    async def _pump(self, reader: TailReader, scope: anyio.CancelScope, ended: anyio.Event) -> None:
        """Take in records until closed. A tail that `seek` left behind takes in nothing more."""
        generation = self._generation
        try:
            with scope:
                while True:
                    records = await reader.next()
                    if generation != self._generation:
                        return
                    for record in records:
                        self.take(record)
                    await self._room()
        finally:
            reader.close()
            ended.set()

    async def _buffer_room(self) -> None:
        while len(self._buffer) >= limits.INPUT_BUFFER_MAX:
            self._shrunk = anyio.Event()
            await self._shrunk.wait()

    def _receive(self, item: _Item[T]) -> None:
        """Delivery rules 2 to 4 of §6.5."""
        taken = False
        if self._waiters:
            waiter = self._waiters.pop(0)
            waiter.item, waiter.consumed = item, self._consumed
            waiter.event.set()
            taken = True
        for handler in list(self._handlers):
            taken = self._offer(handler, item) or taken
        if not taken:
            self._buffer.append(item)
        elif not self._buffer:
            self._consumed = item.seq_num

    def _offer(self, handler: Callable[[T], object], item: _Item[T]) -> bool:
        try:
            answer = handler(item.value)
        except Exception:  # author code: a failing handler must not end the tail
            log.exception("input.handler_failed")
            return False
        if inspect.iscoroutine(answer):
            self._tasks.start_soon(_logged, answer)
            return False
        return answer is True

    def _pop(self) -> _Item[T]:
        item = self._buffer.pop(0)
        self._consumed = item.seq_num
        self._shrank()
        return item

    def _shrank(self) -> None:
        """The tail may read on; it looks itself whether there is room."""
        if self._shrunk is not None:
            self._shrunk.set()

    async def _next(self, limit_s: float | None, signal: Signal | None) -> _Item[T] | None:
        await self.settle()
        if self._buffer:
            return self._pop()
        waiter: _Waiter[T] = _Waiter()
        self._waiters.append(waiter)
        self.open()
        undo = signal.on_abort(lambda _: waiter.event.set()) if signal is not None else None
        try:
            await within(self._runtime.clock, limit_s, waiter.event.wait)
            if waiter.item is None and signal is not None:
                signal.raise_if_aborted()
            item, waiter.item = waiter.item, None
            return item
        finally:
            if undo is not None:
                undo()
            self._leave(waiter)

    def _leave(self, waiter: _Waiter[T]) -> None:
        """Stop waiting. A record that came in the moment of leaving goes back to the buffer.

        Nobody has seen it, so it does not count as consumed: it would be missing after a crash.
        """
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.item is not None:
            self._buffer.insert(0, waiter.item)
            self._consumed = waiter.consumed

    async def _suspended(self, limit_s: float | None) -> _Item[T] | None:
        clock = self._runtime.clock
        until_ms = None if limit_s is None else clock.now_ms() + int(limit_s * 1000)
        waiter: _Waiter[T] = _Waiter()
        if self._buffer:
            return self._pop()
        self._waiters.append(waiter)
        try:
            # A wake without a data record (a trim command of `.in`) is no answer: wait again.
            while waiter.item is None:
                in_time = await self.suspend(until_ms=until_ms, ready=waiter.event.is_set)
                if not in_time and until_ms is not None:
                    break
            if self._handlers:
                self.open()  # they are shown what comes while the author works, as before
            item, waiter.item = waiter.item, None
            return item
        finally:
            self._leave(waiter)

    async def settle(self) -> None:
        """Remember what the author has finished with (rulings §1.16).

        Called when he asks for the next record, and when the run has completed.
        """
        if self._remember and self._consumed is not None and self._consumed != self._reported:
            await self._runtime.set_consumed(self._consumed)
            self._reported = self._consumed


async def _maybe_await(value: object) -> None:
    if inspect.isawaitable(value):
        await value


async def _logged(work: Awaitable[object]) -> None:
    try:
        await work
    except Exception:  # author code: an async handler's failure is its own
        log.exception("input.handler_failed")
