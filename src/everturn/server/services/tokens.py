"""Public tokens: minted for sessions and runs, checked on every request that carries one.

A token is signed with the environment's newest secret key and verified with any that works
(wire-protocol §3.3). What a valid token said is remembered for a few seconds by its own text, in
a bounded table, because a browser sends the same one with every append; its expiry is looked at
each time all the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from everturn.errors import NotAuthenticated, Unavailable
from everturn.protocol.tokens import Claims, peek, sign, verify
from everturn.rules import limits
from everturn.rules.access import Caller
from everturn.server.services.keys import CACHE_S

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Session

CACHE_TOKENS_MAX: Final = 10_000
TOKEN_CHARS_MAX: Final = 16 * 1024

NO_ENVIRONMENT: Final = "Invalid Public Access Token"
INVALID: Final = "Public Access Token is invalid"


class Tokens:
    """Mints and verifies public tokens."""

    def __init__(self, services: Services) -> None:
        self._services = services
        #: token text -> (forget at, expires at ms, caller)
        self._verified: OrderedDict[str, tuple[float, int, Caller]] = OrderedDict()

    async def mint(
        self,
        environment_id: str,
        scopes: Sequence[str],
        *,
        lifetime_s: int = limits.SESSION_TOKEN_S,
        otu: bool | None = None,
        realtime: Mapping[str, Any] | None = None,
    ) -> str:
        """A token of an environment. Raises Unavailable when it has no secret key to sign with."""
        keys = await self._services.keys.secrets_of(environment_id)
        if not keys:
            raise Unavailable("the environment has no secret key to sign tokens with")
        now_ms = self._services.clock.now_ms()
        claims = Claims(
            sub=environment_id,
            scopes=tuple(scopes),
            otu=otu,
            realtime=realtime,
            exp=now_ms // 1000 + lifetime_s,
        )
        return sign(claims, keys[0], now_ms=now_ms)

    async def for_session(self, session: Session) -> str:
        """What a browser needs for one session: read and write it, for an hour (§3.7)."""
        return await self.mint(
            session.environment_id,
            (f"read:sessions:{session.key}", f"write:sessions:{session.key}"),
        )

    @staticmethod
    def run_scopes(run_id: str) -> tuple[str, ...]:
        """What whoever triggered a run may do with it (§3.7)."""
        return (f"read:runs:{run_id}", f"write:inputStreams:{run_id}")

    def known(self, token: str) -> Caller | None:
        """Who carries this token, if that was found out within the last seconds."""
        cached = self._verified.get(token)
        if cached is None:
            return None
        clock = self._services.clock
        forget_at, expires_ms, caller = cached
        return caller if forget_at > clock.monotonic() and expires_ms > clock.now_ms() else None

    async def verify(self, token: str) -> Caller:
        """Who carries this token. Raises NotAuthenticated with the text of §3.1."""
        now_ms = self._services.clock.now_ms()
        now = self._services.clock.monotonic()
        claims = await self._claims(token, now_ms)
        caller = _caller(claims, token)
        self._verified[token] = (now + CACHE_S, (claims.exp or 0) * 1000, caller)
        self._verified.move_to_end(token)
        while len(self._verified) > CACHE_TOKENS_MAX:
            self._verified.popitem(last=False)
        return caller

    async def _claims(self, token: str, now_ms: int) -> Claims:
        if len(token) > TOKEN_CHARS_MAX:
            raise NotAuthenticated(INVALID)
        payload = peek(token) or {}
        environment_id = payload.get("sub")
        if not isinstance(environment_id, str) or not environment_id:
            raise NotAuthenticated(NO_ENVIRONMENT)
        keys = await self._services.keys.secrets_of(environment_id)
        if not keys:
            raise NotAuthenticated(NO_ENVIRONMENT)
        for key in keys:
            try:
                return verify(token, key, now_ms=now_ms)
            except NotAuthenticated:
                # Perhaps signed with an older key. Which check failed is not told to the outside.
                continue
        raise NotAuthenticated(INVALID)


def is_public(token: str) -> bool:
    """Whether a bearer credential claims to be a public token (§3.3): its payload says `pub`."""
    return token.count(".") == 2 and (peek(token) or {}).get("pub") is True


def _caller(claims: Claims, token: str) -> Caller:
    digest = hashlib.sha256(token.encode()).hexdigest()
    hidden = (claims.realtime or {}).get("skipColumns")
    return Caller(
        environment_id=claims.sub,
        is_secret=False,
        scopes=claims.scopes,
        one_time_use=digest if claims.otu else None,
        skip_columns=tuple(c for c in hidden if isinstance(c, str))
        if isinstance(hidden, list)
        else (),
        expires_at_ms=None if claims.exp is None else claims.exp * 1000,
        rate_key=f"token:{digest}",
    )
