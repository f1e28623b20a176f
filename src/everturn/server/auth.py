"""Authentication: from an `Authorization` header to a `Caller` (wire-protocol §3.1).

All credentials are bearer tokens: a secret key, or a public token, which is a JWT whose payload
says `pub`. The texts of refusals are those clients of the original know. They never say which
check of a token failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from everturn.errors import NotAuthenticated
from everturn.rules.access import Caller
from everturn.server.services.tokens import is_public

if TYPE_CHECKING:
    from everturn.server.services import Services

MISSING: Final = "Invalid or Missing API key"
UNKNOWN: Final = "Invalid API key"
_SECRET_CHARS_MAX: Final = 256


def bearer(header: str | None) -> str:
    """The credential of an `Authorization` header. Raises NotAuthenticated without one."""
    scheme, _, credential = (header or "").strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not credential or " " in credential:
        raise NotAuthenticated(MISSING)
    return credential


async def authenticate(services: Services, header: str | None, *, public: bool) -> Caller:
    """Who asks. With `public`, public tokens are welcome; their scopes are checked later.

    Raises NotAuthenticated for everything that is not a working credential here.
    """
    credential = bearer(header)
    if public and (caller := services.tokens.known(credential)) is not None:
        # A browser sends one token with every append: no need to take it apart each time.
        return caller
    if is_public(credential):
        if not public:
            raise NotAuthenticated(UNKNOWN)
        return await services.tokens.verify(credential)
    if len(credential) > _SECRET_CHARS_MAX:
        raise NotAuthenticated(UNKNOWN)
    key = await services.keys.find(credential)
    if key is None:
        raise NotAuthenticated(UNKNOWN)
    return Caller(environment_id=key.environment_id, is_secret=True, rate_key=f"key:{key.id}")
