"""The seam between an author's run and whoever runs it.

`worker/` implements it over the link; `testing/` over the memory engines. Everything above (the
waits, the channels, the chat turn loop) is written against this and cannot tell the two apart.
The current one is found through `current()`, a context variable set around each attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import msgspec

from everturn.clock import Clock
from everturn.errors import NotInRunError
from everturn.ids import Ids
from everturn.protocol.records import InputCursor, Io, NewRecord, Record
from everturn.protocol.runs import RunInfo, RunResult, TokenResult
from everturn.tasks.signals import Signal


class Woken(msgspec.Struct, frozen=True, kw_only=True):
    """What ended a suspension. `records` of a channel wait are the first after its cursor."""

    timed_out: bool = False
    records: tuple[Record, ...] = ()
    result: RunResult | None = None


class StoredSnapshot(NamedTuple):
    """The stored history of a session."""

    #: The document (chat-agent §2.16); None when nothing was stored yet.
    data: bytes | None = None
    #: Bytes of patches that were added since the document was last stored whole.
    patched_bytes: int = 0


class TailReader(Protocol):
    """A live reader of a channel. Reconnects by itself; never repeats or skips a record."""

    async def next(self) -> Sequence[Record]:
        """The next records, at least one. Cancelling loses nothing."""
        ...

    def close(self) -> None: ...


class RunRuntime(Protocol):
    """What a run can ask of the world. All of it is scoped to this run and its session."""

    @property
    def info(self) -> RunInfo: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def ids(self) -> Ids: ...

    @property
    def cancelled(self) -> Signal:
        """Aborted when the run is cancelled from outside, interrupted, or its lease is lost."""
        ...

    @property
    def draining(self) -> Signal:
        """Aborted when the process is about to go: what the run has begun may be finished, and
        what waits should end or suspend now. A run that has not ended after a grace of
        limits.DRAIN_S is interrupted."""
        ...

    # --- the session's channels --------------------------------------------------------------

    def append(self, records: Sequence[NewRecord]) -> Awaitable[Sequence[int]]:
        """Write to `.out`. Order on the stream is the order of these calls (D-01).

        Returns at once with something to await: the seq_nums, once durable. Not awaiting it is
        fine. Records of one call are stored together. Raises Fenced (from the awaitable, and
        from every later call) when the lease is lost.
        """
        ...

    async def room(self) -> None:
        """Wait until the send window has room: back-pressure for a fast writer (P-1's price)."""
        ...

    async def flush(self) -> None:
        """Return when everything appended so far is durable."""
        ...

    def part_id(self) -> str:
        """The part id the next data record will carry: unique in the stream's life."""
        ...

    async def read(
        self, io: Io, *, after: int | None = None, before: int | None = None, limit: int = 1000
    ) -> Sequence[Record]:
        """Stored records, without waiting. With `before` reads back, newest first."""
        ...

    def tail(self, io: Io, after: int | None) -> TailReader:
        """Follow a channel from a cursor."""
        ...

    # --- waiting -----------------------------------------------------------------------------

    async def suspend_on_input(self, after: int | None, *, until_ms: int | None) -> Woken:
        """Release the slot until a record of `.in` lies after `after`, or the time has come."""
        ...

    async def suspend_until(self, until_ms: int) -> Woken: ...

    async def suspend_on_run(self, run_id: str, *, until_ms: int | None = None) -> Woken: ...

    async def suspend_on_token(self, token_id: str) -> Woken:
        """Release the slot until a wait token is completed or its time is up."""
        ...

    # --- everything else ---------------------------------------------------------------------

    async def load_snapshot(self) -> StoredSnapshot:
        """The session's stored history; from here on nobody who ran before adds to it."""
        ...

    async def save_snapshot(self, data: bytes) -> None:
        """Store the history anew; durable before it returns.

        After an error nobody knows what is stored: load it before anything else is stored.
        """
        ...

    async def patch_snapshot(self, data: bytes) -> None:
        """Add a patch (`protocol/history.py`) to it; durable before it returns.

        Raises TooLarge past 1 MiB; otherwise as `save_snapshot`.
        """
        ...

    async def mint_token(self, scopes: Sequence[str], ttl_s: int) -> str: ...

    async def end_and_continue(self, reason: str) -> bool:
        """Swap in a successor run. True when this run was still the current one."""
        ...

    async def trigger(
        self, task_id: str, payload: bytes, payload_type: str, options: Mapping[str, Any]
    ) -> tuple[str, bool]:
        """Start a child run: `(run id, is cached)`."""
        ...

    async def run_result(self, run_id: str) -> RunResult | None: ...

    async def cancel_run(self, run_id: str) -> None: ...

    async def token_result(self, token_id: str) -> TokenResult:
        """A wait token as it stands. Raises NotFound."""
        ...

    async def change_metadata(
        self, operations: Sequence[Mapping[str, Any]], key: str | None = None
    ) -> None:
        """Change the run's metadata; sent again under the same `key`, the change is made once."""
        ...

    async def add_tags(self, tags: Sequence[str]) -> None: ...

    async def set_consumed(self, seq_num: int) -> None:
        """Raw tasks: remember durably what of `.in` is consumed (rulings §1.16)."""
        ...

    def report(self, *, cursor: InputCursor | None = None, turns: int | None = None) -> None:
        """Chat agents: what of `.in` is committed and how many turns this run has started.

        Kept by the runtime and put into the outcome when the attempt ends (rulings §1.10).
        """
        ...

    async def journal_put(self, position: int, key: str, result: bytes) -> None: ...


_current: ContextVar[RunRuntime | None] = ContextVar("everturn.run", default=None)


def current() -> RunRuntime:
    """The runtime of the run this code belongs to. Raises NotInRunError outside of one."""
    runtime = _current.get()
    if runtime is None:
        raise NotInRunError("this can only be called inside a run")
    return runtime


def current_or_none() -> RunRuntime | None:
    return _current.get()


def enter(runtime: RunRuntime) -> None:
    """`running` for the rest of the task this is called in, for tasks that end with their work."""
    _current.set(runtime)


@contextmanager
def running(runtime: RunRuntime) -> Iterator[None]:
    """Make `runtime` the current one inside the block; whoever runs an attempt calls this."""
    token = _current.set(runtime)
    try:
        yield
    finally:
        _current.reset(token)
