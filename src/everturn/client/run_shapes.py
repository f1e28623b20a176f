"""Following runs: a long poll per change, rows of text to runs (wire-protocol §12).

The initial request answers every row; each one after it carries the offset of the answer before
and is held until something differs. A server that does not know the offset any more says 409, and
the subscription begins again; whoever follows then sees the present state once more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from everturn.client.api import Api
from everturn.errors import Conflict, ProtocolError

#: Column values of the original's own states, as the API names them (§9.4).
_STATUS: Final = {
    "PENDING": "QUEUED",
    "WAITING_FOR_DEPLOY": "PENDING_VERSION",
    "PAUSED": "WAITING",
    "WAITING_TO_RESUME": "WAITING",
    "RETRYING_AFTER_FAILURE": "EXECUTING",
    "COMPLETED_SUCCESSFULLY": "COMPLETED",
    "COMPLETED_WITH_ERRORS": "FAILED",
    "INTERRUPTED": "FAILED",
}
_FAILED: Final = frozenset(
    {"CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "EXPIRED", "TIMED_OUT"}
)
_DATES: Final = {
    "createdAt": "createdAt",
    "updatedAt": "updatedAt",
    "startedAt": "startedAt",
    "completedAt": "finishedAt",
    "delayUntil": "delayedUntil",
    "expiredAt": "expiredAt",
}


class _Message(msgspec.Struct):
    """A row, or a control message, which has neither member."""

    key: str | UnsetType = UNSET
    value: dict[str, str | None] | UnsetType = UNSET


_decode_messages = msgspec.json.Decoder(list[_Message]).decode


async def follow(api: Api, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Runs as `runs.retrieve` answers them, first as they are, then after each change.

    Never ends by itself. Raises RunNotFound or NotFound, and ApiError when the server is away for
    longer than the tries of a call.
    """
    fresh = {"log": "full", "offset": "-1", **query}
    ask = fresh
    # A server may tell only what changed of a row.
    rows: dict[str, dict[str, str | None]] = {}
    while True:
        try:
            response = await api.shape(path, ask)
        except Conflict:
            ask, rows = fresh, {}
            continue
        for key, value in changes_of(response.content):
            rows[key] = {**rows.get(key, {}), **value}
            yield body_of(rows[key])
        headers = response.headers
        try:
            ask = {
                **fresh,
                "offset": headers["electric-offset"],
                "handle": headers["electric-handle"],
                "live": "true",
            }
        except KeyError as error:
            raise ProtocolError(f"the subscription has no {error} header") from error
        if "electric-cursor" in headers:
            ask["cursor"] = headers["electric-cursor"]


def changes_of(content: bytes) -> list[tuple[str, dict[str, str | None]]]:
    """The rows of one answer of a subscription, by key. Raises ProtocolError when it is none."""
    try:
        return [
            (one.key, one.value)
            for one in _decode_messages(content)
            if isinstance(one.key, str) and isinstance(one.value, dict)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the subscription's answer does not read: {error}") from error


def body_of(row: Mapping[str, str | None]) -> dict[str, Any]:
    """A row as the body of a run. Columns that were left out have no member.

    Raises ProtocolError for a column of JSON that is none.
    """
    internal = row.get("status") or "PENDING"
    status = _STATUS.get(internal, internal)
    body: dict[str, Any] = {
        "id": row.get("friendlyId"),
        "status": status,
        "taskIdentifier": row.get("taskIdentifier"),
        "isQueued": status in ("QUEUED", "DELAYED", "PENDING_VERSION"),
        "isExecuting": status in ("EXECUTING", "DEQUEUED"),
        "isWaiting": status == "WAITING",
        "isCompleted": status == "COMPLETED" or status in _FAILED,
        "isSuccess": status == "COMPLETED",
        "isFailed": status in _FAILED,
        "isCancelled": status == "CANCELED",
        "isTest": row.get("isTest") in ("t", "true"),
        "tags": _array(row.get("runTags") or "{}"),
    }
    for column, name in _DATES.items():
        value = row.get(column)
        if value is not None:
            body[name] = f"{value}Z"
    for name in ("payload", "output"):
        value = row.get(name)
        if value is not None:
            body[name] = _packet(value, row.get(f"{name}Type") or "application/json")
    for name in ("metadata", "error"):
        value = row.get(name)
        if value is not None:
            body[name] = _json(name, value)
    if row.get("idempotencyKey") is not None:
        body["idempotencyKey"] = row["idempotencyKey"]
    return body


def _json(column: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"the column {column} of a run does not read: {error}") from error


def _packet(text: str, kind: str) -> Any:
    if kind.startswith("text/plain") or kind == "application/store":
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    if kind == "application/super+json" and isinstance(value, dict) and "json" in value:
        return value["json"]
    return value


def _array(text: str) -> list[str]:
    """The members of a text array, `{a,"b c"}`; a backslash keeps the next character."""
    values: list[str] = []
    held: list[str] = []
    quoted = kept = False
    for character in text[1:-1]:
        if kept:
            held.append(character)
            kept = False
        elif character == "\\":
            kept = True
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            values.append("".join(held))
            held = []
        else:
            held.append(character)
    if held or values or text == '{""}':
        values.append("".join(held))
    return values
