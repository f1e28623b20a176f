"""Secret keys: made, kept encrypted, found by hash, revoked.

A server must be able to *verify with* a secret key, not only to recognise it, because clients
sign public tokens with it offline (wire-protocol §3.3, rulings §4.1). So a key is stored twice:
as SHA-256, which is what a request is looked up by, and encrypted with AES-256-GCM under the
master key, which is opened only to sign and verify tokens. The ciphertext is bound to its
environment and hash, so that a row moved to another environment does not open.

Look-ups are cached for a few seconds, unknown keys too, in a bounded table. A revoke in this
process is seen at once; one in another process within `CACHE_S`. A revoked key keeps working for
24 hours, so that a rotation does not break what is deployed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import string
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from everturn.errors import ConfigurationError
from everturn.rules import limits
from everturn.storage.ports.rows import ApiKey, Environment

if TYPE_CHECKING:
    from everturn.clock import Clock
    from everturn.ids import Ids
    from everturn.storage.ports.state import StateStore

log = logging.getLogger("everturn.server")

_V = TypeVar("_V")

CACHE_S: Final = 10.0
CACHE_KEYS_MAX: Final = 10_000
CACHE_ENVIRONMENTS_MAX: Final = 1_000
_NONCE_BYTES: Final = 12
_HINT_CHARS: Final = 12
_ALPHABET: Final = string.ascii_letters + string.digits
#: The middle of a key for an environment's type (wire-protocol §3.1).
_KEY_TYPES: Final = {"staging": "stg"}


def hash_of(secret: str) -> str:
    """What a secret is looked up by."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def environment_id_of(secret: str) -> str:
    """The environment id that belongs to a fixed secret key, the same on every start."""
    number = int.from_bytes(hashlib.sha256(b"environment:" + secret.encode()).digest(), "big")
    digits = string.ascii_lowercase + string.digits
    body = []
    for _ in range(24):
        number, digit = divmod(number, len(digits))
        body.append(digits[digit])
    return "c" + "".join(body)


