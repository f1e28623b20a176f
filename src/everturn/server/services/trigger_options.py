"""The body of a trigger, checked and turned into a new run (wire-protocol §9.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from everturn.errors import InvalidRequest, TooLarge, Unprocessable
from everturn.protocol import nesting
from everturn.protocol.sessions import parse_date
from everturn.rules import durations, limits
from everturn.storage.ports.debouncing import Debounce

#: The type of a payload that is the name of a packet (wire-protocol §11).
STORED: Final = "application/store"
#: How long an idempotency key finds its run when nobody says otherwise.
KEY_LIFETIME_S: Final = 30 * 24 * 3600
_QUEUE_CHARS_MAX: Final = 128
_DURATION_S_MIN: Final = 5


class QueueOption(msgspec.Struct, frozen=True):
    name: str


class DebounceOption(msgspec.Struct, frozen=True, rename="camel"):
    key: str
    delay: str
    mode: Literal["leading", "trailing"] = "leading"
    max_delay: str | None = None


class TriggerOptions(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`options` of a trigger. Members that are not named here are accepted and left out."""

    payload_type: str = "application/json"
    queue: QueueOption | str | None = None
    concurrency_key: str | int | float | None = None
    delay: str | int | float | None = None
    idempotency_key: str | None = None
    idempotency_key_ttl: str | None = msgspec.field(name="idempotencyKeyTTL", default=None)
    idempotency_key_options: dict[str, Any] | None = None
    max_attempts: int | None = None
    max_duration: int | None = None
    machine: str | None = None
    priority: float | None = None
    ttl: str | int | float | None = None
    debounce: DebounceOption | None = None
    tags: list[str] | str | None = None
    metadata: Any = None
    metadata_type: str | None = None
    lock_to_version: str | None = None
    test: bool = False
    parent_run_id: str | None = None
    resume_parent_on_completion: bool = False


class TriggerBody(msgspec.Struct, frozen=True):
    payload: Any = msgspec.UNSET
    context: Any = None
    options: TriggerOptions = TriggerOptions()


def parse_body(body: Mapping[str, Any]) -> TriggerBody:
    """The body, with everything that can be checked without a store.

    Raises:
        InvalidRequest: malformed, or the idempotency key is too long (400).
        Unprocessable: a rule forbids it: tags, attempts, durations (422).
        TooLarge: payload or metadata over their limits.
    """
    try:
        parsed = msgspec.convert({**body, "options": body.get("options") or {}}, TriggerBody)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid request body: {error}") from error
    options = parsed.options
    key = options.idempotency_key
    if key is not None and not 1 <= len(key) <= limits.IDEMPOTENCY_KEY_CHARS_MAX:
        raise InvalidRequest(
            f"idempotencyKey has {len(key)} characters, "
            f"1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} are allowed"
        )
    tags_of(options)
    if options.max_attempts is not None and options.max_attempts < 1:
        raise Unprocessable("maxAttempts is at least 1")
    if options.max_duration is not None and options.max_duration < _DURATION_S_MIN:
        raise Unprocessable(f"maxDuration is at least {_DURATION_S_MIN} seconds")
    _check_numbers(options)
    return parsed


def _check_numbers(options: TriggerOptions) -> None:
    """What an engine cannot hold is refused here, where it can be said which number it was."""
    for name, value in (
        ("maxAttempts", options.max_attempts),
        ("maxDuration", options.max_duration),
        ("priority", options.priority),
    ):
        if value is not None and not abs(value) <= limits.OPTION_NUMBER_MAX:
            raise Unprocessable(f"{name} is at most {limits.OPTION_NUMBER_MAX}")


def payload_of(body: TriggerBody) -> tuple[bytes, str]:
    """`(payload, its type)` as it is stored: packet text, or JSON made of a JSON value (§9.2)."""
    kind = body.options.payload_type
    value = body.payload
    if kind == STORED and (not isinstance(value, str) or not value):
        raise InvalidRequest(f"the payload of type {STORED} is the name of a packet")
    if value is msgspec.UNSET:
        data = b""
    elif isinstance(value, str) and kind != "application/json":
        data = value.encode()
    elif isinstance(value, str):
        # A client that names JSON sends packet text; a raw caller may mean the string itself.
        data = value.encode() if _is_json(value) else msgspec.json.encode(value)
    else:
        data = msgspec.json.encode(value)
    if len(data) > limits.TRIGGER_BODY_BYTES_MAX:
        raise TooLarge(
            f"the payload is {len(data)} bytes, at most {limits.TRIGGER_BODY_BYTES_MAX}",
            what="payload",
            bytes=len(data),
            bytes_max=limits.TRIGGER_BODY_BYTES_MAX,
        )
    return data, kind


