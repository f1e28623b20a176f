"""Following a channel: record after record, over as many connections as it takes.

The cursor is the `seq_num` of the last record that arrived, and every connection asks to go on
after it; so a connection may be lost at any byte without a gap or a repetition. What happens when
one ends (wire-protocol §17.5, chat-agent §1.5):

* **Abruptly** (reset, timed out, body cut off), or refused with 408, 429 or 5xx: try again, for
  ever, after 100 ms doubling up to 5 s, halved at random so that a thousand readers of a
  restarted server do not come back in one instant. Any event received resets the pause.
* **Refused** with another status: the error is raised.
* **In good order**, for silence: a server ends a stream after `timeout_s` without a record. The
  follower ends too.
* **In good order, before that**: a proxy or a server that shuts down ended it. A caller in the
  middle of a turn still waits for its end, so `waiting` is asked; while it says yes the follower
  subscribes again, up to five times in a row. (4.5.0 clients of the original do not; they show a
  cut-off answer.)

Records may be trimmed while a reader is away, and the next connection then goes on behind them. For
whoever needs every one (`whole`: an answer without its middle is no answer) they are fetched from
what a store keeps of them; that takes a secret key, and without one the gap stays.

Two things keep a record from being delivered twice: records at or below the last one received are
dropped, and so are data records whose part id was among the last 5000, which a writer that
retries may have stored twice. Dropped records still move the cursor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple

import anyio
import httpx2
import msgspec

from everturn.client.api import Api
from everturn.client.problems import status_of
from everturn.errors import ApiError, EverturnError, ProtocolError
from everturn.protocol import sse
from everturn.protocol.records import Io, Record, open_envelope
from everturn.rules import limits

BACKOFF_S: Final = 0.1
BACKOFF_S_MAX: Final = 5.0
RESUBSCRIBE_MAX: Final = 5
#: Past this share of the allowed silence, an orderly end is taken as the server's time-out.
_SILENT_SHARE: Final = 0.9
#: Closing a connection never takes long; a peer that makes it so does not hold up a cancellation.
_CLOSE_S: Final = 2.0
_TIMEOUT_S_SERVER: Final = limits.SSE_TIMEOUT_S_DEFAULT


class Arrived(NamedTuple):
    """One record, with its envelope opened.

    `data` is what its writer put in (for `.in`: text); None for control and command records.
    """

    record: Record
    data: Any = None
    part_id: str = ""


class _Ended(Exception):
    """A connection is over. `orderly` says how."""

    def __init__(self, *, orderly: bool) -> None:
        super().__init__()
        self.orderly = orderly


class Follower:
    """An asynchronous iterator over the records of a channel, from a cursor on.

    Args:
        after: seq_num of the last record already seen; None starts at the oldest one kept.
        timeout_s: silence (no record) after which it ends, 1 to 600 s; the server's 60 s when
            None.
        peek_settled: end at once if no turn is under way (reloads; not for senders).
        waiting: whether the caller still waits for something; asked at an early orderly end.
        endless: goes on after silence and orderly ends, until it is closed.
        whole: fetch what was trimmed after the cursor, from the first record on if that is None.

    Cancelling a wait for the next record loses none. Close it with `aclose`, or use it as a context manager. Iteration raises what the API raises.
    """

    def __init__(
        self,
        api: Api,
        session: str,
        io: Io = "out",
        *,
        after: int | None = None,
        timeout_s: int | None = None,
        peek_settled: bool = False,
        waiting: Callable[[], bool] = lambda: False,
        endless: bool = False,
        whole: bool = False,
        base_url: str | None = None,
    ) -> None:
        self._api = api
        self._session = session
        self._io = io
        self._timeout_s = timeout_s
        self._peek_settled = peek_settled
        self._waiting = waiting
        self._endless = endless
        self._whole = whole
        self._base_url = base_url
        self._cursor = self._handed_out = after
        self._newest: int | None = None  # the last seq_num that arrived on this follower
        self._seen: deque[str] = deque()
        self._seen_set: set[str] = set()
        self._ready: deque[Arrived] = deque()
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._decoder = sse.Decoder()
        self._failures = 0
        self._resubscribed = 0
        self._last_record_at = api.clock.monotonic()
        self._ended = False
        self.settled = False
        self.tail: sse.Tail | None = None

    @property
    def cursor(self) -> int | None:
        """The seq_num of the last record this follower handed out; where to go on from."""
        return self._handed_out

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Record:
        arrived = await self.next()
        if arrived is None:
            raise StopAsyncIteration
        return arrived.record

    async def next(self) -> Arrived | None:
        """The next record with its envelope opened; None at the end."""
        while not self._ready:
            if self._ended:
                return None
            try:
                await self._receive()
            except _Ended as end:
                await self._after_end(end.orderly)
        arrived = self._ready.popleft()
        self._handed_out = arrived.record.seq_num
        return arrived

    def take_ready(self) -> list[Arrived]:
        """What has arrived already and was not handed out, without waiting."""
        ready = list(self._ready)
        self._ready.clear()
        if ready:
            self._handed_out = ready[-1].record.seq_num
        return ready

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the connection back. Iterating again ends at once."""
        self._ended = True
        await self._disconnect()

    # --- one connection ------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Wait for bytes and take in what they complete. Raises _Ended."""
        if self._chunks is None:
            await self._connect()
        assert self._chunks is not None
        try:
            chunk = await anext(self._chunks)
            for event in self._decoder.feed(chunk):
                self._failures = 0
                if event.event == "batch":
                    await self._take(event)
        except StopAsyncIteration:
            raise _Ended(orderly=True) from None
        except (httpx2.TransportError, httpx2.StreamError):
            raise _Ended(orderly=False) from None
        except _Ended:
            raise
        except BaseException:
            # Cancelled: the generator of chunks is finished, and asking it again would look like
            # an orderly end; of this chunk something may be left. The next call connects anew,
            # from the cursor.
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await self._disconnect()
            raise

    async def _connect(self) -> None:
        try:
            response = await self._api.open_stream(
                self._session,
                self._io,
                after=self._cursor,
                timeout_s=self._timeout_s,
                peek_settled=self._peek_settled,
                base_url=self._base_url,
            )
        except EverturnError as error:
            if may_come_back(error):
                raise _Ended(orderly=False) from error
            self._ended = True
            raise
        self._response = response
        if response.headers.get("x-stream-version") != "v2":
            await self.aclose()
            raise ProtocolError("the answer is no event stream of version 2")
        self.settled = response.headers.get("x-session-settled") == "true"
        self._decoder = sse.Decoder()
        self._chunks = response.aiter_raw()

    async def _disconnect(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()

    # --- between connections -------------------------------------------------------------------

    async def _after_end(self, orderly: bool) -> None:
        await self._disconnect()
        if orderly and not self._endless:
            self._ended = not self._goes_on()
            return
        if orderly and self._is_silent():
            return
        pause = min(BACKOFF_S * 2.0**self._failures, BACKOFF_S_MAX)
        # The exponent stops growing with the pause: the loop has no end, numbers have.
        self._failures = min(self._failures + 1, 16)
        await self._api.clock.sleep(pause * self._api.ids.uniform(0.5, 1.0))

    def _goes_on(self) -> bool:
        """Whether to subscribe again after an orderly end."""
        if self.settled or not self._waiting() or self._resubscribed >= RESUBSCRIBE_MAX:
            return False
        if self._is_silent():
            return False
        self._resubscribed += 1
        return True

    def _is_silent(self) -> bool:
        """Whether no record came for so long that the server must have ended it for that."""
        silent_s = self._api.clock.monotonic() - self._last_record_at
        return silent_s >= (self._timeout_s or _TIMEOUT_S_SERVER) * _SILENT_SHARE

    # --- records -------------------------------------------------------------------------------

    async def _take(self, event: sse.Event) -> None:
        records, tail = sse.decode_batch(event.data)
        if tail is not None:
            self.tail = tail
        for record in records:
            if self._newest is not None and record.seq_num <= self._newest:
                continue
            if self._whole and record.seq_num > (-1 if self._cursor is None else self._cursor) + 1:
                await self._fetch_trimmed(record.seq_num)
            self._pass_on(record)
        if records:
            self._resubscribed = 0
            self._last_record_at = self._api.clock.monotonic()

    def _pass_on(self, record: Record) -> None:
        self._cursor = self._newest = record.seq_num
        arrived = self._open(record)
        if arrived is not None:
            self._ready.append(arrived)

    async def _fetch_trimmed(self, before: int) -> None:
        """Pass on what is still kept between the cursor and a record. Raises _Ended."""
        try:
            kept = await stored_records(
                self._api, self._session, self._io, after=self._cursor, include_trimmed=True
            )
        except EverturnError as error:
            if may_come_back(error):
                raise _Ended(orderly=False) from error
            # Not ours to read. Numbers may have gaps besides, so it need not be a loss.
            self._whole = False
            return
        for record in kept:
            if record.seq_num < before:
                self._pass_on(record)

    def _open(self, record: Record) -> Arrived | None:
        """The record as it is handed out; None for a part that was seen before."""
        if not record.is_data:
            return Arrived(record)
        opened = open_envelope(record.body)
        if opened is None:
            return Arrived(record)
        data, part_id = opened
        if part_id:
            if part_id in self._seen_set:
                return None
            self._seen.append(part_id)
            self._seen_set.add(part_id)
            if len(self._seen) > limits.DEDUPE_WINDOW:
                self._seen_set.discard(self._seen.popleft())
        return Arrived(record, data, part_id)


def may_come_back(error: EverturnError) -> bool:
    """No answer at all, or one that is the server's trouble and not the request's."""
    status = status_of(error)
    if status is None:
        return isinstance(error, ApiError)
    return status in (408, 425, 429) or status >= 500


async def stored_records(
    api: Api, session: str, io: Io, *, after: int | None = None, include_trimmed: bool = False
) -> list[Record]:
    """What is stored after a cursor, without waiting. Without times, which are not told there.

    What is trimmed and kept still is readable with a secret key only. Raises ProtocolError for an answer that holds something else, and what the API raises.
    """
    found = await api.read_records(session, io, after=after, include_trimmed=include_trimmed)
    try:
        told = msgspec.convert(found, list[_Told])
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer to a read of records: {error}") from error
    return [
        Record(
            one.seqNum,
            0,
            tuple(one.headers or ()),
            msgspec.json.encode({"data": one.data, "id": one.id}),
        )
        for one in told
    ]


class _Told(msgspec.Struct):
    """A record as `…/records` tells it (§5.4)."""

    seqNum: int
    data: Any = None
    id: str | None = None
    headers: list[tuple[str, str]] | None = None
