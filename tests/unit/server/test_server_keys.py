"""Secret keys at rest: sealed, bound to their environment, opened by one master key (P-12)."""

from __future__ import annotations

import msgspec
import pytest

from everturn.clock import SystemClock
from everturn.errors import ConfigurationError
from everturn.ids import RandomIds
from everturn.server.services.keys import Keys, hash_of, opens
from everturn.storage.memory.state import MemoryState
from everturn.storage.ports.rows import ApiKey

pytestmark = pytest.mark.anyio

MASTER = bytes(range(32))


async def stored(slug: str = "prod") -> tuple[Keys, ApiKey, str]:
    """A fresh key as it lies in the store, and its plain text."""
    state = MemoryState()
    environment = await state.ensure_environment(slug, now_ms=0)
    keys = Keys(state, SystemClock(), RandomIds(), MASTER)
    key, secret = await keys.create(environment)
    return keys, key, secret


async def test_nothing_of_a_stored_key_shows_its_text() -> None:
    _, key, secret = await stored()
    row = msgspec.msgpack.encode(key)
    assert secret.encode() not in row
    assert secret[-12:].encode() not in row
    assert key.sha256 == hash_of(secret)


async def test_the_same_key_stored_twice_looks_different() -> None:
    keys, key, secret = await stored()
    environment = await MemoryState().ensure_environment("other", now_ms=0)
    again = Keys(MemoryState(), SystemClock(), RandomIds(), MASTER)
    other = await again.adopt(environment, secret)
    assert other.ciphertext != key.ciphertext
    assert keys.reveal(key) == secret


async def test_a_row_that_was_moved_to_another_environment_does_not_open() -> None:
    keys, key, _ = await stored()
    moved = msgspec.structs.replace(key, environment_id="c" + "x" * 24)
    with pytest.raises(ConfigurationError, match="does not open"):
        keys.reveal(moved)
    assert not opens(MASTER, moved)


async def test_a_row_under_another_hash_does_not_open() -> None:
    keys, key, _ = await stored()
    with pytest.raises(ConfigurationError):
        keys.reveal(msgspec.structs.replace(key, sha256=hash_of("tr_prod_" + "y" * 24)))


async def test_another_master_key_opens_nothing_and_says_so_without_the_key() -> None:
    _, key, secret = await stored()
    other = Keys(MemoryState(), SystemClock(), RandomIds(), bytes(32))
    with pytest.raises(ConfigurationError, match="master key") as refused:
        other.reveal(key)
    assert secret not in str(refused.value)
    assert opens(MASTER, key)


async def test_a_changed_byte_of_a_sealed_key_is_noticed() -> None:
    keys, key, _ = await stored()
    for at in (0, 12, len(key.ciphertext) - 1):
        changed = bytearray(key.ciphertext)
        changed[at] ^= 1
        with pytest.raises(ConfigurationError):
            keys.reveal(msgspec.structs.replace(key, ciphertext=bytes(changed)))


async def test_keys_are_not_guessable_even_where_ids_are_seeded() -> None:
    """Two stores whose ids repeat each other give different keys."""
    secrets = {(await stored())[2] for _ in range(20)}
    assert len(secrets) == 20
    assert all(len(secret.rpartition("_")[2]) == 24 for secret in secrets)


async def test_a_key_from_before_the_master_key_was_lost_does_not_take_those_made_since_with_it() -> (
    None
):
    """`everturn doctor` says to make new keys then; tokens must work with them."""
    state = MemoryState()
    environment = await state.ensure_environment("prod", now_ms=0)
    await Keys(state, SystemClock(), RandomIds(), bytes(32)).create(environment)
    keys = Keys(state, SystemClock(), RandomIds(), MASTER)

    with pytest.raises(ConfigurationError, match="does not open"):
        await keys.secrets_of(environment.id)
    _, secret = await keys.create(environment)
    assert await keys.secrets_of(environment.id) == (secret,)


async def test_a_revoked_key_that_leaked_after_all_is_ended_at_once() -> None:
    state = MemoryState()
    environment = await state.ensure_environment("prod", now_ms=0)
    keys = Keys(state, SystemClock(), RandomIds(), MASTER)
    key, secret = await keys.create(environment)

    assert await keys.revoke(environment.id, key.id)
    assert not await keys.revoke(environment.id, key.id)
    assert await keys.find(secret) is not None
    assert await keys.revoke(environment.id, key.id, at_once=True)
    assert await keys.find(secret) is None
