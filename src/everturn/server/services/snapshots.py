"""Snapshots: one object per session, reached through links that the server signs itself.

The original hands out links to an object store (wire-protocol §4.9). Here the link leads back to
this server, whatever store is behind it: it names session, verb and expiry, and carries an HMAC
of the three under a key derived from the master key. Whoever holds the link may use it until it
expires, and nothing else; `PUT` and `GET` have different links.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, Literal

from everturn.errors import NotAllowed, TooLarge
from everturn.rules import limits

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.state import Session

LINK_S: Final = 3600

Verb = Literal["GET", "PUT"]


def object_name(environment_id: str, session_id: str) -> str:
    """What a session's snapshot is stored under."""
    return f"{environment_id}/sessions/{session_id}/snapshot.json"


class Snapshots:
    """Reads and writes snapshots; signs links to them."""

    def __init__(self, services: Services, master_key: bytes) -> None:
        self._services = services
        self._key = hmac.digest(master_key, b"snapshot links", "sha256")

    async def get(self, environment_id: str, session_id: str) -> bytes | None:
        """The stored snapshot, None when there is none. `session_id` is the `session_…` form."""
        return await self._services.objects.get(object_name(environment_id, session_id))

    async def put(self, environment_id: str, session_id: str, data: bytes) -> None:
        """Store a snapshot; durable before it returns. Raises TooLarge past 64 MiB."""
        if len(data) > limits.SNAPSHOT_BODY_BYTES_MAX:
            raise TooLarge(
                f"the snapshot is {len(data)} bytes, at most {limits.SNAPSHOT_BODY_BYTES_MAX}",
                what="snapshot",
                bytes=len(data),
                bytes_max=limits.SNAPSHOT_BODY_BYTES_MAX,
            )
        await self._services.objects.put(object_name(environment_id, session_id), data)

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
