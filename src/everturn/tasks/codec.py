"""Author's values to JSON bytes and back: payloads, outputs, journalled results, metadata.

JSON is all that travels. Models (pydantic), dataclasses, structs, dates, sets and enums are
encoded as JSON has them; what comes back is plain data unless a type is named to validate into.
pydantic is imported only when a value or a type needs it, so that a worker whose tasks use plain
data does not pay for it at start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from everturn.errors import InvalidRequest
from everturn.protocol import lenient, nesting

JSON: Final = "application/json"
TEXT: Final = "text/plain"
SUPER_JSON: Final = "application/super+json"


def _unknown(value: Any) -> Any:
    """What msgspec cannot encode by itself; pydantic models say how they want to be written."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json", by_alias=True)
    raise TypeError(f"a {type(value).__qualname__} cannot be written as JSON")


_encoder = msgspec.json.Encoder(enc_hook=_unknown)


def encode(value: Any) -> bytes:
    """JSON text of a value.

    Raises:
        InvalidRequest: JSON has no form for it, and the message names the type; or it nests deeper
            than whoever reads it could follow (`protocol/nesting.py`).
    """
    data = encode_any_depth(value)
    if nesting.too_deep(data):
        raise InvalidRequest(f"cannot be written as JSON: {nesting.TOO_DEEP}")
    return data


def encode_any_depth(value: Any) -> bytes:
    """As `encode`, for documents made of values that were held to the bound one by one."""
    try:
        try:
            return _encoder.encode(value)
        except UnicodeEncodeError:  # half a character in a text
            return lenient.encode(msgspec.to_builtins(value, enc_hook=_unknown))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"cannot be written as JSON: {error}") from error


def encode_each(values: Iterable[Any]) -> list[bytes]:
    """JSON texts of many values. Raises as `encode` does."""
    try:
        return list(map(_encoder.encode, values))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"cannot be written as JSON: {error}") from error


def decode(data: bytes | str, type_: Any = Any) -> Any:
    """The value of JSON text, validated into `type_` when one is named.

    Raises:
        InvalidRequest: not JSON.
        pydantic.ValidationError: the type does not fit.
    """
    try:
        value = lenient.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from error
    return value if type_ is Any or type_ is None else validator(type_)(value)


def validator(schema: Any) -> Callable[[Any], Any]:
    """What turns plain data into what a schema describes.

    Args:
        schema: a type or annotation (validated by pydantic), a pydantic TypeAdapter, or any
            function of one argument that returns the value or raises.
    """
    if schema is Any or schema is None or schema is dict:
        return _same
    validate = getattr(schema, "validate_python", None)
    if callable(validate):
        return lambda value: validate(value)
    model = getattr(schema, "model_validate", None)
    if isinstance(schema, type) and callable(model):
        return lambda value: model(value)
    if callable(schema) and not isinstance(schema, type) and not hasattr(schema, "__origin__"):
        return lambda value: schema(value)
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(schema)
    return adapter.validate_python


def _same(value: Any) -> Any:
    return value


def json_schema(schema: Any) -> dict[str, Any] | None:
    """The JSON Schema of a schema, None when it has none (a plain function)."""
    describe = getattr(schema, "model_json_schema", None)
    if callable(describe):
        found: dict[str, Any] = describe()
        return found
    describe = getattr(schema, "json_schema", None)
    if callable(describe):
        described: dict[str, Any] = describe()
        return described
    return None


def decode_packet(data: bytes, kind: str) -> Any:
    """A payload or output as it travels (wire-protocol §9.2).

    Raises:
        InvalidRequest: malformed, or of a kind that is not kept inline.
    """
    if kind == TEXT:
        return data.decode("utf-8", "replace")
    if kind in (JSON, ""):
        return decode(data) if data else None
    if kind == SUPER_JSON:
        try:
            return _super_json(decode(data))
        except (TypeError, ValueError, OverflowError) as error:
            # A date that is none, a map whose members are no pairs: the packet does not say what
            # it claims to.
            raise InvalidRequest(f"cannot read a packet of type {kind!r}: {error}") from error
    raise InvalidRequest(f"cannot read a packet of type {kind!r}")


def _super_json(packet: Any) -> Any:
    """Undo superjson for the types that Python has too; others stay as JSON left them."""
    if not isinstance(packet, dict) or "json" not in packet:
        return packet
    meta = packet.get("meta")
    values = meta.get("values") if isinstance(meta, dict) else None
    root: dict[str, Any] = {"": packet["json"]}
    if isinstance(values, list) and values and isinstance(values[0], str):
        return _restored(root[""], values[0])
    if isinstance(values, dict):
        for path, kinds in values.items():
            _restore_at(root[""], path.replace("\\.", "\0").split("."), kinds)
    return root[""]


def _restore_at(value: Any, path: list[str], kinds: Any) -> None:
    if not isinstance(kinds, list) or not kinds or not isinstance(kinds[0], str):
        return
    for name in path[:-1]:
        value = _member(value, name)
    key = path[-1].replace("\0", ".")
    if isinstance(value, dict) and key in value:
        value[key] = _restored(value[key], kinds[0])
    elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
        value[int(key)] = _restored(value[int(key)], kinds[0])


def _member(value: Any, name: str) -> Any:
    name = name.replace("\0", ".")
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, list) and name.isdigit() and int(name) < len(value):
        return value[int(name)]
    return None


def _restored(value: Any, kind: str) -> Any:
    if kind == "Date" and isinstance(value, str):
        return datetime.fromisoformat(value)
    if kind == "bigint" and isinstance(value, str):
        return int(value)
    if kind == "set" and isinstance(value, list):
        return value if any(isinstance(item, dict | list) for item in value) else set(value)
    if kind == "map" and isinstance(value, list):
        return dict(value)
    if kind == "number" and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    return None if kind == "undefined" else value
