"""Reading a channel: as server-sent events that follow it, or as JSON (wire-protocol §5.3, §5.4).

One reader is one task that waits for records and writes them, everything that is there in one
event (measured: lingering gains nothing, writes are what costs). Nothing in that loop sets a
timer. Pings and idle timeouts of all readers are the business of one task, `Readers.run`, which
keeps a heap of when to look at whom next; a reader that got a record in the meantime is simply
looked at later. To make a waiting reader ping or end, it cancels the reader's wait, never a write
(`waiting` says which), and cancelling a wait loses nothing by the promise of the stream port.

How a stream ends says something. `[DONE]` and an orderly end mean that nothing more is coming for
now: clients of the original do not come back by themselves. So it is sent only when the idle
time is over or a settled channel is delivered. When the server stops or a store fails, the
connection is cut without the last chunk, and the client resumes from its cursor (§17.5).

A reader that does not read is held back by `send`: at most one batch of it is in memory.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Literal

import anyio
import msgspec

from everturn.errors import (
    CursorTrimmed,
    InvalidRequest,
    NotAllowed,
    SessionNotFound,
    Unavailable,
)
from everturn.protocol.problems import Shape
from everturn.protocol.records import TURN_COMPLETE, ChannelName, Io, Record, metered_bytes
from everturn.protocol.sse import DONE, encode_batch, encode_ping
from everturn.rules import limits
from everturn.rules.access import UNAUTHORIZED, may, session_resources
from everturn.server.routes.calls import (
    JSON,
    Answer,
    Call,
    cors_headers,
    origin_of,
    query_error,
)
from everturn.server.routes.writers_cursor import cursor_meant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from starlette.types import Receive, Send

    from everturn.clock import Clock
    from everturn.ids import Ids
    from everturn.storage.ports.streams import StreamStore, Subscription

log = logging.getLogger("everturn.server")

#: How often the heap of readers is looked at; the grain of pings and idle timeouts.
TICK_S: Final = 0.25
#: Commands (trims) that may stand between the tail and the record that says "settled".
SETTLED_LOOK_BACK: Final = 32
READERS: Final = "everturn.readers"
_DIGITS: Final = re.compile(r"\d{1,18}", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?\d+", re.ASCII)

_SSE_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"x-stream-version", b"v2"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)

Nudge = Literal["", "ping", "end"]


class Reader:
    """One connection that follows one channel."""

    __slots__ = (
        "clock",
        "last_s",
        "nudge",
        "ping_s",
        "scope",
        "send",
        "sent_bytes",
        "sent_records",
        "subscription",
        "timeout_s",
        "waiting",
    )

    def __init__(
        self, send: Send, subscription: Subscription, clock: Clock, timeout_s: float
    ) -> None:
        self.send = send
        self.subscription = subscription
        self.clock = clock
        self.timeout_s = timeout_s
        self.last_s = clock.monotonic()
        self.ping_s = 0.0
        self.sent_records = 0
        self.sent_bytes = 0
        #: True exactly while it waits for records: then, and only then, it may be interrupted.
        self.waiting = False
        self.nudge: Nudge = ""
        self.scope = anyio.CancelScope()

    async def write(self, data: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    def event(self, records: Sequence[Record]) -> bytes:
        """One `batch` event; the tail goes along when it is known without asking the store."""
        self.sent_records += len(records)
        for record in records:
            self.sent_bytes += (
                metered_bytes(record.headers, record.body)
                if record.headers
                else 8 + len(record.body)
            )
        last = records[-1]
        tail = (last.seq_num + 1, last.timestamp_ms) if self.subscription.caught_up else None
        return encode_batch(
            records, sent_records=self.sent_records, sent_bytes=self.sent_bytes, tail=tail
        )

    async def deliver(self, records: Sequence[Record]) -> None:
        """Send one batch."""
        await self.write(self.event(records))
        self.last_s = self.clock.monotonic()

    async def pump(self) -> None:
        """Deliver until interrupted; on return `nudge` says what for.

        This is the hot loop: one call less per record is worth a line here. A cancellation may
        arrive when the wait is over already. It would then strike the write, so records that were
        handed out by then are written outside the cancelled scope.
        """
        records: Sequence[Record] = ()
        send, following, now = self.send, self.subscription.next, self.clock.monotonic
        with anyio.CancelScope() as self.scope:
            while True:
                self.waiting = True
                records = await following()
                self.waiting = False
                if self.nudge:
                    break
                body = self.event(records)
                records = ()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self.last_s = now()
        self.waiting = False
        if records:
            await self.deliver(records)


class Readers:
    """All readers of this process: their number, their pings, their idle timeouts."""

    def __init__(self, clock: Clock, ids: Ids, *, readers_max: int) -> None:
        self._clock = clock
        self._ids = ids
        self._max = readers_max
        self._order = itertools.count()
        self._due: list[tuple[float, int, Reader]] = []
        self._gone: set[Reader] = set()
        self.count = 0

    def check_room(self) -> None:
        """Raise Unavailable when there are too many readers for one more."""
        if self.count >= self._max:
            raise Unavailable(f"this server has {self._max} readers, and takes no more")

    def admit(self, reader: Reader) -> None:
        """Look after a reader from now on."""
        self.count += 1
        self._plan_ping(reader)
        self._look_again(reader)

    def dismiss(self, reader: Reader) -> None:
        """It is gone. Its place in the heap is left to run out."""
        self.count -= 1
        self._gone.add(reader)

    @property
    def held(self) -> int:
        """How many places there are in memory, those of readers that went away included."""
        return len(self._due)

    async def run(self) -> None:
        """Ping idle readers and end those whose time is over, for ever."""
        while True:
            await self._clock.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """Look at every reader that is due."""
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            reader = heapq.heappop(self._due)[2]
            if reader in self._gone:
                self._gone.discard(reader)
                continue
            self._look(reader, now)
            self._look_again(reader)

    def _look(self, reader: Reader, now: float) -> None:
        if not reader.waiting or reader.nudge:
            return
        if now >= reader.last_s + reader.timeout_s:
            reader.nudge = "end"
        elif now >= max(reader.ping_s, reader.last_s + limits.PING_S_MIN):
            reader.nudge = "ping"
            self._plan_ping(reader)
        else:
            return
        reader.scope.cancel()

    def _plan_ping(self, reader: Reader) -> None:
        jitter = self._ids.uniform(limits.PING_S_MIN, limits.PING_S_MAX)
        reader.ping_s = self._clock.monotonic() + jitter

    def _look_again(self, reader: Reader) -> None:
        at = min(
            max(reader.ping_s, reader.last_s + limits.PING_S_MIN), reader.last_s + reader.timeout_s
        )
        at = max(at, self._clock.monotonic() + TICK_S)
        heapq.heappush(self._due, (at, next(self._order), reader))


# --- the endpoints -------------------------------------------------------------------------------


async def follow(call: Call, io: Io, send: Send) -> None:
    """GET …/:io: follow a channel as server-sent events (§5.3)."""
    await follow_channel(call, await _channel(call, io), send)


async def follow_channel(call: Call, channel: ChannelName, send: Send) -> None:
    """Follow a channel the caller may read, as server-sent events."""
    timeout_s = _timeout_s(call)
    streams = call.services.streams
    after = await cursor_meant(
        streams,
        channel,
        _cursor(call),
        version=call.header(b"trigger-version"),
        now_ms=call.services.clock.now_ms(),
    )
    if after is None and call.header(b"x-trigger-stream-start") == "latest":
        # A client without a cursor that wants only what comes from now on (§21).
        tail = (await streams.bounds(channel)).tail
        after = tail - 1 if tail else None
    includes_trimmed = _includes_trimmed(call)
    is_settled = (
        channel.io == "out"
        and call.header(b"x-peek-settled") == "1"
        and await settled(streams, channel)
    )
    readers: Readers = call.scope[READERS]
    readers.check_room()
    reader = Reader(send, streams.subscribe(channel, after), call.services.clock, timeout_s)
    readers.admit(reader)
    try:
        await _start(call, send, is_settled=is_settled)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, call.receive, tasks.cancel_scope)
            if includes_trimmed:
                await _deliver_trimmed(call, reader, channel, after)
            await (_deliver_rest(reader) if is_settled else _deliver_live(call, reader))
            await reader.write(DONE, more=False)
            tasks.cancel_scope.cancel()
    finally:
        readers.dismiss(reader)
        reader.subscription.close()


async def _start(call: Call, send: Send, *, is_settled: bool) -> None:
    """Send the headers at once: clients give up on headers that take 30 s."""
    headers = [*_SSE_HEADERS, *cors_headers(origin_of(call.scope), b"*")]
    if not any(name == b"access-control-expose-headers" for name, _ in headers):
        headers.append((b"access-control-expose-headers", b"*"))
    if is_settled:
        headers.append((b"x-session-settled", b"true"))
    call.scope["everturn.started"] = True
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    """End the reader when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _deliver_live(call: Call, reader: Reader) -> None:
    """Everything after the cursor, then what comes, until it was quiet for too long."""
    await _deliver_rest(reader)
    await _ping(call, reader)
    while True:
        await reader.pump()
        nudge, reader.nudge = reader.nudge, ""
        if nudge == "end":
            return
        if nudge == "ping":
            await _ping(call, reader)


