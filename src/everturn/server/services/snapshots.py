"""Snapshots: the history of a session as one document, behind links the server signs itself.

The original hands out links to an object store (wire-protocol §4.9). Here the link leads back to
this server, whatever store is behind it: it names session, verb and expiry, and carries an HMAC
of the three under a key derived from the master key. Whoever holds the link may use it until it
expires, and nothing else; `PUT` and `GET` have different links.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, Literal

from everturn.errors import NotAllowed, SessionNotFound

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Session

LINK_S: Final = 3600

Verb = Literal["GET", "PUT"]


class Snapshots:
    """Reads and writes whole histories; signs links to them."""

    def __init__(self, services: Services, master_key: bytes) -> None:
        self._services = services
        self._key = hmac.digest(master_key, b"snapshot links", "sha256")

    async def get(self, environment_id: str, session_id: str) -> bytes | None:
        """The stored history as one document, None when there is none.

        Raises SessionNotFound.
        """
        session = await self._session(environment_id, session_id)
        return (await self._services.histories.read(session)).data

    async def put(self, environment_id: str, session_id: str, data: bytes) -> None:
        """Store a document in place of the history; durable before it returns.

        Raises SessionNotFound, and TooLarge past 64 MiB.
        """
        session = await self._session(environment_id, session_id)
        await self._services.histories.rewrite(session, data)

    async def _session(self, environment_id: str, session_id: str) -> Session:
        session = await self._services.state.session(environment_id, session_id)
        if session is None:
            raise SessionNotFound(f"there is no session {session_id}")
        return session

    def link(self, session: Session, verb: Verb) -> str:
        """A URL that opens this session's snapshot for one verb, for an hour."""
        expires = self._services.clock.now_ms() // 1000 + LINK_S
        signature = self._sign(session.environment_id, session.id, verb, expires)
        return (
            f"{self._services.base_url}/api/v1/snapshots/"
            f"{session.environment_id}/{session.id}"
            f"?verb={verb}&expires={expires}&signature={signature}"
        )

    def check(
        self, environment_id: str, session_id: str, verb: str, expires: str, signature: str
    ) -> None:
        """Raise NotAllowed unless a link was signed by this server and is still good."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            raise NotAllowed("the link is not valid")
        expected = self._sign(environment_id, session_id, verb, int(expires))
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise NotAllowed("the link is not valid")
        if int(expires) * 1000 <= self._services.clock.now_ms():
            raise NotAllowed("the link has expired")

    def _sign(self, environment_id: str, session_id: str, verb: str, expires: int) -> str:
        text = "\n".join((environment_id, session_id, verb, str(expires)))
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
