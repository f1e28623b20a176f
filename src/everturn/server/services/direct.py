"""Direct writes: tickets to write one channel, and what such a write does (wire-protocol §5.2, §7).

A client of the original that writes `.out` does not ask this API to append. It asks for a stream
of a store, a token for it and an address, and then talks to that store. Here the store is this
server again: the token is a ticket that the server signs for itself, and the stream name is a
digest, because everything a write needs to know is in the ticket.

* A ticket names environment, session key, channel and expiry, under an HMAC with a key derived
  from the master key. It opens nothing else, and nothing of it is stored.
* It lives a day when a secret key asked for it, since writers keep one ticket for as long as they
  live; a public token's ticket does not outlive the token.
* A closed session takes no more records, whatever ticket is shown: that is looked at each time.

The record arrives as it is to be stored, in its envelope. The envelope's id is the part id, so a
batch that is sent again after a lost answer adds nothing (P-5). Control records have no envelope
and are stored as often as they are sent, as in the store this stands for. Times that a writer
gives are not taken: times are the channel's own and never fall back.

Two conditions of that store's appends are decided here. Its fencing token is not in use, so it is
empty: an append that names another one fails, as it would there. `match_seq_num` cannot be
promised, because runs and other guests write between a look at the tail and the append: it is
refused rather than honoured most of the time.

On `in`, which browsers may write, only the store's own commands are refused: a trim would forget
messages that no turn has answered (rulings §1.17).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from everturn.errors import (
    Conflict,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    SessionNotFound,
    TooLarge,
    Unavailable,
)
from everturn.protocol import nesting
from everturn.protocol.records import (
    ChannelName,
    Headers,
    Io,
    NewRecord,
    metered_bytes,
    trim_target,
)
from everturn.protocol.s2_frames import AppendAck, AppendInput, InputRecord, Position
from everturn.rules import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everturn.server.services import Services
    from everturn.storage.ports.rows import Session

#: How long a ticket lives at most.
TICKET_S: Final = 24 * 3600
TICKET_CHARS_MAX: Final = 4096
#: Framed sessions open at once, all together; each may hold one frame in memory.
SESSIONS_MAX: Final = 2_000

INVALID: Final = "the access token is not valid"
EXPIRED: Final = "the access token has expired"
OTHER_STREAM: Final = "the access token is for another stream"
_DIGEST_CHARS: Final = 32


class FencingTokenMismatch(Conflict):
    """An append named a fencing token; the channel's is `.expected`."""

    code = "fencing_token_mismatch"

    def __init__(self, expected: str) -> None:
        super().__init__("the fencing token of the append is not the stream's")
        self.expected = expected


class Ticket(NamedTuple):
    """What its holder may write, and until when."""

    environment_id: str
    session_key: str
    io: Io
    expires_ms: int

    @property
    def channel(self) -> ChannelName:
        return ChannelName(self.environment_id, self.session_key, self.io)

    @property
    def stream(self) -> str:
        """The name clients put into their URLs; ASCII, whatever the session is called."""
        return f"{self.io}-{_digest(self.environment_id, self.session_key)}"

    @property
    def basin(self) -> str:
        """A name of the form that clients insist on: 8 to 48 of a-z, 0-9 and `-`."""
        return f"everturn-{_digest(self.environment_id)}"


class _Envelope(msgspec.Struct):
    id: str | None = None


