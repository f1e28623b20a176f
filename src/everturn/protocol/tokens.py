"""Public tokens and scopes: what a browser carries, and what it opens.

A public token is a JWT signed with HS256, the key being the text of the environment's secret key;
this is why whoever holds the secret key can mint tokens offline (wire-protocol §3.3). The header
is exactly ``{"alg":"HS256"}``, and members of the payload keep the order given here, so that a
token is the same bytes whichever of the implementations signs it.

Signing and checking are written out with `hmac` instead of a JWT library for three reasons: the
bytes are fixed (libraries add ``typ`` and sort), time comes from the caller's clock, and a
library's advice about key lengths does not fit keys whose format is given. Only one algorithm
exists here, named by us and never by the token, which shuts out `alg: none` and key confusion.
The signature is compared in its encoded form and in constant time, so exactly one spelling of a
token is valid.

A scope is ``<action>``, ``<action>:<type>`` or ``<action>:<type>:<id>``, split at the first two
colons; an id may hold colons itself (§3.5).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeGuard

import msgspec

from everturn.errors import InvalidRequest, NotAuthenticated

ISSUER: Final = "https://id.trigger.dev"
AUDIENCE: Final = "https://api.trigger.dev"
#: Lifetime in seconds of a token whose maker names none.
LIFETIME_S_DEFAULT: Final = 15 * 60
_HEADER: Final = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=").decode()
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
#: Members of a payload that `Claims` has fields for or that are fixed.
_KNOWN: Final = frozenset(
    {"sub", "pub", "scopes", "otu", "realtime", "iss", "aud", "iat", "exp", "nbf"}
)


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a public token says.

    * `sub`: environment id. `scopes`: what it opens. `otu`: may start one run only (§3.6).
    * `realtime`: columns to leave out of realtime rows.
    * `iat`, `exp`: seconds since the epoch. Signing fills both in when they are None: now, and
      15 minutes from now.
    * `extra`: any other members, copied into the payload as they are.
    """

    sub: str
    scopes: tuple[str, ...] = ()
    pub: bool = True
    otu: bool | None = None
    realtime: Mapping[str, Any] | None = None
    iat: int | None = None
    exp: int | None = None
    extra: Mapping[str, Any] = {}


def sign(claims: Claims, key: str, *, now_ms: int) -> str:
    """The token for `claims`, signed with a secret key. `now_ms` is the time of issue."""
    issued = claims.iat if claims.iat is not None else now_ms // 1000
    payload: dict[str, Any] = {**claims.extra, "sub": claims.sub, "pub": claims.pub}
    if claims.otu is not None:
        payload["otu"] = claims.otu
    payload["scopes"] = list(claims.scopes)
    if claims.realtime is not None:
        payload["realtime"] = claims.realtime
    payload["iss"] = ISSUER
    payload["aud"] = AUDIENCE
    payload["iat"] = issued
    payload["exp"] = claims.exp if claims.exp is not None else issued + LIFETIME_S_DEFAULT
    signed = f"{_HEADER}.{_encode64(msgspec.json.encode(payload))}"
    return f"{signed}.{_signature(signed, key)}"


def peek(token: str) -> dict[str, Any] | None:
    """The payload of something shaped like a JWT, unverified; None for anything else.

    Use it to find out whose key to verify with, and for nothing more.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    return _json_object(parts[1])


def verify(token: str, key: str, *, now_ms: int) -> Claims:
    """The claims of a valid token.

    Checks, in this order: header, signature, issuer, audience, time, and that it is a public
    token (`pub` true) of some environment (`sub`).

    Raises NotAuthenticated for every failure; the message says which, without the token.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise NotAuthenticated("the token is not a JWT")
    header = _json_object(parts[0])
    if header is None or header.get("alg") != "HS256" or "crit" in header:
        raise NotAuthenticated("the token is not signed with HS256")
    expected = _signature(f"{parts[0]}.{parts[1]}", key)
    # As bytes: `compare_digest` refuses text outside ASCII, and a token may hold anything.
    if not hmac.compare_digest(expected.encode(), parts[2].encode("utf-8", "replace")):
        raise NotAuthenticated("the token's signature does not match")
    payload = _json_object(parts[1])
    if payload is None:
        raise NotAuthenticated("the token's payload is not a JSON object")
    _check_claims(payload, now_ms)
    scopes = payload.get("scopes")
    realtime = payload.get("realtime")
    return Claims(
        sub=payload["sub"],
        scopes=tuple(s for s in scopes if isinstance(s, str)) if isinstance(scopes, list) else (),
        otu=payload.get("otu") is True,
        realtime=realtime if isinstance(realtime, dict) else None,
        iat=_seconds(payload.get("iat")),
        exp=_seconds(payload.get("exp")),
        extra={name: value for name, value in payload.items() if name not in _KNOWN},
    )


