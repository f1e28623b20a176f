"""Environments and their secret keys."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import bindparam, or_, select, update

from everturn.errors import Conflict
from everturn.ids import internal_id
from everturn.storage.ports.rows import ApiKey, Environment
from everturn.storage.sql.rows import environment_of, key_of
from everturn.storage.sql.tables import api_keys, environments
from everturn.storage.sql.transaction import Tx

_BY_ID = select(environments).where(environments.c.id == bindparam("id_"))
_BY_SLUG = select(environments).where(environments.c.slug == bindparam("slug_"))
_KEY = select(api_keys).where(api_keys.c.sha256 == bindparam("sha256_"))


def ensure_environment(tx: Tx, slug: str, *, now_ms: int, id: str | None) -> Environment:
    row = tx.row(_BY_SLUG, {"slug_": slug})
    if row is None:
        made = id if id is not None else internal_id(tx.settings.ids.new("env"))
        tx.insert_new(environments, {"id": made, "slug": slug, "created_at_ms": now_ms})
        row = tx.row(_BY_SLUG, {"slug_": slug})
    if row is None:
        raise Conflict(f"the environment id {id!r} belongs to another slug than {slug!r}")
    return environment_of(row)


def environment(tx: Tx, environment_id: str) -> Environment | None:
    row = tx.row(_BY_ID, {"id_": environment_id})
    return None if row is None else environment_of(row)


def all_environments(tx: Tx) -> Sequence[Environment]:
    found = tx.rows(select(environments).order_by(environments.c.created_at_ms, environments.c.id))
    return tuple(environment_of(row) for row in found)


def add_key(tx: Tx, key: ApiKey) -> None:
    if tx.insert_new(api_keys, msgspec.structs.asdict(key)):
        return
    known = key_by_sha256(tx, key.sha256)
    if known is None or known.environment_id != key.environment_id:
        raise Conflict("this key belongs to another environment")


def key_by_sha256(tx: Tx, sha256: str) -> ApiKey | None:
    row = tx.row(_KEY, {"sha256_": sha256})
    return None if row is None else key_of(row)


def keys(tx: Tx, environment_id: str) -> Sequence[ApiKey]:
    mine = select(api_keys).where(api_keys.c.environment_id == environment_id)
    found = tx.rows(mine.order_by(api_keys.c.created_at_ms.desc(), api_keys.c.id.desc()))
    return tuple(key_of(row) for row in found)


def revoke_key(tx: Tx, environment_id: str, key_id: str, *, now_ms: int) -> bool:
    revoke = update(api_keys).where(
        api_keys.c.environment_id == environment_id,
        api_keys.c.id == key_id,
        or_(api_keys.c.revoked_at_ms.is_(None), api_keys.c.revoked_at_ms > now_ms),
    )
    return tx.change(revoke.values(revoked_at_ms=now_ms)) > 0