class Direct:
    """Gives out tickets, and appends for those who hold one."""

    def __init__(self, services: Services, master_key: bytes) -> None:
        self._services = services
        self._key = hmac.digest(master_key, b"direct writes", "sha256")
        self._sessions = 0
        self._envelope = msgspec.json.Decoder(_Envelope)

    # --- tickets ---------------------------------------------------------------------------------

    def issue(
        self, environment_id: str, session_key: str, io: Io, *, until_ms: int | None = None
    ) -> tuple[Ticket, str]:
        """A ticket to write one channel, and the token that stands for it.

        Args:
            until_ms: when the credential expires that asked for it; a ticket never lives longer.
        """
        expires_ms = self._services.clock.now_ms() + TICKET_S * 1000
        if until_ms is not None:
            expires_ms = min(expires_ms, until_ms)
        ticket = Ticket(environment_id, session_key, io, expires_ms)
        said = _base64(msgspec.json.encode(ticket))
        return ticket, f"{said}.{_base64(self._sign(said))}"

    def open(self, token: str, stream: str) -> Ticket:
        """The ticket behind a token that was shown for a stream.

        Raises NotAuthenticated for a token that is not ours or is over, NotAllowed when it is
        for another stream.
        """
        ticket = self._read(token)
        self.check_time(ticket)
        if not hmac.compare_digest(ticket.stream.encode(), stream.encode("utf-8", "replace")):
            raise NotAllowed(OTHER_STREAM)
        return ticket

    def check_time(self, ticket: Ticket) -> None:
        """Raise NotAuthenticated when the ticket's time is over: sessions may outlive theirs."""
        if ticket.expires_ms <= self._services.clock.now_ms():
            raise NotAuthenticated(EXPIRED)

    def _read(self, token: str) -> Ticket:
        said, _, signature = token.partition(".")
        if len(token) > TICKET_CHARS_MAX or not token.isascii():
            raise NotAuthenticated(INVALID)
        if not hmac.compare_digest(_base64(self._sign(said)), signature):
            raise NotAuthenticated(INVALID)
        # Signed by us, so it is what `issue` wrote.
        return msgspec.json.decode(base64.urlsafe_b64decode(said + "=="), type=Ticket)

    def _sign(self, said: str) -> bytes:
        return hmac.digest(self._key, said.encode(), hashlib.sha256)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold a place among the framed sessions. Raises Unavailable when all are taken."""
        if self._sessions >= SESSIONS_MAX:
            raise Unavailable(f"{SESSIONS_MAX} write sessions are open, which is the limit")
        self._sessions += 1
        try:
            yield
        finally:
            self._sessions -= 1

    # --- appends ---------------------------------------------------------------------------------

    async def append(self, ticket: Ticket, asked: AppendInput) -> AppendAck:
        """Store a batch, all of it or nothing; the answer says where it stands.

        Raises:
            NotAuthenticated: the ticket is over.
            SessionNotFound: the channel is `in` and there is no session to read it.
            SessionClosedError, InvalidRequest: the session is closed or expired; the batch or a
                condition of it is not one that is served.
            FencingTokenMismatch: the batch names a fencing token.
            TooLarge: a record or the batch is over limits.RECORD_BYTES_MAX.
        """
        self.check_time(ticket)
        session = await self._session(ticket)
        _check_conditions(asked)
        records = self._records(ticket.io, asked.records)
        services = self._services
        appended = await services.outbox.append_guest(ticket.channel, records)
        if session is not None and ticket.io == "in":
            await services.dispatch.ensure_run(session)
        first, end = appended.seq_nums[0], appended.seq_nums[-1] + 1
        time_ms = appended.timestamp_ms
        tail = end
        if appended.new < len(records):
            # A repeat: others may have written since.
            tail = max(end, (await services.streams.bounds(ticket.channel)).tail)
        return AppendAck(Position(first, time_ms), Position(end, time_ms), Position(tail, time_ms))

    async def _session(self, ticket: Ticket) -> Session | None:
        """The session behind a channel, if it exists already and takes records."""
        sessions = self._services.sessions
        session = await sessions.find(ticket.environment_id, ticket.session_key)
        if session is not None:
            self._services.inbox.check_open(session)
        elif ticket.io == "in":
            # `out` may be written before its session exists, as it may be read (§5.2). Input
            # without a session has nobody who would ever answer it.
            raise SessionNotFound("the session does not exist")
        return session

    def _records(self, io: Io, given: tuple[InputRecord, ...]) -> list[NewRecord]:
        """As the channel keeps them. What any append must be is checked by the engine."""
        total = 0
        records = []
        for number, record in enumerate(given):
            _check_headers(io, number, record)
            if nesting.too_deep(record.body):
                raise InvalidRequest(f"record {number}: {nesting.TOO_DEEP}")
            total += metered_bytes(record.headers, record.body)
            part = self._part_id(record.body) if record.body else None
            records.append(NewRecord(record.body, record.headers, part))
        if len(given) > 1 and total > limits.RECORD_BYTES_MAX:
            raise TooLarge(
                f"the batch is {total} metered bytes, at most {limits.RECORD_BYTES_MAX}",
                what="batch",
                bytes=total,
                bytes_max=limits.RECORD_BYTES_MAX,
            )
        return records

    def _part_id(self, body: bytes) -> str | None:
        """The id in a record's envelope; None for a body that is no envelope with one."""
        try:
            return self._envelope.decode(body).id or None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # stored as it is, all the same: readers drop it


def _check_conditions(asked: AppendInput) -> None:
    if asked.match_seq_num is not None:
        raise InvalidRequest(
            "match_seq_num is not served: a channel has other writers, runs among them, and "
            "repeats are recognised by the ids of records"
        )
    if asked.fencing_token:
        raise FencingTokenMismatch(expected="")


def _check_headers(io: Io, number: int, record: InputRecord) -> None:
    """Raise for a command that is not a trim of `out`, and for a nameless header elsewhere."""
    headers: Headers = record.headers
    if not any(not name for name, _ in headers):
        return
    if io == "in":
        raise NotAllowed(f"record {number}: commands are not taken on the in channel")
    if len(headers) != 1 or trim_target(headers, record.body) is None:
        raise InvalidRequest(
            f"record {number}: of commands only trim is served, as the one header and with "
            "8 bytes of body"
        )


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:_DIGEST_CHARS]
