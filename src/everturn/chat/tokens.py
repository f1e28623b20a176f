"""The public token handed to hooks and put on turn-complete records.

Minting asks the server, and a turn should not pay a round trip for a token that is as good as the
one before it: a token is handed out again until a quarter of its life is over.
"""

from __future__ import annotations

import logging

from everturn.errors import EverturnError, Fenced, LeaseLost
from everturn.tasks.runtime import RunRuntime

log = logging.getLogger("everturn.chat")


class Tokens:
    """Mints tokens for the run's session; best effort, an empty string on failure."""

    def __init__(self, runtime: RunRuntime, *, session: str, ttl_s: float) -> None:
        """`session` is the session key; `ttl_s` the life of a token in seconds."""
        run_id = runtime.info.run_id
        self._scopes = (
            f"read:sessions:{session}",
            f"write:sessions:{session}",
            f"read:runs:{run_id}",
        )
        self._runtime = runtime
        self._ttl_s = ttl_s
        self._token = ""
        self._minted_at = 0.0

    async def current(self) -> str:
        """A token with at least three quarters of its life left, or ""."""
        now = self._runtime.clock.monotonic()
        if self._token and now - self._minted_at < self._ttl_s / 4:
            return self._token
        try:
            self._token = await self._runtime.mint_token(self._scopes, int(self._ttl_s))
            self._minted_at = now
        except (Fenced, LeaseLost):
            raise
        except (EverturnError, OSError):
            log.warning("token.mint_failed", exc_info=True)
            self._token = ""
        return self._token