def metadata_of(options: TriggerOptions) -> bytes | None:
    """The metadata as JSON text. Packet text is taken as it is.

    Raises InvalidRequest for a text that is no JSON, and TooLarge.
    """
    value = options.metadata
    if value is None:
        return None
    if isinstance(value, str) and options.metadata_type is not None:
        if not _is_json(value):
            raise InvalidRequest(f"the metadata of type {options.metadata_type!r} is no JSON")
        data = value.encode()
    else:
        data = msgspec.json.encode(value)
    if len(data) > limits.METADATA_BYTES_MAX:
        raise TooLarge(
            f"the metadata is {len(data)} bytes, at most {limits.METADATA_BYTES_MAX}",
            what="metadata",
            bytes=len(data),
            bytes_max=limits.METADATA_BYTES_MAX,
        )
    return data


def tags_of(options: TriggerOptions) -> tuple[str, ...]:
    """The tags, doubles left out. Raises Unprocessable past their number or length."""
    given = [options.tags] if isinstance(options.tags, str) else options.tags or []
    if len(given) > limits.RUN_TAGS_MAX:
        raise Unprocessable(
            f"Runs can only have {limits.RUN_TAGS_MAX} tags, you're trying to set {len(given)}."
        )
    for tag in given:
        if not 1 <= len(tag) <= limits.TAG_CHARS_MAX:
            raise Unprocessable(
                f"a tag has {len(tag)} characters, 1 to {limits.TAG_CHARS_MAX} are allowed"
            )
    return tuple(dict.fromkeys(given))


def queue_of(options: TriggerOptions) -> str | None:
    """The queue the caller names, cleaned as the original does; None when it names none."""
    name = options.queue.name if isinstance(options.queue, QueueOption) else options.queue
    if name is None:
        return None
    cleaned = "".join(c for c in name if c.isascii() and (c.isalnum() or c in "_-/"))
    if not cleaned or len(cleaned) > _QUEUE_CHARS_MAX:
        raise Unprocessable(f"{name!r} cannot be the name of a queue")
    return cleaned


def start_of(options: TriggerOptions, now_ms: int) -> int | None:
    """When a delayed run may start, epoch ms; None for at once and for dates in the past."""
    debounce = debounce_of(options)
    if debounce is not None:
        return now_ms + debounce.delay_ms
    return moment_of(options.delay, now_ms, "delay")


def debounce_of(options: TriggerOptions) -> Debounce | None:
    """How the trigger is debounced. Raises Unprocessable, naming what is wrong."""
    given = options.debounce
    if given is None:
        return None
    if not 1 <= len(given.key) <= limits.DEBOUNCE_KEY_CHARS_MAX:
        raise Unprocessable(
            f"debounce.key has {len(given.key)} characters, "
            f"1 to {limits.DEBOUNCE_KEY_CHARS_MAX} are allowed"
        )
    latest_ms = None
    if given.max_delay is not None:
        latest_ms = _duration_ms(given.max_delay, "debounce.maxDelay")
    return Debounce(
        key=given.key,
        delay_ms=_duration_ms(given.delay, "debounce.delay"),
        trailing=given.mode == "trailing",
        delay_ms_max=latest_ms,
    )


def ttl_of(options: TriggerOptions, declared: object) -> int | None:
    """How long a run may wait for its first start, in ms; None: for ever.

    The trigger's word wins over the task's `declared` one; 0 means for ever (tasks-and-runs §4.5).
    Raises Unprocessable for what is no duration.
    """
    value = options.ttl if options.ttl is not None else declared
    if not isinstance(value, str | int | float):
        return None
    return _duration_ms(value, "ttl", least_ms=0) or None


def _duration_ms(value: str | int | float, what: str, *, least_ms: int = 1) -> int:
    try:
        found_ms = round(durations.parse(value) * 1000)
    except InvalidRequest as error:
        raise Unprocessable(f"Invalid {what} {value!r}") from error
    if found_ms < least_ms:
        raise Unprocessable(f"Invalid {what} {value!r}: it must be longer than nothing")
    return found_ms


def moment_of(value: str | int | float | None, now_ms: int, what: str) -> int | None:
    """A duration from now or a date, as epoch ms; None for none and for dates in the past.

    Raises Unprocessable, naming `what`, for anything else.
    """
    if value is None:
        return None
    at_ms = _date_ms(value)
    if at_ms is None:
        try:
            at_ms = now_ms + round(durations.parse(value) * 1000)
        except InvalidRequest as error:
            raise Unprocessable(f"Invalid {what} {value!r}") from error
    return at_ms if at_ms > now_ms else None


def key_expiry(options: TriggerOptions, now_ms: int) -> int | None:
    """When the idempotency key is free again, epoch ms; None without a key."""
    if options.idempotency_key is None:
        return None
    lifetime_s = durations.idempotency_ttl(options.idempotency_key_ttl or "")
    return now_ms + (KEY_LIFETIME_S if lifetime_s is None else lifetime_s) * 1000


def _date_ms(value: str | int | float) -> int | None:
    if not isinstance(value, str) or not value[:4].isdigit() or "-" not in value:
        return None
    try:
        return parse_date(value, "")
    except InvalidRequest:
        return None


def _is_json(text: str) -> bool:
    if nesting.too_deep(text):
        return False
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
