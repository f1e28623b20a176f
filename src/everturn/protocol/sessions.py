"""Sessions as they are said on the wire: request bodies, response items (wire-protocol §4).

Requests are decoded and checked in one step; a value out of its bounds is an InvalidRequest that
names the member. Unknown members are ignored. In responses, members that may be null are always
present, because the original's clients insist on the key (§19).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from everturn.errors import InvalidRequest
from everturn.protocol import nesting

# These repeat rules/limits.py, which stands above this package; a unit test compares them.
Tag = Annotated[str, Meta(min_length=1, max_length=128)]
SessionTags = Annotated[list[Tag], Meta(max_length=10)]
ConfigTags = Annotated[list[Tag], Meta(max_length=5)]
TaskId = Annotated[str, Meta(min_length=1, max_length=128)]
Machine = Literal["micro", "small-1x", "small-2x", "medium-1x", "medium-2x", "large-1x", "large-2x"]
EXTERNAL_ID_CHARS_MAX = 256
RESERVED_PREFIX = "session_"


class TriggerConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How runs of a session are triggered (§4.1)."""

    basePayload: dict[str, Any]
    machine: Machine | UnsetType = UNSET
    queue: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET
    tags: ConfigTags | UnsetType = UNSET
    maxAttempts: Annotated[int, Meta(ge=1, le=10)] | UnsetType = UNSET
    maxDuration: Annotated[int, Meta(gt=0, le=2**31 - 1)] | UnsetType = UNSET
    lockToVersion: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    idleTimeoutInSeconds: Annotated[int, Meta(ge=1, le=3600)] | UnsetType = UNSET

    def wire(self) -> dict[str, Any]:
        """As stored and as answered: absent members are left out."""
        stored: dict[str, Any] = msgspec.to_builtins(self)
        return stored


class CreateSession(msgspec.Struct, kw_only=True):
    """Body of `POST /api/v1/sessions` (§4.2)."""

    type: Annotated[str, Meta(min_length=1, max_length=64)]
    taskIdentifier: TaskId
    triggerConfig: TriggerConfig
    externalId: str | None = None
    tags: SessionTags = []
    metadata: dict[str, Any] | None = None
    expiresAt: str | int | float | None = None

    @property
    def external_id(self) -> str | None:
        """The trimmed external id. Raises InvalidRequest for one that may not be used."""
        if self.externalId is None:
            return None
        name = self.externalId.strip()
        if not 1 <= len(name) <= EXTERNAL_ID_CHARS_MAX:
            raise InvalidRequest(
                f"Validation error: externalId has {len(name)} characters, "
                f"it takes 1 to {EXTERNAL_ID_CHARS_MAX} - at `$.externalId`"
            )
        if "\0" in name:
            raise InvalidRequest("Validation error: externalId holds a NUL - at `$.externalId`")
        if name.startswith(RESERVED_PREFIX):
            raise InvalidRequest(
                f"Validation error: externalId cannot start with '{RESERVED_PREFIX}' "
                "(reserved for internal session ids) - at `$.externalId`"
            )
        return name

    @property
    def expires_at_ms(self) -> int | None:
        """Raises InvalidRequest for text that is no date."""
        return None if self.expiresAt is None else parse_date(self.expiresAt, "expiresAt")


class UpdateSession(msgspec.Struct, kw_only=True):
    """Body of `PATCH /api/v1/sessions/:session` (§4.5)."""

    tags: SessionTags | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    externalId: str | UnsetType | None = UNSET


class CloseSession(msgspec.Struct, kw_only=True):
    """Body of `POST …/close` (§4.6)."""

    reason: Annotated[str, Meta(max_length=256)] | None = None


class EndAndContinue(msgspec.Struct, kw_only=True):
    """Body of `POST …/end-and-continue` (§4.7)."""

    callingRunId: Annotated[str, Meta(min_length=1)]
    reason: Annotated[str, Meta(min_length=1, max_length=64)] = "manual"


BodyT = TypeVar("BodyT")


def decode(body: bytes, kind: type[BodyT]) -> BodyT:
    """One JSON body as its type.

    Raises InvalidRequest: `Request body is empty`, `JSON may nest …`, `Invalid JSON` (falsy JSON
    too) or `Validation error: …` (wire-protocol §1.1 step 8).
    """
    if not body.strip():
        raise InvalidRequest("Request body is empty")
    if nesting.too_deep(body):
        raise InvalidRequest(nesting.TOO_DEEP)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("Invalid JSON") from None
    if value is None or value is False or value == 0 or value == "":
        raise InvalidRequest("Invalid JSON")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Validation error: {error}") from None
    except RecursionError:
        raise InvalidRequest("Invalid JSON") from None


#: The first and the last time that a date of four digits can name in UTC, epoch ms.
DATE_MS_MIN: Final = -62_135_596_800_000
DATE_MS_MAX: Final = 253_402_300_799_999


def iso(ms: int) -> str:
    """A time as REST bodies have it: ISO-8601 UTC with milliseconds and `Z` (§2.2)."""
    seconds, millis = divmod(ms, 1000)
    # Not by a format: `%Y` leaves out the zeros of years before 1000 on some systems.
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{millis:03d}Z"


def iso_or_none(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


def parse_date(value: str | int | float, name: str) -> int:
    """Epoch ms of an ISO date, or of a number of milliseconds. Raises InvalidRequest.

    A time without a zone is taken as UTC, so that it means the same on every server.
    """
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            at_ms = round(moment.timestamp() * 1000)
        else:
            at_ms = round(datetime.fromtimestamp(value / 1000, UTC).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        at_ms = None
    # A zone or a rounding can lead past either end, and then no answer could show the date.
    if at_ms is None or not DATE_MS_MIN <= at_ms <= DATE_MS_MAX:
        raise InvalidRequest(f"Validation error: Invalid date - at `$.{name}`")
    return at_ms


class SessionRow(Protocol):
    """What an item is made from; `storage.ports.rows.Session` is one. Times are epoch ms."""

    @property
    def id(self) -> str: ...
    @property
    def external_id(self) -> str | None: ...
    @property
    def type(self) -> str: ...
    @property
    def task_id(self) -> str: ...
    @property
    def trigger_config(self) -> Mapping[str, Any]: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def metadata(self) -> Mapping[str, Any] | None: ...
    @property
    def created_at_ms(self) -> int: ...
    @property
    def updated_at_ms(self) -> int: ...
    @property
    def expires_at_ms(self) -> int | None: ...
    @property
    def closed_at_ms(self) -> int | None: ...
    @property
    def closed_reason(self) -> str | None: ...
    @property
    def current_run_id(self) -> str | None: ...


def session_item(row: SessionRow, *, with_config: bool = True) -> dict[str, Any]:
    """SessionItem (§4.1) of a row; lists leave the trigger config out."""
    item: dict[str, Any] = {
        "id": row.id,
        "externalId": row.external_id,
        "type": row.type,
        "taskIdentifier": row.task_id,
    }
    if with_config:
        item["triggerConfig"] = row.trigger_config
    item |= {
        "currentRunId": row.current_run_id,
        "tags": list(row.tags),
        "metadata": row.metadata,
        "closedAt": iso_or_none(row.closed_at_ms),
        "closedReason": row.closed_reason,
        "expiresAt": iso_or_none(row.expires_at_ms),
        "createdAt": iso(row.created_at_ms),
        "updatedAt": iso(row.updated_at_ms),
    }
    return item
