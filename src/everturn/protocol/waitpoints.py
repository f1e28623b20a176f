"""Wait tokens as they are said on the wire (wire-protocol §14).

The callback URL carries its own credential: `HMAC-SHA256(secret key, id without its prefix)` in
lower-case hex. Whoever holds the URL may complete this token and do nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from everturn.ids import internal_id

Tag = Annotated[str, Meta(min_length=1, max_length=128)]
#: What the output of a token that timed out says.
TIMEOUT_CODE: Final = "TRIGGER_WAITPOINT_TIMEOUT"


class CreateToken(msgspec.Struct, kw_only=True, rename="camel"):
    """Body of `POST /api/v1/waitpoints/tokens`."""

    timeout: str | int | float | None = None
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    idempotency_key_ttl: str | None = msgspec.field(name="idempotencyKeyTTL", default=None)
    tags: Tag | Annotated[list[Tag], Meta(max_length=10)] = []


class CompleteToken(msgspec.Struct):
    """Body of `POST …/complete`. Absent data is another thing than null."""

    data: Any | UnsetType = UNSET


def callback_hash(secret: str, waitpoint_id: str) -> str:
    """The last segment of a token's callback URL."""
    return hmac.new(secret.encode(), internal_id(waitpoint_id).encode(), hashlib.sha256).hexdigest()


def packet_of(data: Any | UnsetType) -> tuple[bytes | None, str | None]:
    """`(packet text, type)` of a JSON value, by the rules of §9.2; absent data has neither."""
    if isinstance(data, UnsetType):
        return None, None
    if isinstance(data, str):
        return data.encode(), "text/plain"
    return msgspec.json.encode({"json": data}), "application/super+json"


def timeout_packet(waitpoint_id: str) -> tuple[bytes, str]:
    """The error packet of a token whose time was up."""
    error = {"code": TIMEOUT_CODE, "message": f"{waitpoint_id} was not completed in time"}
    return msgspec.json.encode(error), "application/json"
