"""Live readers of a channel over the link.

The server pushes records from a cursor. A tail keeps the number of the last record it took in, so
after a reconnect it asks again from there, and passes over what it has seen. When its reader is
slow it stops the push (Untail) and asks anew once it has room: the buffer is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import anyio

from everturn.errors import EverturnError
from everturn.protocol.link import RecordFrame, Tail, Untail, WorkerFrame
from everturn.protocol.records import Io, Record

BUFFER_BYTES_MAX: Final = 1 << 20


class TailHost(Protocol):
    """The run a tail belongs to."""

    @property
    def run_id(self) -> str: ...

    def send(self, frame: WorkerFrame) -> None: ...

    def open_tail(self, tail: LinkTail) -> int:
        """A number for it; records of that number come to it from now on."""
        ...

    def close_tail(self, sub: int) -> None: ...


class LinkTail:
    """A TailReader over the link."""

    __slots__ = ("_bytes", "_cursor", "_error", "_host", "_io", "_ready", "_records", "_sub")

    def __init__(self, host: TailHost, io: Io, after: int | None) -> None:
        self._host = host
        self._io = io
        self._cursor = after
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._ready: anyio.Event | None = None
        self._error: EverturnError | None = None
        self._sub: int | None = None
        self.open()

    def open(self) -> None:
        """Ask for records after the cursor, under a new number."""
        if self._sub is not None:
            self._host.close_tail(self._sub)
        self._sub = self._host.open_tail(self)
        self._host.send(Tail(self._sub, self._host.run_id, self._io, self._cursor))

    @property
    def pushing(self) -> bool:
        """Whether the server should be sending; False while the buffer is full."""
        return self._sub is not None

    def received(self, records: Sequence[RecordFrame]) -> None:
        for frame in records:
            if self._cursor is not None and frame.seq_num <= self._cursor:
                continue
            self._cursor = frame.seq_num
            self._records.append(frame.record())
            self._bytes += len(frame.body) + 200
        if self._bytes > BUFFER_BYTES_MAX and self._sub is not None:
            self._host.send(Untail(self._sub))
            self._host.close_tail(self._sub)
            self._sub = None
        if self._records and self._ready is not None:
            self._ready.set()

    def fail(self, error: EverturnError) -> None:
        self._error = error
        if self._ready is not None:
            self._ready.set()

    async def next(self) -> Sequence[Record]:
        """The next records, at least one. Cancelling loses nothing.

        Raises:
            EverturnError: the run lost its lease, or the tail was closed.
        """
        while not self._records:
            if self._error is not None:
                raise self._error
            self._ready = anyio.Event()
            await self._ready.wait()
        taken = tuple(self._records)
        self._records.clear()
        self._bytes = 0
        if self._sub is None and self._error is None:
            self.open()
        return taken

    def close(self) -> None:
        """Stop following; a waiting `next` raises."""
        if self._sub is not None:
            self._host.send(Untail(self._sub))
            self._host.close_tail(self._sub)
            self._sub = None
        self.fail(EverturnError("the tail was closed"))
