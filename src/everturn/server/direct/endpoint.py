"""The write endpoint: appends to a stream as its store would take them (wire-protocol §7).

    POST <base>/streams/:name/records       content-type        answer
         framed session                     s2s/proto           200 at once, an ack per frame
         one append                         application/protobuf   200 AppendAck
         one append                         application/json       200 AppendAck as JSON

`<base>` is what the answer to `PUT /realtime/v1/sessions/:session/:io` names. The stream's name
and the bearer token come from there too (`server/services/direct.py`). Nothing here depends on
the version of HTTP: Node sends its sessions over HTTP/2, browsers their appends over HTTP/1.1,
and a proxy may turn the one into the other.

A session's appends are made one after another, each durable before its ack is sent, so acks come
in the order of the frames. A client that sends faster than the store writes is held back: the
next bytes are asked for when everything before them is stored. It ends when the client has ended
its request. A refusal ends it too: what was acked stays, the refused batch and those behind it
are not stored, and a last frame says why.

Refusals look as the store's do, `{"code", "message"}`. Its clients repeat 408, 429 and 5xx other
than 501, and give up on the rest; `protocol/problems.py` chooses the status.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import anyio

from everturn.errors import EverturnError, InvalidRequest, NotFound
from everturn.protocol import paths
from everturn.protocol.problems import MethodNotAllowed, status_of
from everturn.protocol.s2_frames import (
    FRAME_BYTES_MAX,
    JSON_BYTES_MAX,
    Frame,
    FrameReader,
    decode_input,
    decode_input_json,
    encode_ack,
    encode_ack_json,
    encode_error,
    encode_frame,
    encode_last_frame,
)
from everturn.server.auth import bearer
from everturn.server.routes.calls import (
    JSON,
    SERVICES,
    Answer,
    Call,
    Disconnected,
    cors_headers,
    decode_segment,
    origin_of,
    preflight,
    respond,
)
from everturn.server.services.direct import FencingTokenMismatch

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from everturn.server.services.direct import Ticket

log = logging.getLogger("everturn.server")

PREFIX: Final = f"{paths.WRITES}/streams/".encode()

#: How long a session may go without a frame.
IDLE_S: Final = 600.0

_SESSION: Final = "s2s/proto"
_PROTOBUF: Final = "application/protobuf"
_PROTOBUF_TYPE: Final = (b"content-type", b"application/protobuf")
_SESSION_TYPE: Final = (b"content-type", b"s2s/proto")
_HIDDEN: Final = "Something went wrong"


async def direct(scope: Scope, receive: Receive, send: Send) -> None:
    """Append to a stream as its store is written, once or in a session. All of `PREFIX`."""
    origin = origin_of(scope)
    if scope["method"] == "OPTIONS":
        await respond(send, preflight(scope), None)
        return
    call = Call(scope[SERVICES], scope, receive, {})
    try:
        ticket = _admit(call)
        kind = (call.header(b"content-type") or "application/json").partition(";")[0].strip()
        if kind == _SESSION:
            await _session(call, ticket, send)
            return
        result = await _unary(call, ticket, kind)
    except Disconnected:
        return
    except Exception as error:
        status, body = refusal(error)
        result = Answer(status, body, (JSON, *_allow(error)))
    await respond(send, result, origin)


def _admit(call: Call) -> Ticket:
    """Whose request this is, once path and method are those of an append."""
    name, _, rest = call.scope["raw_path"][len(PREFIX) :].partition(b"/")
    if rest != b"records":
        raise NotFound("there is only …/streams/:name/records")
    if call.scope["method"] != "POST":
        raise MethodNotAllowed("streams are read through the API of sessions", allow="POST")
    token = bearer(call.header(b"authorization"))
    return call.services.direct.open(token, decode_segment(name))


# --- one append ----------------------------------------------------------------------------------


async def _unary(call: Call, ticket: Ticket, kind: str) -> Answer:
    if kind == _PROTOBUF:
        asked = decode_input(await call.body(FRAME_BYTES_MAX))
        ack = await call.services.direct.append(ticket, asked)
        return Answer(200, encode_ack(ack), (_PROTOBUF_TYPE,))
    if kind != "application/json":
        raise InvalidRequest(f"content type {kind!r} is not {_SESSION}, {_PROTOBUF} or JSON")
    if call.header(b"s2-format") not in (None, "raw"):
        raise InvalidRequest("of the formats of records in JSON only raw is served")
    asked = decode_input_json(await call.body(JSON_BYTES_MAX))
    ack = await call.services.direct.append(ticket, asked)
    return Answer(200, encode_ack_json(ack), (JSON,))


# --- a session -----------------------------------------------------------------------------------


async def _session(call: Call, ticket: Ticket, send: Send) -> None:
    with call.services.direct.session():
        headers = [_SESSION_TYPE, *cors_headers(origin_of(call.scope))]
        # At once, and before any frame: the client waits for them with its second batch.
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        last = b""
        try:
            async for frame in _frames(call.receive):
                ack = await _append(call, ticket, frame)
                await send({"type": "http.response.body", "body": ack, "more_body": True})
        except Disconnected:
            return
        except Exception as error:
            last = encode_last_frame(*refusal(error))
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _append(call: Call, ticket: Ticket, frame: Frame) -> bytes:
    if frame.is_compressed:
        raise InvalidRequest("compressed frames are not served")
    ack = await call.services.direct.append(ticket, decode_input(frame.body))
    return encode_frame(encode_ack(ack))


async def _frames(receive: Receive) -> AsyncIterator[Frame]:
    """The client's frames until it ends its request, or says with a frame that it was the last.

    A client that sends nothing for `IDLE_S` has its session ended in good order: it opens another
    when it has something to write, and a peer that vanished holds no place for ever.

    Raises Disconnected when the client went away, InvalidRequest when it ended within a frame.
    """
    reader = FrameReader()
    more = True
    while more:
        with anyio.move_on_after(IDLE_S) as waiting:
            message = await receive()
        if waiting.cancelled_caught:
            break
        if message["type"] != "http.request":
            raise Disconnected
        more = message.get("more_body", False)
        reader.feed(message.get("body", b""))
        for frame in reader.frames():
            if frame.is_terminal:
                return
            yield frame
    if not reader.is_empty:
        raise InvalidRequest("the request ends within a frame")


# --- refusals ------------------------------------------------------------------------------------


def refusal(error: Exception) -> tuple[int, bytes]:
    """Status and body for an exception. One that is not ours is logged, and says nothing."""
    if isinstance(error, FencingTokenMismatch):
        expected: dict[str, Any] = {error.code: error.expected}
        return 412, encode_error(error.code, error.message, expected)
    status = status_of(error)
    if isinstance(error, EverturnError) and status != 500:
        return status, encode_error(error.code, error.message)
    log.error("direct.failed", exc_info=error)
    return 500, encode_error("internal", _HIDDEN)


def _allow(error: Exception) -> tuple[tuple[bytes, bytes], ...]:
    if isinstance(error, MethodNotAllowed):
        return ((b"allow", b"POST, OPTIONS"),)
    return ()
