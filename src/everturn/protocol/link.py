"""The worker link: frames between a worker process and a server (rulings §3).

One WebSocket at `/link/v1`, subprotocol `everturn.link.v1`, `Authorization: Bearer <secret key>`,
no compression. A WebSocket message is binary msgpack: an array of frames, in order. Whatever was
written while the last message was on its way travels in the next one; there is no timer.

Life of a link
    worker: Hello   ->  server: Welcome (names held runs that were lost meanwhile)
    worker: Credit  ->  server: Claim …; the worker answers each with Started within 10 s
    worker: Append  ->  server: Acked or Refused, per run in order; parts make resending harmless
    worker: Tail    ->  server: Records …, until Untail
    worker: Call    ->  server: Result (same id), any order
    worker: Beat    ->  server: Beat (renews the lease of the worker and so of all its runs)
    server: Wake, Cancel, Lost, Drain at any time

After a lost connection the worker connects again, names the runs it holds in Hello, drops those
that Welcome calls lost, resends every Append that was not acknowledged and every Call and Tail
that is open. Calls carry an id that stays the same over resends; the server answers a repeat of
a call it has carried out with the same result (`dedupe` lists which are remembered).

A frame larger than `limits.LINK_SLICE_BYTES_MAX` travels as Slice frames, so that a large record
does not hold up heartbeats; other frames may pass between its slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from everturn.errors import ProtocolError
from everturn.protocol.records import Headers, NewRecord, Record
from everturn.protocol.runs import RunInfo, TaskDeclaration

PATH: Final = "/link/v1"
SUBPROTOCOL: Final = "everturn.link.v1"

F = TypeVar("F")


class _Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Array-like: members may be added at the end, never removed or reordered.

    Decoded, or made of what is: a frame is in no cycle, so the collector need not look at it.
    """


# --- worker to server -----------------------------------------------------------------------


class HeldRun(msgspec.Struct, frozen=True, array_like=True):
    run_id: str
    fence: int


class Hello(_Frame, frozen=True, tag="hello"):
    """First frame of a connection. `worker_id` is new for each start of the process."""

    worker_id: str
    version: str
    tasks: list[TaskDeclaration]
    queues: dict[str, int | None]
    held: list[HeldRun]


class Credit(_Frame, frozen=True, tag="credit"):
    """How many more runs the worker takes right now. Replaces the previous number."""

    runs: int


class Started(_Frame, frozen=True, tag="started"):
    run_id: str
    fence: int


class Append(_Frame, frozen=True, tag="append"):
    """Records for the `out` channel of the run's session; `first_part` numbers the first."""

    run_id: str
    fence: int
    first_part: int
    records: list[NewRecord]


class Tail(_Frame, frozen=True, tag="tail"):
    """Follow a channel of the run's session. `sub` is chosen by the worker, unique on the link."""

    sub: int
    run_id: str
    io: str
    after: int | None


class Untail(_Frame, frozen=True, tag="untail"):
    sub: int


class Call(_Frame, frozen=True, tag="call"):
    """Anything that is not hot. `method` and `params` are listed in `METHODS`."""

    id: str
    run_id: str
    fence: int
    method: str
    params: dict[str, Any]


class Beat(_Frame, frozen=True, tag="beat"):
    """Heartbeat, both ways. `n` counts; the server's carries the number it answers."""

    n: int


# --- server to worker -----------------------------------------------------------------------


class Welcome(_Frame, frozen=True, tag="welcome"):
    environment_id: str
    environment_slug: str
    lease_ms: int
    heartbeat_ms: int
    #: Runs of Hello.held that the worker must let go of.
    lost: list[str]


class Claim(_Frame, frozen=True, tag="claim"):
    run: RunInfo


class Acked(_Frame, frozen=True, tag="acked"):
    """Parts `first_part …` are durable, with these seq_nums."""

    run_id: str
    fence: int
    first_part: int
    seq_nums: list[int]


class Refused(_Frame, frozen=True, tag="refused"):
    """An Append that stored nothing: code `fenced` (let go of the run) or `too_large`."""

    run_id: str
    fence: int
    first_part: int
    code: str
    message: str


class RecordFrame(msgspec.Struct, frozen=True, array_like=True):
    seq_num: int
    timestamp_ms: int
    headers: Headers
    body: bytes
    fence: int = 0
    part: int = -1

    @classmethod
    def of(cls, record: Record) -> RecordFrame:
        return cls(
            record.seq_num,
            record.timestamp_ms,
            record.headers,
            record.body,
            record.fence,
            record.part,
        )

    def record(self) -> Record:
        return Record(
            self.seq_num, self.timestamp_ms, self.headers, self.body, self.fence, self.part
        )


class Records(_Frame, frozen=True, tag="records"):
    sub: int
    records: list[RecordFrame]


class Wake(_Frame, frozen=True, tag="wake"):
    """A suspended run has its slot again and goes on. What it waited for:

    * channel: the first records after the cursor, or none when `timed_out`
    * until: nothing
    * run: `result`, a RunResult as builtins
    * token: nothing; the run asks with `wait.token`
    """

    run_id: str
    fence: int
    timed_out: bool
    records: list[RecordFrame]
    result: dict[str, Any] | None = None


class Cancel(_Frame, frozen=True, tag="cancel"):
    run_id: str
    reason: str


class Lost(_Frame, frozen=True, tag="lost"):
    """The run belongs to somebody else now: stop it and write nothing."""

    run_id: str


