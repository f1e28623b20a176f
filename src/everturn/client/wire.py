"""From what Python code holds to what the wire has: camelCase members, plain JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from everturn.errors import InvalidRequest
from everturn.rules import durations, limits

#: Trigger options by their Python names (wire-protocol §4.1). Wire names are taken as they are.
_TRIGGER_NAMES: Final = {
    "base_payload": "basePayload",
    "max_attempts": "maxAttempts",
    "max_duration": "maxDuration",
    "lock_to_version": "lockToVersion",
    "idle_timeout": "idleTimeoutInSeconds",
    "idle_timeout_in_seconds": "idleTimeoutInSeconds",
}
_ADVANCED: Final = frozenset(
    {"output-available", "output-error", "approval-responded", "output-denied"}
)


def plain(value: Any) -> Any:
    """A value as JSON-able data: pydantic models, dataclasses and msgspec structs become dicts.

    Raises InvalidRequest for what JSON has no form for.
    """
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json", by_alias=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        return msgspec.to_builtins(value, enc_hook=_model, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"this value has no JSON form: {error}") from error


def _model(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return dump(mode="json", by_alias=True)


def encode(value: Any) -> str:
    """JSON text of a value."""
    return msgspec.json.encode(plain(value)).decode()


def trigger_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A trigger config with wire names; members that are None are left out."""
    wire = {
        _TRIGGER_NAMES.get(name, name): plain(value)
        for name, value in (config or {}).items()
        if value is not None
    }
    if "idleTimeoutInSeconds" in wire:
        wire["idleTimeoutInSeconds"] = whole_seconds(wire["idleTimeoutInSeconds"])
    return wire


def whole_seconds(value: durations.Duration) -> int:
    """A duration in whole seconds, at least one."""
    return max(1, round(durations.parse(value)))


def chat_tags(chat_id: str, tags: Sequence[str]) -> list[str]:
    """`chat:<id>` first, then the others, as many as a trigger takes.

    An id too long for a tag gets none, rather than one that names another chat.
    """
    own = f"chat:{chat_id}"
    first = [own] if len(own) <= limits.TAG_CHARS_MAX else []
    return [*first, *(tag for tag in tags if tag != own)][: limits.CONFIG_TAGS_MAX]


def slim(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as it is sent: an answered assistant message is reduced to what was answered.

    Spec: chat-agent §2.17, wire-protocol §8.2. Other messages pass unchanged.
    """
    parts = message.get("parts")
    if message.get("role") != "assistant" or not isinstance(parts, list):
        return dict(message)
    advanced = [
        _slim_part(part)
        for part in parts
        if isinstance(part, Mapping)
        and (str(part.get("type")).startswith("tool-") or part.get("type") == "dynamic-tool")
        and part.get("state") in _ADVANCED
    ]
    if not advanced:
        return dict(message)
    return {"id": message.get("id"), "role": "assistant", "parts": advanced}


def _slim_part(part: Mapping[str, Any]) -> dict[str, Any]:
    names = ["type", "toolCallId", "state"]
    if part["type"] == "dynamic-tool":
        names.append("toolName")
    return {
        name: part[name] for name in (*names, "output", "errorText", "approval") if name in part
    }


def moment(value: datetime | timedelta | str, *, now_ms: int) -> str:
    """A time as request bodies have it; a timedelta counts from now."""
    if isinstance(value, timedelta):
        value = datetime.fromtimestamp(now_ms / 1000, UTC) + value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def epoch_ms(value: datetime | int) -> str:
    """A time as list filters have it: milliseconds since the epoch (wire-protocol §2.2)."""
    return str(int(value.timestamp() * 1000) if isinstance(value, datetime) else value)


def query(**filters: Any) -> dict[str, str]:
    """Query parameters: None is left out, lists are joined with commas, names are given whole."""
    return {name: _joined(value) for name, value in filters.items() if value is not None}


def _joined(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence):
        return ",".join(map(str, value))
    return str(value)
