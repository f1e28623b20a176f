"""Exceptions as answers: one table of both."""

from __future__ import annotations

import msgspec
import pytest

from everturn import errors
from everturn.protocol.problems import (
    MethodNotAllowed,
    NotImplementedHere,
    RateLimited,
    Shape,
    problem,
)
from everturn.protocol.sessions import iso, parse_date


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest("x"), 400),
        (errors.NotAuthenticated("x"), 401),
        (errors.NotAllowed("x"), 403),
        (errors.SessionNotFound("x"), 404),
        (errors.RunNotFound("x"), 404),
        (MethodNotAllowed("x", allow="GET"), 405),
        (errors.SessionClosedError("x"), 409),
        (errors.CursorTrimmed(3), 409),
        (errors.Fenced("x"), 409),
        (errors.TooLarge("x"), 413),
        (errors.Unprocessable("x"), 422),
        (RateLimited("x", limit=1, remaining=0, reset_ms=1), 429),
        (errors.ProtocolError("secret"), 500),
        (ValueError("secret"), 500),
        (NotImplementedHere("x"), 501),
        (errors.Unavailable("x"), 503),
    ],
)
def test_the_class_of_an_exception_gives_the_status(error: Exception, status: int) -> None:
    # W-4
    for shape in Shape:
        found = problem(error, shape)
        assert found.status == status
        assert b"secret" not in found.body


def test_the_shape_of_a_route_words_the_error() -> None:
    error = errors.InvalidRequest("no")
    assert problem(error).body == b'{"error":"no"}'
    assert problem(error, Shape.CHANNEL).body == b'{"ok":false,"error":"no"}'
    assert problem(error, Shape.TEXT).body == b"no"


def test_a_conflict_is_not_repeated_unless_it_says_so() -> None:
    # W-4
    assert (b"x-should-retry", b"false") in problem(errors.Conflict("x")).headers
    retried = problem(errors.NotFound("x", should_retry=True))
    assert (b"x-should-retry", b"true") in retried.headers
    assert not any(name == b"x-should-retry" for name, _ in problem(errors.NotFound("x")).headers)


def test_an_unavailable_store_says_when_to_come_back() -> None:
    assert (b"retry-after", b"3") in problem(errors.Unavailable("x", retry_after_s=3)).headers


def test_a_closed_session_says_why_on_channels_only() -> None:
    error = errors.SessionClosedError("closed", reason="done")
    assert msgspec.json.decode(problem(error, Shape.CHANNEL).body) == {
        "ok": False,
        "error": "closed",
        "code": "session_closed",
        "closedReason": "done",
    }
    assert problem(error).body == b'{"error":"closed"}'


def test_times_have_milliseconds_and_a_z() -> None:
    # W-11
    assert iso(1_776_900_000_000) == "2026-04-22T23:20:00.000Z"
    assert iso(1_776_900_000_007) == "2026-04-22T23:20:00.007Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-04-22T23:20:00Z",
        "2026-04-22T23:20:00.000Z",
        "2026-04-23T01:20:00+02:00",
        1776900000000,
    ],
)
def test_dates_are_read_in_every_spelling_clients_send(text: str | int) -> None:
    assert parse_date(text, "expiresAt") == 1_776_900_000_000


def test_bounds_in_request_types_are_those_of_the_limits() -> None:
    from everturn.protocol import sessions
    from everturn.rules import limits

    def length(kind: object) -> int:
        found = msgspec.inspect.type_info(kind).max_length  # type: ignore[union-attr]
        assert isinstance(found, int)
        return found

    assert length(sessions.Tag) == limits.TAG_CHARS_MAX
    assert length(sessions.SessionTags) == limits.SESSION_TAGS_MAX
    assert length(sessions.ConfigTags) == limits.CONFIG_TAGS_MAX
    assert length(sessions.TaskId) == limits.TASK_ID_CHARS_MAX
    assert sessions.EXTERNAL_ID_CHARS_MAX == limits.EXTERNAL_ID_CHARS_MAX
