"""Operations on a run's metadata (wire-protocol §9.8).

`set delete append remove increment update`, applied in order to one JSON object. A key that
starts with `$.` walks into objects, except for `delete`, which takes every key as it is. Keys that
would touch the machinery of a JavaScript reader are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from everturn.errors import InvalidRequest, TooLarge
from everturn.protocol import nesting
from everturn.rules import limits

Kind = Literal["set", "delete", "append", "remove", "increment", "update"]
_FORBIDDEN: Final = frozenset({"__proto__", "constructor", "prototype"})
OPERATIONS_MAX: Final = 10_000


class Operation(msgspec.Struct, kw_only=True):
    """One change. `key` is empty for `update`."""

    type: Kind
    key: str = ""
    value: Any = None


class MetadataChange(msgspec.Struct, kw_only=True):
    """Body of `PUT …/metadata`; the parent and root lists go to the runs above this one."""

    metadata: dict[str, Any] | None = None
    operations: list[Operation] = []
    parentOperations: list[Operation] = []
    rootOperations: list[Operation] = []


def change(
    operations: Sequence[Operation], replacement: dict[str, Any] | None = None
) -> Callable[[bytes | None], bytes]:
    """What `StateStore.set_metadata` takes: stored bytes to new bytes. Pure.

    The result raises TooLarge past limits.METADATA_BYTES_MAX, and InvalidRequest for what would
    nest too deep; nothing changes then.
    """

    def apply_all(stored: bytes | None) -> bytes:
        values = _object(stored) if replacement is None else dict(replacement)
        for operation in operations[:OPERATIONS_MAX]:
            apply(values, operation)
        try:
            data = msgspec.json.encode(values)
        except RecursionError:
            raise InvalidRequest(f"the metadata: {nesting.TOO_DEEP}") from None
        if nesting.too_deep(data):
            raise InvalidRequest(f"the metadata: {nesting.TOO_DEEP}")
        if len(data) > limits.METADATA_BYTES_MAX:
            raise TooLarge(
                f"the metadata is {len(data)} bytes, at most {limits.METADATA_BYTES_MAX}",
                what="metadata",
                bytes=len(data),
                bytes_max=limits.METADATA_BYTES_MAX,
            )
        return data

    return apply_all


def apply(values: dict[str, Any], operation: Operation) -> None:
    """Apply one operation in place. Raises InvalidRequest for a sum that is no number any more."""
    if operation.type == "update":
        if isinstance(operation.value, dict):
            values.clear()
            values.update(operation.value)
        return
    if operation.type == "delete":
        values.pop(operation.key, None)
        return
    found = _place(values, operation.key, create=operation.type != "remove")
    if found is None:
        return
    holder, name = found
    held = holder.get(name)
    if operation.type == "set":
        holder[name] = operation.value
    elif operation.type == "append":
        items = held if isinstance(held, list) else [] if name not in holder else [held]
        holder[name] = [*items, operation.value]
    elif operation.type == "increment":
        holder[name] = _sum(_number(held), _number(operation.value))
    elif isinstance(held, list):
        holder[name] = [item for item in held if item != operation.value]


def _place(values: dict[str, Any], key: str, *, create: bool) -> tuple[dict[str, Any], str] | None:
    """The object that holds a key, and the key's name in it; None when it is ignored."""
    parts = key[2:].split(".") if key.startswith("$.") else [key]
    if not _FORBIDDEN.isdisjoint(parts):
        return None
    holder = values
    for part in parts[:-1]:
        inner = holder.get(part)
        if not isinstance(inner, dict):
            if not create:
                return None
            inner = holder[part] = {}
        holder = inner
    return holder, parts[-1]


def _number(value: Any) -> int | float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _sum(held: int | float, more: int | float) -> int | float:
    try:
        total = held + more
        if math.isfinite(total):
            return total
    except OverflowError:  # whole numbers that are too long for any float
        pass
    raise InvalidRequest("an increment leads past the largest number there is")


def _object(stored: bytes | None) -> dict[str, Any]:
    if stored is None:
        return {}
    value = msgspec.json.decode(stored)
    return value if isinstance(value, dict) else {}
