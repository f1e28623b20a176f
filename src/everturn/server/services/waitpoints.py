"""Wait tokens: made, completed once, timed out, and whoever waited told.

Completing has two steps, in this order: the token is completed, durably, and then the runs that
wait on it are woken. A run that suspends does it the other way round: it is suspended first and
looks at the token afterwards. So one of the two always sees the other. A call that is cut short
between the two steps, by a store that is away for instance, is made up for by a sweep; a crash
there leaves suspended runs whose token is completed, and a repeat of the completion wakes them, as
a start of the server does (`sweeps/relatives.py`).
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING, Any, Final

from msgspec import UnsetType

from everturn.errors import NotAuthenticated, NotFound, Unavailable
from everturn.protocol.waitpoints import (
    CreateToken,
    callback_hash,
    packet_of,
    timeout_packet,
)
from everturn.rules import durations
from everturn.server.services.results import iso
from everturn.server.services.trigger_options import KEY_LIFETIME_S, moment_of
from everturn.server.services.untold import Untold
from everturn.storage.ports.waitpoints import NewWaitpoint, Waitpoint

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.waitpoints")

#: What a token's own public token is good for (wire-protocol §3.7).
TOKEN_S: Final = 24 * 3600


class Waitpoints:
    """Wait tokens of all environments."""

    def __init__(self, services: Services) -> None:
        self._services = services
        #: Tokens that may be completed without their runs knowing, oldest first.
        self._untold = Untold()

    async def create(
        self, environment_id: str, body: CreateToken, *, request_key: str | None = None
    ) -> tuple[Waitpoint, bool]:
        """Make a token; `(token, True)` when a key found an earlier one.

        Raises Unprocessable for a timeout that is neither a duration nor a date. A date in the
        past counts as no timeout (wire-protocol §14).
        """
        now_ms = self._services.clock.now_ms()
        expires_ms = None
        if body.idempotency_key is not None:
            lifetime_s = durations.idempotency_ttl(body.idempotency_key_ttl or "")
            expires_ms = now_ms + (KEY_LIFETIME_S if lifetime_s is None else lifetime_s) * 1000
        new = NewWaitpoint(
            id=self._services.ids.new("waitpoint"),
            tags=tuple(dict.fromkeys([body.tags] if isinstance(body.tags, str) else body.tags)),
            timeout_at_ms=moment_of(body.timeout, now_ms, "timeout"),
            idempotency_key=body.idempotency_key,
            idempotency_expires_ms=expires_ms,
            request_key=request_key,
        )
        made, created = await self._services.state.create_waitpoint(
            environment_id, new, now_ms=now_ms
        )
        self._services.links.timer.moved(made.timeout_at_ms)
        return made, not created

    async def complete(
        self, environment_id: str, waitpoint_id: str, data: Any | UnsetType
    ) -> Waitpoint:
        """Complete a token; one that is completed already stays as it is. Raises NotFound."""
        output, output_type = packet_of(data)
        with self._untold.unless_told(waitpoint_id):
            done = await self._services.state.complete_waitpoint(
                environment_id,
                waitpoint_id,
                now_ms=self._services.clock.now_ms(),
                output=output,
                output_type=output_type,
            )
            if done is not None:
                # Also for a repeat: the first call may have died before it woke anybody.
                await self._wake(waitpoint_id)
        if done is None:
            raise NotFound("Waitpoint not found", should_retry=False)
        return done[0]

    async def time_out(self, waitpoint: Waitpoint) -> bool:
        """End a token whose time is up. True when this call did."""
        output, output_type = timeout_packet(waitpoint.id)
        with self._untold.unless_told(waitpoint.id):
            done = await self._services.state.complete_waitpoint(
                waitpoint.environment_id,
                waitpoint.id,
                now_ms=self._services.clock.now_ms(),
                output=output,
                output_type=output_type,
                timed_out=True,
            )
            if done is None:
                return False
            await self._wake(waitpoint.id)
        return done[1]

    async def tell_again(self) -> int:
        """Wake whoever waits for tokens whose completion was cut short; how many such tokens.

        Raises what waking raises; what was not done yet stays remembered.
        """
        told = 0
        for waitpoint_id in self._untold:
            await self._wake(waitpoint_id)
            self._untold.told(waitpoint_id)
            told += 1
        return told

    async def _wake(self, waitpoint_id: str) -> None:
        for run in await self._services.state.waiting_on_token(waitpoint_id):
            await self._services.waits.wake_if_over(run)

    # --- callback URLs -----------------------------------------------------------------------

    async def url(self, waitpoint: Waitpoint) -> str:
        """Where a third party completes this token without a credential of its own."""
        secrets = await self._services.keys.secrets_of(waitpoint.environment_id)
        if not secrets:
            raise Unavailable("the environment has no secret key to sign the callback URL with")
        proof = callback_hash(secrets[0], waitpoint.id)
        path = f"/api/v1/waitpoints/tokens/{waitpoint.id}/callback/{proof}"
        return self._services.base_url + path

    async def called_back(self, waitpoint_id: str, proof: str) -> Waitpoint:
        """The token of a callback URL.

        Raises NotFound for an unknown token, NotAuthenticated when the URL was not made here.
        """
        found = await self._services.state.waitpoint(None, waitpoint_id)
        if found is None:
            raise NotFound("Waitpoint not found", should_retry=False)
        for secret in await self._services.keys.secrets_of(found.environment_id):
            expected = callback_hash(secret, found.id)
            if hmac.compare_digest(expected.encode(), proof.encode("utf-8", "replace")):
                return found
        raise NotAuthenticated("Invalid URL, hash doesn't match")

    # --- views -------------------------------------------------------------------------------

    async def item(self, waitpoint: Waitpoint, *, with_output: bool = False) -> dict[str, Any]:
        """A token as lists and `retrieve` show it; absent members are left out (§14, §19)."""
        item: dict[str, Any] = {
            "id": waitpoint.id,
            "url": await self.url(waitpoint),
            "status": waitpoint.status,
            "tags": list(waitpoint.tags),
            "createdAt": iso(waitpoint.created_at_ms),
        }
        if waitpoint.idempotency_key is not None:
            item["idempotencyKey"] = waitpoint.idempotency_key
        for name, at_ms in (
            ("completedAt", waitpoint.completed_at_ms),
            ("completedAfter", waitpoint.timeout_at_ms),
            ("timeoutAt", waitpoint.timeout_at_ms),
            ("idempotencyKeyExpiresAt", waitpoint.idempotency_expires_ms),
        ):
            if at_ms is not None:
                item[name] = iso(at_ms)
        if with_output and waitpoint.output is not None:
            item["output"] = waitpoint.output.decode("utf-8", "replace")
            item["outputType"] = waitpoint.output_type
            item["outputIsError"] = waitpoint.timed_out
        return item