def _check_claims(payload: Mapping[str, Any], now_ms: int) -> None:
    if payload.get("iss") != ISSUER:
        raise NotAuthenticated("the token has another issuer")
    audience = payload.get("aud")
    if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
        raise NotAuthenticated("the token is for another audience")
    expires = _seconds(payload.get("exp"))
    if expires is None or expires <= now_ms // 1000:
        raise NotAuthenticated("the token has expired")
    if "nbf" in payload:
        begins = _seconds(payload["nbf"])
        if begins is None or begins > now_ms // 1000:
            raise NotAuthenticated("the token is not valid yet")
    if payload.get("pub") is not True:
        raise NotAuthenticated("the token is not a public token")
    if not isinstance(payload.get("sub"), str) or not payload["sub"]:
        raise NotAuthenticated("the token names no environment")


def _seconds(value: object) -> int | None:
    return int(value) if _is_finite(value) else None


def _is_finite(value: object) -> TypeGuard[int | float]:
    """Whether this is a number; JSON's whole numbers can be too long for any float."""
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:
        return False


def _signature(signed: str, key: str) -> str:
    digest = hmac.digest(key.encode(), signed.encode("utf-8", "replace"), "sha256")
    return _encode64(digest)


def _encode64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _json_object(segment: str) -> dict[str, Any] | None:
    # The decoder of the standard library skips characters it does not know; a token may hold none.
    if _BASE64URL.fullmatch(segment) is None:
        return None
    try:
        decoded = msgspec.json.decode(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def grants(
    scopes: Iterable[str], action: str, resource_type: str, resource_id: str | None = None
) -> bool:
    """Whether any of `scopes` allows `action` on a resource (wire-protocol §3.5).

    Without an id the check is for the whole collection, which a scope that names an id does not
    open. `write` implies no other action, and a bare action other than `admin` opens nothing.
    """
    for scope in scopes:
        if scope == "admin":
            return True
        parts = scope.split(":", 2)
        if (
            len(parts) < 2
            or parts[0] not in (action, "*")
            or parts[1] not in (resource_type, "all")
        ):
            continue
        if len(parts) == 2 or (resource_id is not None and parts[2] == resource_id):
            return True
    return False


def flatten_scopes(mapping: Mapping[str, Any]) -> list[str]:
    """Scopes from their nested form, in order.

    ``{"read": {"sessions": "a", "runs": ["r1", "r2"], "tags": True}, "admin": True}`` gives
    ``read:sessions:a read:runs:r1 read:runs:r2 read:tags admin``. False and None give nothing.
    """
    out: list[str] = []
    for action, resources in mapping.items():
        if resources is True:
            out.append(action)
        elif isinstance(resources, Mapping):
            for resource, which in resources.items():
                out.extend(f"{action}:{resource}{suffix}" for suffix in _suffixes(which))
        elif resources is not False and resources is not None:
            raise InvalidRequest(f"the scope {action!r} must be true or an object")
    return out


def _suffixes(which: object) -> list[str]:
    if which is True:
        return [""]
    if which is False or which is None:
        return []
    if isinstance(which, str):
        return [f":{which}"]
    if isinstance(which, Iterable):
        return [f":{item}" for item in which]
    raise InvalidRequest("a scope must be true, a string or a list of strings")


_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNIT_S: Final = {
    "s": 1,
    "m": _MINUTE,
    "h": _HOUR,
    "d": _DAY,
    "w": 7 * _DAY,
    "y": 365.25 * _DAY,
}
_SPAN: Final = re.compile(
    r"([+-])? ?(\d+|\d+\.\d+) ?(seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|w"
    r"|years?|yrs?|y)(?: (ago|from now))?",
    re.ASCII | re.IGNORECASE,
)


def lifetime_s(expiration: str | float | datetime | timedelta, *, now_ms: int | None = None) -> int:
    """Seconds from now until `expiration` (wire-protocol §2.3); may be negative.

    A string is a time span such as ``15m``, ``2 hours`` or ``7 days from now``. A number is an
    absolute time in seconds since the epoch, as it is on the wire, and a `datetime` is absolute
    too; both need `now_ms`.

    Raises InvalidRequest for anything else.
    """
    if isinstance(expiration, timedelta):
        return round(expiration.total_seconds())
    if isinstance(expiration, str):
        return _span_s(expiration)
    if isinstance(expiration, datetime):
        expiration = expiration.timestamp()
    if not _is_finite(expiration) or now_ms is None:
        raise InvalidRequest("an expiration is a time span or a time in seconds")
    return math.floor(expiration) - now_ms // 1000


def _span_s(text: str) -> int:
    match = _SPAN.fullmatch(text)
    if match is None or (match[1] and match[4]) or len(text) > 64:
        raise InvalidRequest(f"not a time span: {text[:64]!r}")
    seconds = round(float(match[2]) * _UNIT_S[match[3][0].lower()])
    return -seconds if match[1] == "-" or (match[4] or "").lower() == "ago" else seconds
