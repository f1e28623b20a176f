"""Forgetting: rows that are over and that nobody can ask for any more, a bounded bite at a time.

What keeps a row is said in `storage/ports/retention.py`. Each search goes along an index of what
is over, oldest first, so a pass that finds nothing old costs one look-up. Keys are deleted before
their runs: that is the order in which a trigger locks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Select,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)

from everturn.rules.run_states import FINAL, RunState
from everturn.storage.ports.retention import PacketName
from everturn.storage.ports.rows import Run
from everturn.storage.sql.rows import run_of
from everturn.storage.sql.tables import (
    batch_items,
    batches,
    chores,
    in_states,
    journal,
    packets,
    run_keys,
    run_tags,
    runs,
    sessions,
    waitpoint_tags,
    waitpoints,
)
from everturn.storage.sql.transaction import Tx

_FINAL: Final = sorted(state.value for state in FINAL)
_parents = runs.alias("parents")
_NEEDED_BY_PARENT = exists().where(
    _parents.c.id == runs.c.parent_run_id, _parents.c.state.not_in(_FINAL)
)
_waiting = runs.alias("waiting")
_WAITED_FOR = exists().where(
    literal_column("waiting.state = 'SUSPENDED' AND waiting.wait_kind = 'run'"),
    _waiting.c.wait_ref == runs.c.id,
)
_CURRENT = exists().where(
    sessions.c.id == runs.c.session_id, sessions.c.current_run_id == runs.c.id
)
_KEYED = exists().where(run_keys.c.run_id == runs.c.id, run_keys.c.expires_ms > bindparam("now_"))
_OLD_RUNS = (
    select(runs)
    .where(
        literal_column("runs.finished_at_ms IS NOT NULL"),
        runs.c.finished_at_ms <= bindparam("before_"),
        ~_NEEDED_BY_PARENT,
        ~_WAITED_FOR,
        ~_CURRENT,
        ~_KEYED,
    )
    .order_by(runs.c.finished_at_ms, runs.c.id)
    .limit(bindparam("limit_"))
)
_AWAITED = exists().where(
    in_states(RunState.SUSPENDED),
    literal_column("runs.wait_kind = 'token'"),
    runs.c.wait_ref == waitpoints.c.id,
)
_OLD_WAITPOINTS = (
    select(waitpoints.c.id)
    .where(
        literal_column("waitpoints.completed_at_ms IS NOT NULL"),
        waitpoints.c.completed_at_ms <= bindparam("before_"),
        func.coalesce(waitpoints.c.idempotency_expires_ms, 0) <= bindparam("now_"),
        ~_AWAITED,
    )
    .order_by(waitpoints.c.completed_at_ms)
    .limit(bindparam("limit_"))
)
_HAS_RUNS = exists().where(
    batch_items.c.batch_id == batches.c.id, runs.c.id == batch_items.c.run_id
)
_OLD_BATCHES = (
    select(batches.c.id)
    .where(
        batches.c.created_at_ms <= bindparam("before_"),
        func.coalesce(batches.c.idempotency_expires_ms, 0) <= bindparam("now_"),
        ~_HAS_RUNS,
    )
    .order_by(batches.c.created_at_ms)
    .limit(bindparam("limit_"))
)
_OLD_KEYS = (
    select(run_keys.c.environment_id, run_keys.c.scope, run_keys.c.key)
    .where(
        literal_column("run_keys.expires_ms IS NOT NULL"),
        run_keys.c.expires_ms <= bindparam("now_"),
    )
    .limit(bindparam("limit_"))
)
#: A packet's name as the bytes a payload is; each database has its own word for it.
_BYTES: Final = {
    "sqlite": cast(packets.c.name, LargeBinary),
    "postgresql": func.convert_to(packets.c.name, "UTF8"),
}


def take_chore(tx: Tx, name: str, *, now_ms: int, every_ms: int) -> bool:
    mine = {"name": name, "next_ms": now_ms + every_ms}
    if tx.insert_new(chores, mine):
        return True
    is_due = or_(chores.c.next_ms <= now_ms, chores.c.next_ms > now_ms + every_ms)
    due = update(chores).where(chores.c.name == name, is_due)
    return tx.change(due.values(next_ms=now_ms + every_ms)) > 0


def forgettable_runs(tx: Tx, *, finished_before_ms: int, now_ms: int, limit: int) -> Sequence[Run]:
    values = {"before_": finished_before_ms, "now_": now_ms, "limit_": limit}
    return tuple(run_of(row) for row in tx.rows(_OLD_RUNS, values))


def forget_runs(tx: Tx, run_ids: Sequence[str]) -> int:
    tx.change(delete(run_keys).where(run_keys.c.run_id.in_(run_ids)))
    tx.change(delete(run_tags).where(run_tags.c.run_id.in_(run_ids)))
    tx.change(delete(journal).where(journal.c.run_id.in_(run_ids)))
    return tx.change(delete(runs).where(runs.c.id.in_(run_ids), runs.c.state.in_(_FINAL)))


def forget_keys(tx: Tx, *, now_ms: int, limit: int) -> int:
    over = tx.rows(_OLD_KEYS, {"now_": now_ms, "limit_": limit})
    if not over:
        return 0
    these: list[ColumnElement[bool]] = [
        (run_keys.c.environment_id == row.environment_id)
        & (run_keys.c.scope == row.scope)
        & (run_keys.c.key == row.key)
        for row in over
    ]
    # Named again, because one of them may have been taken by a new run meanwhile.
    return tx.change(delete(run_keys).where(or_(*these), run_keys.c.expires_ms <= now_ms))


def forget_waitpoints(tx: Tx, *, completed_before_ms: int, now_ms: int, limit: int) -> int:
    ids = _ids(tx, _OLD_WAITPOINTS, completed_before_ms, now_ms, limit)
    tx.change(delete(waitpoint_tags).where(waitpoint_tags.c.waitpoint_id.in_(ids)))
    return tx.change(delete(waitpoints).where(waitpoints.c.id.in_(ids)))


def forget_batches(tx: Tx, *, created_before_ms: int, now_ms: int, limit: int) -> int:
    ids = _ids(tx, _OLD_BATCHES, created_before_ms, now_ms, limit)
    tx.change(delete(batch_items).where(batch_items.c.batch_id.in_(ids)))
    return tx.change(delete(batches).where(batches.c.id.in_(ids)))


def _ids(tx: Tx, statement: Select[Any], before_ms: int, now_ms: int, limit: int) -> list[str]:
    values = {"before_": before_ms, "now_": now_ms, "limit_": limit}
    return [row.id for row in tx.rows(statement, values)]


def note_packet(tx: Tx, environment_id: str, name: str, *, now_ms: int) -> None:
    row = {"environment_id": environment_id, "name": name, "noted_at_ms": now_ms}
    tx.upsert(packets, row)


def forgettable_packets(tx: Tx, *, noted_before_ms: int, limit: int) -> Sequence[PacketName]:
    used = exists().where(
        literal_column("runs.payload_type = 'application/store'"),
        runs.c.environment_id == packets.c.environment_id,
        runs.c.payload == _BYTES[tx.connection.dialect.name],
    )
    statement = (
        select(packets.c.environment_id, packets.c.name)
        .where(packets.c.noted_at_ms <= noted_before_ms, ~used)
        .order_by(packets.c.noted_at_ms, packets.c.environment_id, packets.c.name)
        .limit(limit)
    )
    return tuple(PacketName(row.environment_id, row.name) for row in tx.rows(statement))


def forget_packet(tx: Tx, packet: PacketName, *, noted_before_ms: int) -> None:
    mine = (packets.c.environment_id == packet.environment_id) & (packets.c.name == packet.name)
    tx.change(delete(packets).where(mine, packets.c.noted_at_ms <= noted_before_ms))
