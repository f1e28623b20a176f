"""Channels of a session over HTTP: append, follow, read (wire-protocol §5). The hot routes.

These are plain ASGI callables, reached by splitting the raw path and not through the table of
routes: an append is one parse of its headers, one look-up of a cached row, one durable write.

    POST …/sessions/:session/:io/append     one input chunk in; the text is stored as a string
    GET  …/sessions/:session/:io            follow as server-sent events   (routes/reading.py)
    GET  …/sessions/:session/:io/records    read as JSON                   (routes/reading.py)
    POST …/sessions/:session/out/records    records as they are, for guests with a secret key
    PUT  …/sessions/:session/:io            a ticket for direct writes (server/direct/)
    HEAD …/sessions/:session/:io            exists
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from everturn.errors import InvalidRequest, SessionClosedError, SessionNotFound
from everturn.protocol import nesting, paths
from everturn.protocol.problems import MethodNotAllowed, Shape
from everturn.protocol.records import (
    ChannelName,
    Io,
    NewRecord,
    control_record,
    data_body,
    metered_bytes,
    trim_record,
)
from everturn.rules import limits
from everturn.rules.access import require, require_secret, session_resources
from everturn.server.routes.calls import (
    JSON,
    SERVICES,
    Answer,
    Call,
    Disconnected,
    answer,
    decode_segment,
    failure,
    origin_of,
    params_error,
    preflight,
    respond,
)
from everturn.server.routes.reading import exists, follow, read_json

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from everturn.server.services import Services
    from everturn.storage.ports.rows import Session

PREFIX: Final = b"/realtime/v1/sessions/"
_IOS: Final[dict[bytes, Io]] = {b"in": "in", b"out": "out"}

NO_OUT: Final = "Appending to the out channel requires secret key authentication"
NO_INITIALIZE: Final = "Initializing the out channel requires secret key authentication"
#: How long clients gather records before they send them. Every batch is one durable write.
FLUSH_MS: Final = b"50"
_WRITE_HEADERS: Final = (
    b"x-s2-access-token, x-s2-stream-name, x-s2-basin, x-s2-endpoint, x-s2-flush-interval-ms"
)

Endpoint = Callable[[Call, Io, "Send"], Awaitable[Answer | None]]


async def channels(scope: Scope, receive: Receive, send: Send) -> None:
    """Everything under `/realtime/v1/sessions/`."""
    origin = origin_of(scope)
    if scope["method"] == "OPTIONS":
        await respond(send, preflight(scope), None)
        return
    call = Call(scope[SERVICES], scope, receive, {})
    try:
        endpoint, io = _route(call, scope["raw_path"][len(PREFIX) :].split(b"/"))
        result = await endpoint(call, io, send)
    except Disconnected:
        return
    except Exception as error:
        if scope.get("everturn.started"):
            # The status is out. Raising makes the server cut the connection, which is what tells
            # a reader to come back with its cursor; an orderly end would say "all is delivered".
            raise
        result = failure(call, error)
    if result is not None:
        await respond(send, result, origin)


def _route(call: Call, segments: list[bytes]) -> tuple[Endpoint, Io]:
    if not 2 <= len(segments) <= 3 or (len(segments) == 3 and segments[2] not in TABLE):
        raise SessionNotFound("Not found", should_retry=False)
    table = TABLE[segments[2] if len(segments) == 3 else b""]
    endpoint = table.get(call.scope["method"])
    if endpoint is None:
        raise MethodNotAllowed("Method not allowed", allow=", ".join([*table, "OPTIONS"]))
    io = _IOS.get(segments[1])
    if io is None:
        raise params_error("the channel is in or out")
    call.params["session"] = decode_segment(segments[0])
    return endpoint, io


async def append(call: Call, io: Io, send: Send) -> Answer:
    """POST …/append: one input chunk from a client to the agent (§5.1)."""
    caller = await call.authenticate(public=True)
    call.check_size(limits.APPEND_BODY_BYTES_MAX)
    key = call.params["session"]
    sessions = call.services.sessions
    session = sessions.peek(caller.environment_id, key) or (
        await sessions.find(caller.environment_id, key)
    )
    if not caller.is_secret:
        require(caller, "write", _forms(key, session))
    if session is None:
        raise SessionNotFound("Resource not found")
    call.shape = Shape.CHANNEL
    call.services.inbox.check_open(session)
    if io == "out":
        require_secret(caller, NO_OUT)
    body = await call.body(limits.APPEND_BODY_BYTES_MAX)
    seq_num = await call.services.inbox.append(session, io, body, call.header(b"x-part-id"))
    return Answer(200, b'{"ok":true,"seq":%d}' % seq_num, (JSON,))


async def initialize(call: Call, io: Io, send: Send) -> Answer:
    """PUT …/:io: what it takes to write a channel through the write endpoint (§5.2)."""
    caller = await call.authenticate(public=True)
    key = call.params["session"]
    services = call.services
    session = await services.sessions.find(caller.environment_id, key)
    require(caller, "write", _forms(key, session))
    call.shape = Shape.TEXT
    if io == "out":
        require_secret(caller, NO_INITIALIZE)
    if session is None and key.startswith("session_"):
        raise SessionNotFound("Session not found", should_retry=False)
    if session is not None:
        _check_initializable(services, session)
        key = session.key
    ticket, token = services.direct.issue(
        caller.environment_id, key, io, until_ms=caller.expires_at_ms
    )
    headers = (
        (b"x-s2-access-token", token.encode()),
        (b"x-s2-stream-name", ticket.stream.encode()),
        (b"x-s2-basin", ticket.basin.encode()),
        (b"x-s2-endpoint", _write_endpoint(call).encode("latin-1")),
        (b"x-s2-flush-interval-ms", FLUSH_MS),
        (b"access-control-expose-headers", _WRITE_HEADERS),
    )
    return answer({"version": "v2"}, 202, headers)


def _check_initializable(services: Services, session: Session) -> None:
    try:
        services.inbox.check_open(session)
    except SessionClosedError:
        # 400 and not 409, which clients of the original would try again.
        raise InvalidRequest("Cannot initialize a channel on a closed session") from None


#: A name or an address, with or without a port. What is none is not repeated in an answer.
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


def _write_endpoint(call: Call) -> str:
    """Where this caller reaches the write endpoint.

    Unless settings say, it is where the caller reached us: a server that listens on all addresses
    does not know by which of them it is known.
    """
    services = call.services
    if services.settings.direct_url is not None:
        return services.settings.direct_url.rstrip("/")
    host = call.header(b"host")
    if services.settings.public_url is not None or host is None or not _HOST.fullmatch(host):
        return services.base_url + paths.WRITES
    return f"{call.scope.get('scheme', 'http')}://{host}{paths.WRITES}"


class OutRecord(msgspec.Struct, kw_only=True):
    """One record: exactly one of `data`, `control` and `trim`."""

    data: msgspec.Raw | UnsetType = UNSET
    partId: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    control: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET
    headers: list[tuple[str, str]] = []
    trim: Annotated[int, Meta(ge=0, le=2**62)] | UnsetType = UNSET


class OutRecords(msgspec.Struct):
    """Body of `POST …/out/records`."""

    records: Annotated[list[OutRecord], Meta(min_length=1, max_length=1000)]


async def append_records(call: Call, io: Io, send: Send) -> Answer:
    """POST …/out/records: records as readers expect them, from guests.

    `protocol/paths.py` describes the body.
    """
    caller = await call.authenticate(public=True)
    call.check_size(limits.APPEND_BODY_BYTES_MAX)
    key = call.params["session"]
    call.shape = Shape.CHANNEL
    require_secret(caller, NO_OUT)
    if io != "out":
        raise params_error("records are appended to out")
    session = await call.services.sessions.find(caller.environment_id, key)
    if session is None:
        raise SessionNotFound("Resource not found")
    call.services.inbox.check_open(session)
    body = await call.body(limits.APPEND_BODY_BYTES_MAX)
    records = [_new_record(call, item) for item in _decode_records(body).records]
    channel = ChannelName(session.environment_id, session.key, "out")
    appended = await call.services.outbox.append_guest(channel, records)
    return answer({"ok": True, "seqNums": appended.seq_nums})


def _decode_records(body: bytes) -> OutRecords:
    if nesting.too_deep(body):
        raise InvalidRequest(nesting.TOO_DEEP)
    try:
        # As text: what a record holds is kept as it was sent, so nothing else looks whether it is
        # UTF-8, and a reader could not decode the batch it is in.
        return msgspec.json.decode(body.decode("utf-8"), type=OutRecords)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Validation error: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("Invalid JSON") from None


def _new_record(call: Call, item: OutRecord) -> NewRecord:
    """A record of ours from what was posted. Raises InvalidRequest for none of the three kinds."""
    given: list[Any] = [v for v in (item.data, item.control, item.trim) if v is not UNSET]
    if len(given) != 1:
        raise InvalidRequest("Validation error: a record is one of data, control or trim")
    if isinstance(item.data, msgspec.Raw):
        part = item.partId or call.services.ids.part(7)
        record = NewRecord(data_body(bytes(item.data), part), (), part)
    elif isinstance(item.control, str):
        if any(not name for name, _ in item.headers):
            raise InvalidRequest("Validation error: a header has an empty name")
        plain = control_record(item.control, item.headers)
        record = NewRecord(plain.body, plain.headers, item.partId)
    elif isinstance(item.trim, int):
        record = trim_record(item.trim)
    else:
        raise AssertionError("exactly one of the three is set")
    size = metered_bytes(record.headers, record.body)
    if size > limits.RECORD_BYTES_MAX:
        raise call.services.inbox.too_large(size)
    return record


def _forms(key: str, session: Session | None) -> tuple[tuple[str, str | None], ...]:
    """Both forms of a session's id, and the one in the URL when there is no session."""
    if session is None:
        return session_resources(key)
    return session_resources(key, session.id, session.external_id)


#: By what follows the channel in the path, then by method.
TABLE: Final[dict[bytes, dict[str, Endpoint]]] = {
    b"": {"GET": follow, "HEAD": exists, "PUT": initialize},
    b"append": {"POST": append},
    b"records": {"GET": read_json, "POST": append_records},
}