class Keys:
    """The secret keys of all environments."""

    def __init__(self, state: StateStore, clock: Clock, ids: Ids, master_key: bytes) -> None:
        self._state = state
        self._clock = clock
        self._ids = ids
        self._cipher = AESGCM(master_key)
        self._by_hash: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()
        self._secrets: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        # Raised by every change, so that a look-up begun before it is not cached after it.
        self._generation = 0

    async def create(self, environment: Environment) -> tuple[ApiKey, str]:
        """A fresh key of an environment, and its plain text, which is not shown again."""
        kind = _KEY_TYPES.get(environment.type, environment.type)
        # From the system's source and not from `Ids`: a key must be unguessable even where ids
        # are seeded for a test.
        body = "".join(secrets.choice(_ALPHABET) for _ in range(24))
        secret = f"tr_{kind}_{body}"
        return await self.adopt(environment, secret), secret

    async def adopt(self, environment: Environment, secret: str) -> ApiKey:
        """Store a key that was chosen elsewhere; a repeat is harmless.

        Raises Conflict when another environment has it.
        """
        digest = hash_of(secret)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, secret.encode(), _bound_to(environment.id, digest))
        key = ApiKey(
            id=self._ids.new("key"),
            environment_id=environment.id,
            sha256=digest,
            ciphertext=nonce + sealed,
            hint=secret[:_HINT_CHARS] + "…",
            created_at_ms=self._clock.now_ms(),
        )
        await self._state.add_key(key)
        self.forget()
        return await self._state.key_by_sha256(digest) or key

    async def revoke(self, environment_id: str, key_id: str, *, at_once: bool = False) -> bool:
        """Revoke a key; it works for 24 hours more. False when there is no such key in use.

        Args:
            at_once: for a key that leaked: it counts as revoked those 24 hours ago, also when it
                was revoked before and would work on for some of them. A running server that has it
                in its cache goes on for CACHE_S.
        """
        now_ms = self._clock.now_ms() - (limits.REVOKED_KEY_GRACE_MS if at_once else 0)
        revoked = await self._state.revoke_key(environment_id, key_id, now_ms=now_ms)
        self.forget()
        return revoked

    def forget(self) -> None:
        """Drop what is cached: a key was added or revoked."""
        self._generation += 1
        self._by_hash.clear()
        self._secrets.clear()

    async def find(self, secret: str) -> ApiKey | None:
        """The key of that text, None when there is none or its time is over."""
        digest = hash_of(secret)
        now = self._clock.monotonic()
        cached = self._by_hash.get(digest)
        if cached is not None and cached[0] > now:
            key = cached[1]
        else:
            generation = self._generation
            key = await self._state.key_by_sha256(digest)
            if generation == self._generation:
                _keep(self._by_hash, digest, (now + CACHE_S, key), CACHE_KEYS_MAX)
        return key if key is not None and self._works(key) else None

    async def secrets_of(self, environment_id: str) -> tuple[str, ...]:
        """Plain texts a token may be signed with: working keys newest first, revoked ones last.

        The first is the one to sign with. Empty when the environment has no key or is unknown.
        Raises ConfigurationError when it has keys and none opens under this master key.
        """
        now = self._clock.monotonic()
        cached = self._secrets.get(environment_id)
        if cached is not None and cached[0] > now:
            return cached[1]
        generation = self._generation
        keys = await self._state.keys(environment_id)
        found = self._opened(keys)
        if generation == self._generation:
            _keep(self._secrets, environment_id, (now + CACHE_S, found), CACHE_ENVIRONMENTS_MAX)
        return found

    def _opened(self, keys: Sequence[ApiKey]) -> tuple[str, ...]:
        usable = [key for key in keys if self._works(key)]
        usable.sort(key=lambda key: key.revoked_at_ms is not None)  # stable: newest first stays
        opened: list[str] = []
        closed: ConfigurationError | None = None
        for key in usable:
            try:
                opened.append(self.reveal(key))
            except ConfigurationError as error:
                # From before the master key was lost. Keys made since must not fall with it.
                closed = error
                log.error("key.not_opened", extra={"key_id": key.id})
        if closed is not None and not opened:
            raise closed
        return tuple(opened)

    def reveal(self, key: ApiKey) -> str:
        """The plain text of a stored key. Raises ConfigurationError under another master key."""
        try:
            plain = _decrypt(self._cipher, key)
        except InvalidTag:
            raise ConfigurationError(
                f"secret key {key.id} does not open under this master key: "
                "the master key is not the one it was stored with"
            ) from None
        return plain.decode()

    def opens(self, key: ApiKey) -> bool:
        """Whether a stored key opens under this master key."""
        try:
            self.reveal(key)
        except ConfigurationError:
            return False
        return True

    def _works(self, key: ApiKey) -> bool:
        if key.revoked_at_ms is None:
            return True
        age_ms = self._clock.now_ms() - key.revoked_at_ms
        return age_ms < limits.REVOKED_KEY_GRACE_MS


def opens(master_key: bytes, key: ApiKey) -> bool:
    """Whether a stored key was stored under this master key."""
    try:
        _decrypt(AESGCM(master_key), key)
    except InvalidTag:
        return False
    return True


def _decrypt(cipher: AESGCM, key: ApiKey) -> bytes:
    nonce, sealed = key.ciphertext[:_NONCE_BYTES], key.ciphertext[_NONCE_BYTES:]
    return cipher.decrypt(nonce, sealed, _bound_to(key.environment_id, key.sha256))


def _bound_to(environment_id: str, digest: str) -> bytes:
    return f"{environment_id}:{digest}".encode()


def _keep(table: OrderedDict[str, _V], name: str, value: _V, size_max: int) -> None:
    table[name] = value
    table.move_to_end(name)
    while len(table) > size_max:
        table.popitem(last=False)
