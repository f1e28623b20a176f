"""Exceptions as HTTP answers: the one place where a status and a body are chosen.

Handlers raise; nobody else builds an error body. The rules (wire-protocol §1.1, §5, §17.4):

* The class of the exception gives the status: what the caller should do next is what both say.
* A body is `{"error": "<text>"}`. Channel routes add `"ok": false`. A few routes answer plain
  text. Which of the three is the route's `Shape`.
* Clients of the original retry 409 and every 5xx, and `x-should-retry` overrides that in both
  directions. A conflict that repeating cannot cure carries `false`. An exception may say itself
  by a detail named `should_retry`.
* An exception that is not ours says nothing about itself to the outside: 500, a fixed text.

Every answer depends on the exception and the shape alone, so a table of both is the test.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from everturn.errors import (
    Conflict,
    EverturnError,
    Fenced,
    InvalidRequest,
    LeaseLost,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    SessionClosedError,
    TooLarge,
    Unavailable,
    Unprocessable,
)

_encode = msgspec.json.encode


class Shape(Enum):
    """How a route words its errors."""

    PLAIN = "plain"  # {"error": …}
    CHANNEL = "channel"  # {"ok": false, "error": …}
    TEXT = "text"


class Problem(NamedTuple):
    """An error answer, ready to be sent."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


class MethodNotAllowed(InvalidRequest):
    """The path exists, the method does not (HTTP 405). `.details`: allow."""

    code = "method_not_allowed"


class LengthRequired(InvalidRequest):
    """The size of the body must be declared (HTTP 411)."""

    code = "length_required"


class UnsupportedMediaType(InvalidRequest):
    """The body is of another type than this route takes (HTTP 415)."""

    code = "unsupported_media_type"


class NotImplementedHere(Unprocessable):
    """The route exists, and this server cannot serve it (HTTP 501)."""

    code = "not_implemented"


class RateLimited(Unavailable):
    """Too many requests for this credential (HTTP 429). `.details`: limit, remaining, reset_ms."""

    code = "rate_limited"


#: First match wins, so subclasses stand before their parents.
STATUSES: Final[tuple[tuple[type[EverturnError], int], ...]] = (
    (MethodNotAllowed, 405),
    (LengthRequired, 411),
    (UnsupportedMediaType, 415),
    (NotImplementedHere, 501),
    (RateLimited, 429),
    (TooLarge, 413),
    (InvalidRequest, 400),
    (Unprocessable, 422),
    (NotAuthenticated, 401),
    (NotAllowed, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Fenced, 409),
    (LeaseLost, 409),
    (Unavailable, 503),
)

JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"
#: What an insufficient scope is answered with; other refusals carry their own text.
UNAUTHORIZED: Final = "Unauthorized"


def status_of(error: BaseException) -> int:
    """The HTTP status of an exception; 500 for one that is not ours."""
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return status
    return 500


def problem(error: BaseException, shape: Shape = Shape.PLAIN) -> Problem:
    """The answer for an exception on a route of that shape."""
    status = status_of(error)
    headers = _headers(error, status)
    if isinstance(error, RateLimited):
        return Problem(429, _rate_limited(error), (_type(b"application/problem+json"), *headers))
    text = error.message if status != 500 and isinstance(error, EverturnError) else _hidden(shape)
    if shape is Shape.TEXT:
        return Problem(status, text.encode(), (_type(TEXT), *headers))
    body: dict[str, Any] = {"ok": False} if shape is Shape.CHANNEL else {}
    body["error"] = text
    if isinstance(error, NotAllowed) and text == UNAUTHORIZED:
        body |= {"code": "unauthorized", "param": "access_token", "type": "authorization"}
    if isinstance(error, EverturnError) and "problems" in error.details:
        body["details"] = error.details["problems"]
    if isinstance(error, SessionClosedError) and shape is Shape.CHANNEL:
        body["code"] = SessionClosedError.code
        if error.details.get("reason") is not None:
            body["closedReason"] = error.details["reason"]
    return Problem(status, _encode(body), (_type(JSON), *headers))


def _hidden(shape: Shape) -> str:
    return "Something went wrong" if shape is Shape.CHANNEL else "Internal Server Error"


def _type(value: bytes) -> tuple[bytes, bytes]:
    return (b"content-type", value)


def _headers(error: BaseException, status: int) -> tuple[tuple[bytes, bytes], ...]:
    if not isinstance(error, EverturnError):
        return ()
    headers: list[tuple[bytes, bytes]] = []
    retry = error.details.get("should_retry")
    if retry is None and status == 409:
        retry = False
    if retry is not None:
        headers.append((b"x-should-retry", b"true" if retry else b"false"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", str(error.details["allow"]).encode("ascii")))
    if isinstance(error, Unavailable):
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    return tuple(headers)


def _rate_limited(error: RateLimited) -> bytes:
    """The body of a 429, as clients of the original know it (wire-protocol §17.6)."""
    seconds = max(1, round(error.retry_after_s))
    return _encode(
        {
            "title": "Rate Limit Exceeded",
            "status": 429,
            "type": "https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/429",
            "detail": f"Rate limit exceeded: try again in {seconds} seconds",
            "reset": error.details["reset_ms"],
            "limit": error.details["limit"],
            "remaining": error.details["remaining"],
            "secondsUntilReset": seconds,
            "error": f"Rate limit exceeded, retry in {seconds} seconds",
        }
    )
