"""`auth`: public tokens for browsers, signed here with the secret key (wire-protocol §3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from everturn.client.api import Api
from everturn.errors import InvalidRequest, NotAuthenticated, ProtocolError
from everturn.protocol import tokens

#: `{"read": {"sessions": "chat-1"}}`, or scopes as text: `["read:sessions:chat-1"]`.
#: One text is one scope.
Scopes = Mapping[str, Any] | Iterable[str]
#: A number is seconds from now; text is a span such as `1h`; a datetime is the very moment.
Expiration = str | float | timedelta | datetime


async def create_public_token(
    scopes: Scopes,
    *,
    expires: Expiration | None = None,
    realtime: Mapping[str, Any] | None = None,
    api: Api | None = None,
) -> str:
    """A token that opens exactly `scopes`; give it to a browser.

    Args:
        expires: 15 minutes from now when None.
        realtime: columns to leave out of realtime rows.

    Raises:
        InvalidRequest: a scope or an expiration is malformed, or lies in the past.
        NotAuthenticated: there is no secret key, or the server does not know it.
    """
    flat = tokens.flatten_scopes(scopes) if isinstance(scopes, Mapping) else list(_listed(scopes))
    return await _sign(flat, expires, otu=None, realtime=realtime, api=api)


async def create_trigger_token(
    task: str | Iterable[str],
    *,
    multiple_use: bool = False,
    expires: Expiration | None = None,
    api: Api | None = None,
) -> str:
    """A token that starts one run of a task (any number with `multiple_use`). Raises as above."""
    scopes = [f"trigger:tasks:{name}" for name in _listed(task)]
    return await _sign(scopes, expires, otu=not multiple_use, realtime=None, api=api)


async def _sign(
    scopes: list[str],
    expires: Expiration | None,
    *,
    otu: bool | None,
    realtime: Mapping[str, Any] | None,
    api: Api | None,
) -> str:
    api = api or Api()
    now_ms = api.clock.now_ms()
    exp = None if expires is None else now_ms // 1000 + _lifetime_s(expires, now_ms)
    key = api.target.secret_key
    claims = await api.token_claims()
    if not key:
        raise NotAuthenticated("tokens are signed with the secret key, and there is none")
    if not isinstance(claims.get("sub"), str):
        raise ProtocolError("the server names no environment for tokens")
    return tokens.sign(
        tokens.Claims(
            sub=claims["sub"],
            scopes=tuple(scopes),
            otu=otu,
            realtime=realtime,
            exp=exp,
            extra={name: value for name, value in claims.items() if name not in ("sub", "pub")},
        ),
        key,
        now_ms=now_ms,
    )


def _listed(names: str | Iterable[str]) -> Iterable[str]:
    """One name as a list of it: its letters are none."""
    return [names] if isinstance(names, str) else names


def _lifetime_s(expires: Expiration, now_ms: int) -> int:
    if isinstance(expires, int | float) and not isinstance(expires, bool):
        try:
            expires = timedelta(seconds=expires)
        except (ValueError, OverflowError):
            raise InvalidRequest(f"a token cannot expire {expires} s from now") from None
    seconds = tokens.lifetime_s(expires, now_ms=now_ms)
    if seconds <= 0:
        raise InvalidRequest(f"a token cannot expire {-seconds} s ago")
    return seconds
