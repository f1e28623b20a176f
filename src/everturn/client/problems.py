"""From an error answer to the exception that tells the caller what to do.

The status decides the class, the kind of thing asked for sharpens it. Whatever is not a mistake
in the request is an `ApiError` with `status` and `body`. The other classes carry `status` in
`.details`. Messages are the server's own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from everturn import errors

Subject = Literal["session", "run", "task", "other"]

_NOT_FOUND: Final[dict[Subject, type[errors.NotFound]]] = {
    "session": errors.SessionNotFound,
    "run": errors.RunNotFound,
    "task": errors.TaskNotFound,
    "other": errors.NotFound,
}
_BY_STATUS: Final[dict[int, type[errors.RequestError]]] = {
    400: errors.InvalidRequest,
    401: errors.NotAuthenticated,
    403: errors.NotAllowed,
    405: errors.InvalidRequest,
    413: errors.TooLarge,
    422: errors.Unprocessable,
}


def error_for(
    status: int,
    content: bytes,
    *,
    subject: Subject = "other",
    headers: Mapping[str, str] | None = None,
) -> errors.EverturnError:
    """The exception for an answer with an error status; it keeps the answer's headers."""
    kept = {name.lower(): value for name, value in (headers or {}).items()}
    error = _error_for(status, decode_body(content), subject)
    if isinstance(error, errors.ApiError | errors.RequestError):
        error.headers = kept
    return error


def _error_for(status: int, body: Any, subject: Subject) -> errors.EverturnError:
    message = f"{_message(body)} (HTTP {status})"
    if subject == "session" and status in (400, 409) and _refused(body):
        reason = body.get("closedReason") if isinstance(body, dict) else None
        return errors.SessionClosedError(message, status=status, reason=reason)
    if status == 404:
        return _NOT_FOUND[subject](message, status=status)
    if status == 409:
        return errors.Conflict(message, status=status)
    known = _BY_STATUS.get(status)
    if known is not None:
        return known(message, status=status)
    return errors.ApiError(message, status=status, body=body)


def status_of(error: errors.EverturnError) -> int | None:
    """The HTTP status an exception of this module came from."""
    if isinstance(error, errors.ApiError):
        return error.status
    status = error.details.get("status")
    return status if isinstance(status, int) else None


def decode_body(content: bytes) -> Any:
    """An error body as JSON, or as text when it is none."""
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return content[:1000].decode("utf-8", "replace")


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) and error else "the server answered with an error"


def _refused(body: Any) -> bool:
    """Whether this is the refusal of a closed or expired session.

    Servers of this protocol have said it in three ways: 400 and 409 with text, 409 with a code.
    """
    if not isinstance(body, dict):
        return False
    text = body.get("error")
    return body.get("code") == "session_closed" or (
        isinstance(text, str)
        and ("closed session" in text or "expired session" in text or text.startswith("Session is"))
    )
