"""What a run has written and the server has not acknowledged yet.

Parts are numbered from 0 under the run's fence, so resending after a reconnect is harmless: the
stream keeps each part once and answers for the rest. Acknowledgements come in the order of the
parts; one of them may cover several appends, or the rest of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence

import anyio

from everturn.errors import EverturnError, TooLarge
from everturn.protocol.link import Append
from everturn.protocol.records import NewRecord, metered_bytes
from everturn.rules import limits


class Receipt:
    """What `append` returns: awaiting it gives the seq_nums once the records are durable."""

    __slots__ = ("_done", "_error", "_seqs", "bytes", "count", "first_part")

    def __init__(self, first_part: int, count: int, size: int) -> None:
        self.first_part = first_part
        self.count = count
        self.bytes = size
        self._seqs: list[int] = []
        self._error: EverturnError | None = None
        self._done: anyio.Event | None = None

    @property
    def complete(self) -> bool:
        return self._error is not None or len(self._seqs) == self.count

    def add(self, seq_nums: Sequence[int]) -> None:
        self._seqs.extend(seq_nums)
        if self.complete and self._done is not None:
            self._done.set()

    def fail(self, error: EverturnError) -> None:
        """End it with an error; nobody has to await it."""
        self._error = error
        if self._done is not None:
            self._done.set()

    async def _wait(self) -> Sequence[int]:
        if not self.complete:
            if self._done is None:
                self._done = anyio.Event()
            await self._done.wait()
        if self._error is not None:
            raise self._error
        return tuple(self._seqs)

    def __await__(self) -> Generator[object, None, Sequence[int]]:
        return self._wait().__await__()


class Outbound:
    """The unacknowledged appends of one run, in order."""

    __slots__ = ("_appends", "_bytes", "_error", "_fence", "_moved", "_run_id", "next_part")

    def __init__(self, run_id: str, fence: int) -> None:
        self._run_id = run_id
        self._fence = fence
        #: A deque only while something is under way; an empty one costs a parked run 0.7 KiB.
        self._appends: deque[tuple[Append, Receipt]] | tuple[()] = ()
        self._bytes = 0
        self._error: EverturnError | None = None
        self._moved: anyio.Event | None = None
        self.next_part = 0

    @property
    def empty(self) -> bool:
        return not self._appends

    def add(self, records: Sequence[NewRecord]) -> tuple[Append | None, Receipt]:
        """Number the records; the frame to send, and the receipt.

        A record over the limit fails the receipt, takes no part number and sends nothing, so
        that the numbers of later parts leave no gap.
        """
        receipt = Receipt(self.next_part, len(records), 0)
        error = self._error or _over_limit(records)
        if error is not None:
            receipt.fail(error)
            return None, receipt
        receipt.bytes = sum(len(record.body) + 64 for record in records)
        frame = Append(self._run_id, self._fence, self.next_part, list(records))
        self.next_part += len(records)
        if records:
            if isinstance(self._appends, tuple):
                self._appends = deque()
            self._appends.append((frame, receipt))
            self._bytes += receipt.bytes
        return (frame if records else None), receipt

    def acked(self, first_part: int, seq_nums: Sequence[int]) -> None:
        """Parts `first_part …` are durable. What was acknowledged before is passed over."""
        part = first_part
        for seq_num in seq_nums:
            if isinstance(self._appends, tuple):
                break
            _, receipt = self._appends[0]
            if part == receipt.first_part + len(receipt._seqs):
                receipt.add((seq_num,))
                if receipt.complete:
                    self._appends.popleft()
                    self._appends = self._appends or ()
                    self._bytes -= receipt.bytes
            part += 1
        self._signal()

    def fail(self, error: EverturnError) -> None:
        """Nothing more is written: end every receipt, those of later appends too."""
        if self._error is None:
            self._error = error
        for _, receipt in self._appends:
            receipt.fail(self._error)
        self._appends = ()
        self._bytes = 0
        self._signal()

    def frames(self) -> Iterator[Append]:
        """Everything to send again after a reconnect, in order."""
        return (frame for frame, _ in list(self._appends))

    async def room(self) -> None:
        """Wait until less than limits.RUN_WINDOW_BYTES are unacknowledged."""
        while self._error is None and self._bytes >= limits.RUN_WINDOW_BYTES:
            await self._move()
        if self._error is not None:
            raise self._error

    async def flush(self) -> None:
        """Wait until everything added so far is durable."""
        if self._error is not None:
            raise self._error
        if self._appends:
            await self._appends[-1][1]

    async def _move(self) -> None:
        if self._moved is None:
            self._moved = anyio.Event()
        await self._moved.wait()

    def _signal(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None


def _over_limit(records: Sequence[NewRecord]) -> EverturnError | None:
    if len(records) > limits.BATCH_RECORDS_MAX:
        return TooLarge(f"{len(records)} records at once, at most {limits.BATCH_RECORDS_MAX}")
    for number, record in enumerate(records):
        body = record.body
        size = metered_bytes(record.headers, body) if record.headers else 8 + len(body)
        if size > limits.RECORD_BYTES_MAX:
            return TooLarge(
                f"record {number} is {size} bytes, at most {limits.RECORD_BYTES_MAX}",
                what="record",
                bytes=size,
                bytes_max=limits.RECORD_BYTES_MAX,
            )
    return None
