"""The worker's end of the link: one connection to a server, kept alive (rulings §3).

Who keeps what
    The link keeps no work of its own. Frames written while the connection is away are dropped,
    because whoever wrote one still has what it said: a run keeps the appends that were not
    acknowledged, the link keeps the calls that were not answered, a tail keeps its cursor, the
    worker keeps its credit. After each Welcome all of them say it again (`Peer.welcomed`), and
    part numbers and call ids make the repetition harmless.

One writer
    Frames are queued and a single task sends them. It takes everything there is, up to a bound,
    into one message, and what was queued meanwhile goes into the next: batching that costs no
    delay because there is no timer. Heartbeats go to the head of the queue, and a large frame is
    cut into slices, so that neither waits behind a long record.

When the lease is over
    The link watches the lease (`lease`), and when it can no longer be trusted, the worker stops
    every run it holds. The connection may be standing all the while (a process
    that was stopped for half a minute), and the server none the wiser: it is ended, and the Hello
    of the next one, which names no run, tells the server that they are free. A new Welcome starts
    a new lease, with no runs in it.

What ends the link
    A refused key, or a server that speaks another protocol version, cannot be waited out, and
    raise. Everything else (no server yet, a server that restarts, a broken network, frames that
    make no sense) is retried with back-off for as long as the process lives, with one log line
    when it begins and one when it is over.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import anyio
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from everturn import errors
from everturn.clock import Clock
from everturn.errors import LeaseLost, ProtocolError, TooLarge
from everturn.ids import Ids
from everturn.protocol import link as frames
from everturn.rules import limits
from everturn.worker.calls import OpenCall
from everturn.worker.lease import Lease
from everturn.worker.sockets import OPEN_S_MAX, Dial, Socket, reason_of, websocket

log = logging.getLogger("everturn.worker")

BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 2.0
#: Bytes of one message: small enough that a heartbeat queued behind it leaves soon.
_MESSAGE_BYTES: Final = 4 * limits.LINK_SLICE_BYTES_MAX
assert _MESSAGE_BYTES < limits.LINK_MESSAGE_BYTES_MAX
_PROTOCOL_ERROR: Final = 1002
_CLOSE_S: Final = 1.0
#: Answers `unavailable` to one call before its caller hears of it.
CALL_TRIES: Final = 5


class Peer(Protocol):
    """What the link belongs to."""

    def hello(self) -> frames.Hello:
        """The Hello of a new connection, naming what is held right now."""
        ...

    def welcomed(self, welcome: frames.Welcome) -> None:
        """A connection stands: drop what is lost, say again what was not acknowledged."""
        ...

    def received(self, frame: frames.ServerFrame) -> None:
        """Any frame but Welcome, Beat and Result. Must not block."""
        ...

    def lease_lost(self) -> None:
        """The lease can no longer be trusted: stop every run, write nothing more."""
        ...

    def credit(self) -> int:
        """How many more runs may come; asked when a message is put together."""
        ...


class _Garbled(Exception):
    """The server sent what no server of this protocol sends. The connection is of no more use."""


class Link:
    """One connection to a server, renewed whenever it is lost."""

    def __init__(
        self,
        url: str,
        key: str,
        peer: Peer,
        *,
        clock: Clock,
        ids: Ids,
        dial: Dial | None = None,
    ) -> None:
        """`url` is the server's HTTP address; `key` a secret key of the environment to serve.

        `dial` opens its connections; WebSockets to `url` when None.
        """
        self._address = link_address(url)
        self._url = url
        self._peer = peer
        self._clock = clock
        self._ids = ids
        self._dial: Dial = dial or (lambda: websocket(self._address, key))
        self._packer = frames.Packer(limits.LINK_SLICE_BYTES_MAX)
        self._queue: deque[bytes] = deque()
        self._queued = asyncio.Event()
        self._credit_changed = False
        self._connected = False
        self._calls: dict[str, OpenCall] = {}
        self._call_prefix = ids.part(8)
        self._call_count = 0
        self._sub_count = 0
        self._beat_count = 0
        self._beats_sent: dict[int, float] = {}
        self._lease = Lease(clock)
        self._heartbeat_s = limits.HEARTBEAT_MS / 1000
        #: Set to end the connection that stands, and why.
        self._given_up = anyio.Event()
        self._given_up_for = ""
        self._complained = False
        self._closed: LeaseLost | None = None
        self.welcome: frames.Welcome | None = None
        self.ready = anyio.Event()

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def lease_trusted(self) -> bool:
        """True while the server cannot have given this worker's runs to somebody else."""
        return self._lease.trusted

    # --- what runs write -----------------------------------------------------------------------

    def send(self, frame: frames.WorkerFrame) -> None:
        """Queue a frame for the next message; dropped when there is no connection (see above)."""
        if self._connected:
            self._say(self._packer.encode(frame))

    def _say(self, items: list[bytes]) -> None:
        if self._connected:
            self._queue.extend(items)
            self._queued.set()

    def credit_changed(self) -> None:
        """Tell the server the new credit with the next message."""
        self._credit_changed = True
        self._queued.set()

    def next_sub(self) -> int:
        """A number for a new tail, unique for the life of this process."""
        self._sub_count += 1
        return self._sub_count

    async def call(
        self,
        run_id: str,
        fence: int,
        method: str,
        params: Mapping[str, Any],
        call_id: str | None = None,
    ) -> Any:
        """Ask the server for something; waits through reconnections.

        Every try goes by the same id, because an answer `unavailable` leaves open whether it was
        carried out: the server answers what it has done already, and does not do it again.

        Args:
            call_id: names the request, where repeating it must not carry it out again even by
                another process; a fresh one when left out.

        Raises:
            LeaseLost: the lease ended before the answer came, or the worker is stopping.
            EverturnError: what the server answered, as its own class where the code names one.
        """
        call_id = call_id or self.next_call_id()
        for attempt in itertools.count(1):
            call = self.open_call(run_id, fence, method, params, anyio.Event(), call_id)
            try:
                await call.answered.wait()
                return call.value()
            except errors.Unavailable:
                if attempt >= CALL_TRIES:
                    raise
            finally:
                self.forget(call)
            await self.back_off(attempt)
        raise AssertionError("the loop has no end")

    def open_call(
        self,
        run_id: str,
        fence: int,
        method: str,
        params: Mapping[str, Any],
        answered: anyio.Event,
        call_id: str,
    ) -> OpenCall:
        """Send a call without waiting for it; `forget` it in the end.

        One larger than a server takes is answered here: sent, it would end the connection.
        """
        call = OpenCall(frames.Call(call_id, run_id, fence, method, dict(params)), answered)
        items = self._packer.encode(call.frame)
        if self._closed is not None:
            call.answer(self._closed)
        elif (size := frames.held_bytes(items)) > limits.LINK_FRAME_BYTES_MAX:
            call.answer(
                TooLarge(
                    f"a {method!r} call of {size} bytes, at most {limits.LINK_FRAME_BYTES_MAX}",
                    what="call",
                    bytes=size,
                    bytes_max=limits.LINK_FRAME_BYTES_MAX,
                )
            )
        else:
            self._calls[call_id] = call
            self._say(items)
        return call

    def next_call_id(self) -> str:
        """An id for a new call, unique over processes."""
        self._call_count += 1
        return f"{self._call_prefix}{self._call_count}"

    def forget(self, call: OpenCall) -> None:
        self._calls.pop(call.frame.id, None)

    async def back_off(self, attempt: int) -> None:
        """Wait before trying again after attempt 1, 2, …"""
        delay_s = min(BACKOFF_S_MIN * 2 ** (attempt - 1), BACKOFF_S_MAX)
        await self._clock.sleep(delay_s * self._ids.uniform(0.5, 1.0))

    def fail_calls(
        self, error: errors.EverturnError, *, held: frames.HeldRun | None = None
    ) -> None:
        """End open calls (all, or those of one claim) with an error: their answers are not awaited.

        Of one claim and not of one run: the run may have come back to this worker meanwhile.
        """
        for call in list(self._calls.values()):
            made_by = frames.HeldRun(call.frame.run_id, call.frame.fence)
            if call.result is None and held in (None, made_by):
                call.answer(error)

    # --- the connection ------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and connect again, until cancelled.

        Raises:
            NotAuthenticated: the server does not accept the key.
            ProtocolError: the server speaks another version of the link.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._lease.watch, self._lease_over)
            try:
                await self._stay_connected()
            finally:
                tasks.cancel_scope.cancel()
                self._closed = LeaseLost("the worker is stopping")
                # Runs that are left would wait for acknowledgements that nobody can bring.
                self._peer.lease_lost()
                self.fail_calls(self._closed)

    async def _stay_connected(self) -> None:
        attempt = 0
        while True:
            welcome, began = self.welcome, self._clock.monotonic()
            try:
                await self._connection()
                reason = "the server closed the connection"
            except _Garbled as broken:
                reason = f"it sent what makes no sense: {broken}"
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as lost:
                reason = reason_of(lost, self._url)
            # One that stood for a moment only is no reason to hurry: the next may do no better.
            stood = self.welcome is not welcome and (
                self._clock.monotonic() - began >= BACKOFF_S_MAX
            )
            attempt = 1 if stood else attempt + 1
            if not self._complained:
                self._complained = True
                log.warning("link.lost: no connection to %s (%s), trying again", self._url, reason)
            await self.back_off(min(attempt, 10))

    async def _connection(self) -> None:
        """One connection, from its handshake to its end."""
        async with self._dial() as socket:
            if socket.subprotocol != frames.SUBPROTOCOL:
                raise ProtocolError(
                    f"{self._url} does not offer {frames.SUBPROTOCOL}: update worker or server"
                )
            # Before the Hello: what it says we hold may be lost while the Welcome is on its way,
            # and then the server has to be told by another one.
            self._given_up = anyio.Event()
            try:
                await self._greet(socket)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write, socket)
                    tasks.start_soon(self._beat, socket)
                    tasks.start_soon(self._end_when_given_up, socket)
                    await self._read(socket)
                    tasks.cancel_scope.cancel()
            except* (ConnectionClosed, _Garbled) as group:
                # One clause: two that both apply would raise a group again.
                reason = _first(group)
                if isinstance(reason, _Garbled):
                    with anyio.move_on_after(_CLOSE_S):
                        await socket.close(_PROTOCOL_ERROR, "not a frame of this protocol")
                raise reason from None
            finally:
                self._connected = False
                self._queue.clear()
                self._beats_sent.clear()

    async def _greet(self, socket: Socket) -> None:
        """Hello and Welcome. On return, everything held has been said again."""
        sent_at = self._clock.monotonic()
        with anyio.fail_after(OPEN_S_MAX):
            for item in self._packer.encode(self._peer.hello()):
                await socket.send(frames.Packer.message([item]))
            self._unpacker: frames.Unpacker[Any] = frames.Unpacker(
                frames.ServerFrame, limits.LINK_FRAME_BYTES_MAX
            )
            first: list[Any] = []
            while not first:
                first = self._decode(await socket.recv())
        if not isinstance(first[0], frames.Welcome):
            raise _Garbled("its first frame was not a welcome")
        welcome = first[0]
        if welcome.lease_ms <= 0 or welcome.heartbeat_ms <= 0:
            raise _Garbled(
                f"a lease of {welcome.lease_ms} ms, renewed every {welcome.heartbeat_ms} ms"
            )
        self._lease.lasts(welcome.lease_ms)
        self._heartbeat_s = welcome.heartbeat_ms / 1000
        self._lease.renew(sent_at)
        self.welcome = welcome
        self._connected = True
        if self._complained:
            self._complained = False
            log.info("link.restored: connected to %s", self._url)
        self._peer.welcomed(welcome)
        for call in list(self._calls.values()):
            self.send(call.frame)
        self.credit_changed()
        self.ready.set()
        for frame in first[1:]:
            self._receive(frame)

    def _decode(self, message: str | bytes) -> list[Any]:
        if isinstance(message, str):
            raise _Garbled("a text message")
        try:
            return self._unpacker.decode(message)
        except ProtocolError as error:
            raise _Garbled(error.message) from error

    async def _write(self, socket: Socket) -> None:
        """The one writer: everything queued goes into one message, up to a bound."""
        while True:
            await self._queued.wait()
            self._queued.clear()
            while batch := self._batch():
                await socket.send(frames.Packer.message(batch))

    def _batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        if self._credit_changed:
            self._credit_changed = False
            batch.extend(self._packer.encode(frames.Credit(self._peer.credit())))
        while self._queue and size < _MESSAGE_BYTES:
            item = self._queue.popleft()
            size += len(item)
            batch.append(item)
        return batch

    async def _read(self, socket: Socket) -> None:
        async for message in socket:
            for frame in self._decode(message):
                self._receive(frame)

    def _receive(self, frame: Any) -> None:
        if isinstance(frame, frames.Result):
            call = self._calls.get(frame.id)
            if call is not None and call.result is None:
                call.answer(frame)
        elif isinstance(frame, frames.Beat):
            sent_at = self._beats_sent.pop(frame.n, None)
            if sent_at is not None:
                self._lease.renew(sent_at)
        elif isinstance(frame, frames.Drain):
            # The end of the connection is expected now and is no reason to complain.
            log.info("link.drain: %s goes away (%s)", self._url, frame.reason)
            self._complained = True
        else:
            self._peer.received(frame)

    # --- the lease -----------------------------------------------------------------------------

    async def _beat(self, socket: Socket) -> None:
        """Heartbeats. A connection whose last two beats were not answered is given up."""
        while True:
            await self._clock.sleep(self._heartbeat_s)
            if len(self._beats_sent) >= 2:
                log.warning("link.silent: %s answers no heartbeat", self._url)
                await socket.close(1011, "no heartbeat")
                return
            self._beat_count += 1
            self._beats_sent[self._beat_count] = self._clock.monotonic()
            self._queue.extendleft(self._packer.encode(frames.Beat(self._beat_count)))
            self._queued.set()

    def reconnect(self, reason: str) -> None:
        """End the connection that stands and make another: its Hello names what is held now, so
        that the server looks after the runs it does not name."""
        self._given_up_for = reason
        self._given_up.set()

    async def _end_when_given_up(self, socket: Socket) -> None:
        await self._given_up.wait()
        await socket.close(1011, self._given_up_for)

    def _lease_over(self) -> None:
        log.error("lease.lost: %s was not reached in time, stopping all runs", self._url)
        self._peer.lease_lost()
        self.fail_calls(LeaseLost("the lease of this worker is over"))
        self.reconnect("the lease is over")


def link_address(url: str) -> str:
    """The WebSocket address of a server's link: `http://host` -> `ws://host/link/v1`.

    Raises:
        ConfigurationError: not an http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.netloc:
        raise errors.ConfigurationError(f"{url!r} is not the address of a server (http://host)")
    scheme = "wss" if parts.scheme in ("https", "wss") else "ws"
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{frames.PATH}"


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