class Drain(_Frame, frozen=True, tag="drain"):
    """The server goes away soon: connect elsewhere (or again) when the connection ends."""

    reason: str


class Result(_Frame, frozen=True, tag="result"):
    """`error` is `{code, message, details}`; None when the call succeeded."""

    id: str
    value: Any
    error: dict[str, Any] | None = None


# --- both ways ------------------------------------------------------------------------------


class Slice(_Frame, frozen=True, tag="slice"):
    """A piece of one large encoded frame."""

    key: int
    last: bool
    data: bytes


WorkerFrame = Hello | Credit | Started | Append | Tail | Untail | Call | Beat | Slice
ServerFrame = (
    Welcome
    | Claim
    | Acked
    | Refused
    | Records
    | Wake
    | Cancel
    | Lost
    | Drain
    | Result
    | Beat
    | Slice
)

#: Calls: method -> (params, result). All carry the run and its fence; a call under a lost fence
#: fails with code `fenced`.
METHODS: Final[Mapping[str, str]] = {
    "suspend": "{wait: Wait} -> {} ; from then on the slot is gone, a Wake comes when it is over",
    "finish": "{outcome: RunOutcome} -> {} ; repeated calls answer the same",
    "evict": "{} -> {evicted: bool} ; False when a wake won (rulings §1.18)",
    "read": "{io, after?, limit, before?} -> {records: [RecordFrame], tail} ; `before` reads back",
    "snapshot.get": "{} -> {data: bytes | None, patched, part} ; who ran before writes no more",
    "snapshot.put": "{data: bytes, part} -> {} ; the history anew",
    "snapshot.patch": "{data: bytes, part} -> {} ; what a turn changed in it",
    "token": "{scopes: [str], ttl_s: int} -> {token: str}",
    "continue": "{reason: str} -> {runId, swapped}",
    "trigger": "{task_id, payload, payload_type, options, wait: bool} -> {runId, isCached}",
    "run.result": "{run_id} -> RunResult | None while it is not final",
    "run.cancel": "{run_id} -> {}",
    "wait.token": "{token} -> {status, output: bytes | None, output_type}",
    "metadata": "{operations: [...]} -> {metadata: bytes}",
    "tags": "{tags: [str]} -> {}",
    "journal.put": "{position, key, result: bytes} -> {}",
    "consumed": "{seq_num} -> {} ; raw tasks: what of `in` they have consumed",
}


class Packer:
    """Encodes frames into messages; large frames become slices."""

    def __init__(self, slice_bytes_max: int) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._max = slice_bytes_max
        self._key = 0

    def encode(self, frame: WorkerFrame | ServerFrame) -> list[bytes]:
        """The encoded frame, or its slices; each element is one array item of a message."""
        data = self._encoder.encode(frame)
        if len(data) <= self._max:
            return [data]
        self._key += 1
        cuts = range(0, len(data), self._max)
        return [
            self._encoder.encode(
                Slice(self._key, at + self._max >= len(data), data[at : at + self._max])
            )
            for at in cuts
        ]

    @staticmethod
    def message(items: Sequence[bytes]) -> bytes:
        """One WebSocket message holding these encoded frames."""
        count = len(items)
        if count < 16:
            head = bytes([0x90 | count])
        elif count < 1 << 16:
            head = b"\xdc" + count.to_bytes(2, "big")
        else:
            head = b"\xdd" + count.to_bytes(4, "big")
        return head + b"".join(items)


#: What msgspec raises for bytes that are not what they should be. Text that is not UTF-8 and
#: nesting without end have types of their own.
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: What a held slice counts beside its bytes, so that tiny ones are bounded in number too.
_PIECE_COST: Final = 4096


def held_bytes(items: Sequence[bytes]) -> int:
    """What one encoded frame counts towards the bound of the `Unpacker` that reads it."""
    return sum(len(item) + _PIECE_COST for item in items)


class Unpacker(Generic[F]):
    """Decodes messages into frames, joining slices. One per connection and direction."""

    def __init__(self, frames: Any, frame_bytes_max: int) -> None:
        """`frames` is WorkerFrame on a server and ServerFrame in a worker."""
        self._message = msgspec.msgpack.Decoder(list[frames])
        self._one = msgspec.msgpack.Decoder(frames)
        self._max = frame_bytes_max
        self._pieces: dict[int, list[bytes]] = {}
        self._held_bytes = 0

    def decode(self, message: bytes) -> list[F]:
        """The complete frames of a message. Raises ProtocolError for anything malformed."""
        try:
            frames = self._message.decode(message)
            return [whole for frame in frames if (whole := self._join(frame)) is not None]
        except _MALFORMED as error:
            raise ProtocolError(f"not a link message: {error}") from error

    def _join(self, frame: Any) -> F | None:
        if not isinstance(frame, Slice):
            return frame  # type: ignore[no-any-return]
        self._held_bytes += len(frame.data) + _PIECE_COST
        if self._held_bytes > self._max:
            raise ProtocolError(
                f"slices of unfinished frames hold {self._held_bytes} bytes, at most {self._max}"
            )
        pieces = self._pieces.setdefault(frame.key, [])
        pieces.append(frame.data)
        if not frame.last:
            return None
        data = b"".join(self._pieces.pop(frame.key))
        self._held_bytes -= len(data) + len(pieces) * _PIECE_COST
        whole = self._one.decode(data)
        if isinstance(whole, Slice):
            raise ProtocolError("a slice inside slices")
        return whole  # type: ignore[no-any-return]