async def _deliver_rest(reader: Reader) -> None:
    while not reader.subscription.caught_up:
        await reader.deliver(await reader.subscription.next())


async def _deliver_trimmed(
    call: Call, reader: Reader, channel: ChannelName, after: int | None
) -> None:
    """What lies below the visible start and is still retained, for the dashboard."""
    first = (await call.services.streams.bounds(channel)).first
    while after is None or after + 1 < first:
        records = await call.services.streams.read(channel, after=after, include_trimmed=True)
        below = [record for record in records if record.seq_num < first]
        if not below:
            return
        await reader.deliver(below)
        after = below[-1].seq_num


async def _ping(call: Call, reader: Reader) -> None:
    await reader.write(encode_ping(call.services.clock.now_ms(), None))


async def read_json(call: Call, io: Io, send: Send) -> Answer | None:
    """GET …/:io/records: everything after a cursor, at once (§5.4).

    There is no bound on how much that is, so more than a page is sent as it is read: what one
    request takes of memory is a page or two, whatever the channel holds.
    """
    channel = await _channel(call, io)
    text = call.query.get("afterEventId")
    if text is not None and not (text.isascii() and text.isdigit()):
        raise query_error("digits only", "afterEventId")
    after = None if text is None else int(text[:18])
    trimmed = _includes_trimmed(call)
    async with aclosing(_json_pages(call.services.streams, channel, after, trimmed)) as pages:
        first = await anext(pages, b"")
        second = await anext(pages, b"")
        if not second:
            return Answer(200, b'{"records":[' + first + b"]}", (JSON,))
        # From here on an error cuts the connection: half an answer is never taken for a whole one.
        call.scope["everturn.started"] = True
        headers = [JSON, *cors_headers(origin_of(call.scope))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_part(send, b'{"records":[' + first + b"," + second)
        async for page in pages:
            await _send_part(send, b"," + page)
    await send({"type": "http.response.body", "body": b"]}"})
    return None


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _json_pages(
    streams: StreamStore, channel: ChannelName, after: int | None, include_trimmed: bool
) -> AsyncGenerator[bytes]:
    """The members of `records`, a page at a time; pages of nothing but commands are left out.

    Ends with what is there now, however fast somebody goes on writing.
    """
    tail = (await streams.bounds(channel)).tail
    while after is None or after + 1 < tail:
        try:
            records = await streams.read(channel, after=after, include_trimmed=include_trimmed)
        except CursorTrimmed as trimmed:
            after = trimmed.first_seq_num - 1 if trimmed.first_seq_num else None
            continue
        if not records:
            return
        shown = [_json_record(record) for record in records if not record.is_command]
        if shown:
            yield b",".join(shown)
        after = records[-1].seq_num


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")
    id: str = ""


_envelope = msgspec.json.Decoder(_Envelope).decode


def _json_record(record: Record) -> bytes:
    """One member of `records`; `data` is copied as it is stored, without decoding it."""
    data, part = b'""', ""
    if record.is_data:
        body = record.body
        if not body.isascii():
            # As readers of the event stream get it: what is no UTF-8 would spoil the whole answer.
            body = body.decode("utf-8", "replace").encode()
        try:
            opened = _envelope(body)
            data, part = bytes(opened.data), opened.id
        except (msgspec.DecodeError, RecursionError):
            data = msgspec.json.encode(body.decode())
    headers = b',"headers":' + msgspec.json.encode(record.headers) if record.headers else b""
    return b'{"data":%b,"id":%b,"seqNum":%d%b}' % (
        data,
        msgspec.json.encode(part),
        record.seq_num,
        headers,
    )


async def exists(call: Call, io: Io, send: Send) -> Answer:
    """HEAD …/:io: whether the channel may be read (§5.3)."""
    await _channel(call, io)
    return Answer(200, b"", ((b"x-last-chunk-index", b"0"),))


async def settled(streams: StreamStore, channel: ChannelName) -> bool:
    """Whether the newest record, trim commands aside, says that the turn is over."""
    for record in await streams.read_back(channel, before=None, records_max=SETTLED_LOOK_BACK):
        if not record.is_command:
            return record.control == TURN_COMPLETE
    return False


# --- what the request says -----------------------------------------------------------------------


async def _channel(call: Call, io: Io) -> ChannelName:
    """The channel a reader may read.

    A session that does not exist yet is waited for under its external id (rulings §4.7); an id of
    ours without a row is an error. Raises SessionNotFound, NotAllowed.
    """
    caller = await call.authenticate(public=True)
    key = call.params["session"]
    session = await call.services.sessions.find(caller.environment_id, key)
    if session is None and key.startswith("session_"):
        raise SessionNotFound("Not found", should_retry=False)
    forms = (key,) if session is None else (session.key, session.id, session.external_id)
    if not may(caller, "read", session_resources(*forms)):
        raise NotAllowed(UNAUTHORIZED)
    name = key if session is None else session.key
    return ChannelName(caller.environment_id, name, io)


def _timeout_s(call: Call) -> float:
    """`Timeout-Seconds`: the longest time without a new record. Raises InvalidRequest as text."""
    text = call.header(b"timeout-seconds")
    if text is None:
        return float(limits.SSE_TIMEOUT_S_DEFAULT)
    call.shape = Shape.TEXT
    if not _INTEGER.fullmatch(text.strip()) or len(text) > 12:
        raise InvalidRequest("Invalid timeout seconds")
    seconds = int(text)
    if seconds < 1:
        raise InvalidRequest("Timeout seconds must be greater than 0")
    if seconds > limits.SSE_TIMEOUT_S_MAX:
        raise InvalidRequest(f"Timeout seconds must be less than {limits.SSE_TIMEOUT_S_MAX}")
    call.shape = Shape.PLAIN
    return float(seconds)


def _cursor(call: Call) -> int | None:
    """`Last-Event-ID`: its leading digits; anything else means from the start (§5.3)."""
    digits = _DIGITS.match(call.header(b"last-event-id") or "")
    return int(digits[0]) if digits else None


def _includes_trimmed(call: Call) -> bool:
    """`includeTrimmed=true`, which takes a secret key (rulings §1.17). Raises NotAllowed."""
    if not call.scope["query_string"] or call.query.get("includeTrimmed") != "true":
        return False
    if not call.caller.is_secret:
        raise NotAllowed(UNAUTHORIZED)
    return True
