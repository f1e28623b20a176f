"""Packets: payloads too large for a request, stored under a name their sender chose (§11).

The original hands out links to an object store. Here a link leads back to this server, whatever
store is behind it: it names environment, packet, verb and expiry, and carries an HMAC of the four
under a key derived from the master key. Upload and download have different links.

A packet is stored under a digest of its name, so that what a client calls it never becomes a path.
Its type stands on the first line of the stored bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, Literal

from everturn.errors import InvalidRequest, NotAllowed, TooLarge
from everturn.rules import limits
from everturn.server.services.trigger_options import STORED

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.retention import PacketName

LINK_S: Final = 3600
_TYPE_CHARS_MAX: Final = 256

Verb = Literal["GET", "PUT"]


def digest_of(name: str) -> str:
    """What a packet is stored under. Raises InvalidRequest for a name that is too long."""
    if not 1 <= len(name) <= limits.PACKET_NAME_CHARS_MAX:
        raise InvalidRequest(
            f"a packet's name has {len(name)} characters, "
            f"1 to {limits.PACKET_NAME_CHARS_MAX} are allowed"
        )
    return hashlib.sha256(name.encode()).hexdigest()


def _object_name(environment_id: str, digest: str) -> str:
    return f"{environment_id}/packets/{digest}"


class Packets:
    """Stores packets, and signs links to them."""

    def __init__(self, services: Services, master_key: bytes) -> None:
        self._services = services
        self._key = hmac.digest(master_key, b"packet links", "sha256")

    async def put(self, environment_id: str, digest: str, data: bytes, kind: str) -> None:
        """Store a packet; durable before it returns. Raises TooLarge and InvalidRequest."""
        if len(data) > limits.PACKET_BYTES_MAX:
            raise TooLarge(
                f"the packet is {len(data)} bytes, at most {limits.PACKET_BYTES_MAX}",
                what="packet",
                bytes=len(data),
                bytes_max=limits.PACKET_BYTES_MAX,
            )
        if len(kind) > _TYPE_CHARS_MAX or not kind.isascii() or not kind.isprintable():
            raise InvalidRequest(f"a packet's type has at most {_TYPE_CHARS_MAX} characters")
        stored = kind.encode() + b"\n" + data
        await self._services.objects.put(_object_name(environment_id, digest), stored)

    async def get(self, environment_id: str, digest: str) -> tuple[bytes, str] | None:
        """`(data, type)` of a stored packet, None when there is none."""
        stored = await self._services.objects.get(_object_name(environment_id, digest))
        if stored is None:
            return None
        kind, _, data = stored.partition(b"\n")
        return data, kind.decode()

    async def resolved(self, environment_id: str, data: bytes, kind: str) -> tuple[bytes, str]:
        """A payload for whoever works on it: the packet itself in place of its name.

        A packet that is not there is left as its name; reading it fails, visibly, in the run.
        """
        if kind != STORED:
            return data, kind
        name = data.decode("utf-8", "replace")
        return await self.get(environment_id, digest_of(name)) or (data, kind)

    async def announce(self, environment_id: str, name: str) -> str:
        """A link to store a packet at. Its age, for retention, counts from now."""
        link = self.link(environment_id, name, "PUT")
        now_ms = self._services.clock.now_ms()
        await self._services.state.note_packet(environment_id, name, now_ms=now_ms)
        return link

    async def forget(self, packet: PacketName, noted_before_ms: int) -> None:
        """Delete a packet that no run has any more, unless it is announced again by now."""
        name = _object_name(packet.environment_id, digest_of(packet.name))
        await self._services.objects.delete(name)
        await self._services.state.forget_packet(packet, noted_before_ms=noted_before_ms)

    # --- links -------------------------------------------------------------------------------

    def link(self, environment_id: str, name: str, verb: Verb) -> str:
        """A URL that opens this packet for one verb, for an hour."""
        expires = self._services.clock.now_ms() // 1000 + LINK_S
        digest = digest_of(name)
        signature = self._sign(environment_id, digest, verb, expires)
        return (
            f"{self._services.base_url}/api/v1/packet-data/{environment_id}/{digest}"
            f"?verb={verb}&expires={expires}&signature={signature}"
        )

    def check(
        self, environment_id: str, digest: str, verb: str, expires: str, signature: str
    ) -> None:
        """Raise NotAllowed unless a link was signed by this server and is still good."""
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            raise NotAllowed("the link is not valid")
        expected = self._sign(environment_id, digest, verb, int(expires))
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise NotAllowed("the link is not valid")
        if int(expires) * 1000 <= self._services.clock.now_ms():
            raise NotAllowed("the link has expired")

    def _sign(self, environment_id: str, digest: str, verb: str, expires: int) -> str:
        text = "\n".join((environment_id, digest, verb, str(expires)))
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
