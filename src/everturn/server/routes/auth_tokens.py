"""Minting public tokens (wire-protocol §3.4). Secret keys only."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from everturn.errors import InvalidRequest
from everturn.protocol.tokens import lifetime_s
from everturn.rules import limits
from everturn.server.routes.calls import Answer, Call, answer

Scope = Annotated[str, Meta(min_length=1, max_length=1024)]
Scopes = Annotated[list[Scope], Meta(max_length=1000)]

_HOUR = "1h"


class WantedClaims(msgspec.Struct):
    """What the token shall open."""

    scopes: Scopes = []


class Mint(msgspec.Struct, kw_only=True):
    """Body of `POST /api/v1/auth/jwt`."""

    claims: WantedClaims = msgspec.field(default_factory=WantedClaims)
    expirationTime: str | int | float = _HOUR


class MintPublic(msgspec.Struct, kw_only=True):
    """Body of `POST /api/v1/auth/public-tokens`."""

    scopes: Scopes
    expirationTime: str | int | float = _HOUR
    oneTimeUse: bool | None = None
    realtime: dict[str, Any] | None = None


async def claims(call: Call) -> Answer:
    """POST /api/v1/auth/jwt/claims: what a client copies into tokens it signs itself."""
    return answer({"sub": call.caller.environment_id, "pub": True})


async def mint(call: Call) -> Answer:
    """POST /api/v1/auth/jwt: a token with the scopes asked for."""
    body = await call.json(Mint, limits.UPDATE_BODY_BYTES_MAX)
    return answer({"token": await _minted(call, body.claims.scopes, body.expirationTime)})


async def mint_public(call: Call) -> Answer:
    """POST /api/v1/auth/public-tokens: the same, as clients after 4.5.0 ask for it (§21)."""
    body = await call.json(MintPublic, limits.UPDATE_BODY_BYTES_MAX)
    token = await _minted(
        call,
        body.scopes,
        body.expirationTime,
        otu=body.oneTimeUse,
        realtime=body.realtime,
    )
    return answer({"token": token})


async def _minted(
    call: Call,
    scopes: list[str],
    expiration: str | float,
    *,
    otu: bool | None = None,
    realtime: dict[str, Any] | None = None,
) -> str:
    seconds = lifetime_s(expiration, now_ms=call.services.clock.now_ms())
    if not 0 < seconds <= limits.TOKEN_S_MAX:
        raise InvalidRequest(
            f"expirationTime is {seconds} seconds ahead, it takes 1 to {limits.TOKEN_S_MAX}"
        )
    return await call.services.tokens.mint(
        call.caller.environment_id, scopes, lifetime_s=seconds, otu=otu, realtime=realtime
    )
