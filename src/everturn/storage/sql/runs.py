"""One run's life: made, started, suspended, woken, queued again, finished.

Every move locks the run's row by a SELECT that names the states it is legal from (the table in
`rules/run_states.py`), and writes only what the move changes. Two moves that race therefore have
one winner: the other finds the state or the fence different and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Row, Select, bindparam, delete, select, update

from everturn.protocol.records import InputCursor
from everturn.rules.run_states import KEY_FREEING, RunEvent, RunState, next_state, sources
from everturn.storage.ports.debouncing import expiry_ms, pushed
from everturn.storage.ports.rows import NewRun, Run, Wait, queued_run
from everturn.storage.ports.texts import check_texts
from everturn.storage.sql.cursors import advance_cursor
from everturn.storage.sql.rows import optional, packed, run_of, run_values, wait_values
from everturn.storage.sql.slots import Slots
from everturn.storage.sql.tables import Values, journal, run_keys, run_tags, runs, sessions
from everturn.storage.sql.transaction import Tx

#: The scope of keys of one HTTP call; an idempotency key has its task for a scope.
REQUEST = "request"

#: Scope, key, and when it is free again.
_Key = tuple[str, str, int | None]

_BY_ID = select(runs).where(runs.c.id == bindparam("id_"))
_BY_ID_LOCKED = _BY_ID.with_for_update()
_INSERT = runs.insert().inline()
_UPDATE = update(runs).where(runs.c.id == bindparam("id_"))
_KEY = select(run_keys).where(
    run_keys.c.environment_id == bindparam("environment_"),
    run_keys.c.scope == bindparam("scope_"),
    run_keys.c.key == bindparam("key_"),
)
_KEY_LOCKED = _KEY.with_for_update()
_DROP_KEY = delete(run_keys).where(
    run_keys.c.environment_id == bindparam("environment_"),
    run_keys.c.scope == bindparam("scope_"),
    run_keys.c.key == bindparam("key_"),
)
_DROP_TAGS = delete(run_tags).where(run_tags.c.run_id == bindparam("run_"))
_DROP_JOURNAL = delete(journal).where(journal.c.run_id == bindparam("run_"))
_CURRENT_LOCKED = (
    select(sessions.c.current_run_id).where(sessions.c.id == bindparam("id_")).with_for_update()
)
_UNCHECK = (
    update(sessions)
    .where(sessions.c.id == bindparam("id_"), sessions.c.current_run_id == bindparam("run_"))
    .values(unchecked_run_id=bindparam("run_"))
)


# --- making and finding ---------------------------------------------------------------------


def insert_run(tx: Tx, environment_id: str, new: NewRun, *, now_ms: int) -> Run:
    run = queued_run(environment_id, new, now_ms=now_ms)
    tx.change(_INSERT, run_values(run))
    set_tags(tx, run.id, run.tags)
    return run


def set_tags(tx: Tx, run_id: str, tags: Sequence[str]) -> None:
    for tag in dict.fromkeys(tags):
        tx.insert_new(run_tags, {"tag": tag, "run_id": run_id})


def create_run(tx: Tx, environment_id: str, new: NewRun, *, now_ms: int) -> tuple[Run, bool]:
    keys = _keys_of(new)
    for place, (scope, key, expires_ms) in enumerate(keys):
        found = _take_key(tx, environment_id, scope, key, new.id, expires_ms, now_ms=now_ms)
        if found is not None:
            _name(tx, environment_id, keys[:place], found.id)
            return found, False
    moved = _debounced(tx, environment_id, new, now_ms=now_ms)
    if moved is None:
        return insert_run(tx, environment_id, new, now_ms=now_ms), True
    _name(tx, environment_id, keys, moved.id)
    return moved, False


def _name(tx: Tx, environment_id: str, keys: Sequence[_Key], run_id: str) -> None:
    """Keys that were taken for a run that is not made name the one that is answered."""
    for scope, key, expires_ms in keys:
        row = {"environment_id": environment_id, "scope": scope, "key": key}
        tx.upsert(run_keys, {**row, "run_id": run_id, "expires_ms": expires_ms})


def run_by_request(tx: Tx, environment_id: str, request_key: str, *, now_ms: int) -> Run | None:
    held = tx.row(_KEY, {"environment_": environment_id, "scope_": REQUEST, "key_": request_key})
    if held is None or (held.expires_ms is not None and held.expires_ms <= now_ms):
        return None
    return find_run(tx, held.run_id)


def _debounced(tx: Tx, environment_id: str, new: NewRun, *, now_ms: int) -> Run | None:
    """The delayed run of the call's key, moved; else the key is the new run's, and None."""
    if new.debounce is None:
        return None
    mine = {
        "environment_id": environment_id,
        "scope": f"debounce:{new.task_id}",
        "key": new.debounce.key,
        "run_id": new.id,
        "expires_ms": None,
    }
    held = _insert_or_lock(tx, mine)
    if held is None:
        return None
    run = lock_run(tx, held.run_id)
    changes = None if run is None else pushed(run, new, now_ms=now_ms)
    if run is None or changes is None:
        tx.upsert(run_keys, mine)
        return None
    if "tags" in changes:
        tx.change(_DROP_TAGS, {"run_": run.id})
        set_tags(tx, run.id, new.tags)
    return save(tx, run, now_ms=now_ms, **changes)


def _keys_of(new: NewRun) -> list[_Key]:
    keys: list[_Key] = []
    if new.request_key is not None:
        keys.append((REQUEST, new.request_key, new.request_expires_ms))
    if new.idempotency_key is not None:
        keys.append((f"task:{new.task_id}", new.idempotency_key, new.idempotency_expires_ms))
    return keys


def _take_key(
    tx: Tx,
    environment_id: str,
    scope: str,
    key: str,
    run_id: str,
    expires_ms: int | None,
    *,
    now_ms: int,
) -> Run | None:
    """Make a key name `run_id`, or answer the run that holds it.

    The primary key decides between two that race: the loser waits for the winner's commit.
    """
    row = {"environment_id": environment_id, "scope": scope, "key": key}
    mine = {**row, "run_id": run_id, "expires_ms": expires_ms}
    held = _insert_or_lock(tx, mine)
    if held is None:
        return None
    if held.expires_ms is None or held.expires_ms > now_ms:
        holder = find_run(tx, held.run_id)
        # A request key belongs to one HTTP call over its retries, however its run ended.
        if holder is not None and (scope == REQUEST or holder.state not in KEY_FREEING):
            return holder
    tx.upsert(run_keys, mine)
    return None


def _insert_or_lock(tx: Tx, mine: Values) -> Row[Any] | None:
    """Insert the row of a key, or answer the one that is there, locked. None: inserted."""
    named = {
        "environment_": mine["environment_id"],
        "scope_": mine["scope"],
        "key_": mine["key"],
    }
    return tx.insert_or_lock(run_keys, mine, _KEY_LOCKED, named)


def release_key(tx: Tx, environment_id: str, task_id: str, key: str) -> bool:
    held = {"environment_": environment_id, "scope_": f"task:{task_id}", "key_": key}
    return tx.change(_DROP_KEY, held) > 0


def reschedule_run(
    tx: Tx, environment_id: str, run_id: str, *, not_before_ms: int, now_ms: int
) -> Run | None:
    found = lock_run(tx, run_id)
    if found is None or found.environment_id != environment_id:
        return None
    if found.state is not RunState.QUEUED or found.attempt > 0:
        return None
    if found.not_before_ms is None or found.not_before_ms <= now_ms:
        return None
    expire_at_ms = expiry_ms(found.ttl_ms, not_before_ms)
    return save(tx, found, now_ms=now_ms, not_before_ms=not_before_ms, expire_at_ms=expire_at_ms)


def find_run(tx: Tx, run_id: str) -> Run | None:
    row = tx.row(_BY_ID, {"id_": run_id})
    return None if row is None else run_of(row)


def run(tx: Tx, environment_id: str | None, run_id: str) -> Run | None:
    found = find_run(tx, run_id)
    if found is not None and environment_id not in (None, found.environment_id):
        return None
    return found


# --- locking and saving ---------------------------------------------------------------------


def lock_run(tx: Tx, run_id: str) -> Run | None:
    """The run, whatever its state, locked."""
    row = tx.row(_BY_ID_LOCKED, {"id_": run_id})
    return None if row is None else run_of(row)


@cache
def _lock_for(event: RunEvent) -> Select[Any]:
    legal = [state.value for state in sorted(sources(event))]
    return _BY_ID.where(runs.c.state.in_(legal)).with_for_update()


def _guarded(
    tx: Tx,
    run_id: str,
    event: RunEvent,
    fence: int | None,
    only_from: frozenset[RunState] | None = None,
) -> Run | None:
    """The run, locked, if `event` is legal for it now, its fence is the caller's, and it is in one
    of the states that the caller means."""
    row = tx.row(_lock_for(event), {"id_": run_id})
    if row is None or fence not in (None, row.fence):
        return None
    run = run_of(row)
    return run if only_from is None or run.state in only_from else None


def save(tx: Tx, run: Run, *, now_ms: int, **changes: Any) -> Run:
    """Write what changes of a locked run, and answer the row as it is now."""
    columns: Values = {"updated_at_ms": now_ms}
    for name, value in changes.items():
        if name == "wait":
            columns.update(wait_values(value))
        elif name in ("tags", "streams"):
            columns[name] = packed(value)
        elif name == "error":
            columns["error"] = optional(value)
        elif name == "state":
            columns["state"] = value.value
            if value is not run.state:
                columns["since_ms"] = now_ms
        else:
            columns[name] = value
    tx.change(_UPDATE, {"id_": run.id, **columns})
    return msgspec.structs.replace(run, updated_at_ms=now_ms, **changes)


# --- moves ----------------------------------------------------------------------------------


def start_run(tx: Tx, run_id: str, *, fence: int, now_ms: int) -> bool:
    run = _guarded(tx, run_id, RunEvent.START, fence)
    if run is None:
        return False
    executed = now_ms if run.executed_at_ms is None else run.executed_at_ms
    state = next_state(run.state, RunEvent.START)
    save(tx, run, now_ms=now_ms, state=state, executed_at_ms=executed)
    return True


def suspend_run(tx: Tx, run_id: str, wait: Wait, *, fence: int, now_ms: int) -> Run | None:
    run = _guarded(tx, run_id, RunEvent.SUSPEND, fence)
    if run is None:
        return None
    return save(tx, run, now_ms=now_ms, state=next_state(run.state, RunEvent.SUSPEND), wait=wait)


def wake_run(tx: Tx, run_id: str, *, now_ms: int, take_slot: bool) -> Run | None:
    run = _guarded(tx, run_id, RunEvent.WAKE, None)
    if run is None:
        return None
    if run.worker_id is None:
        # Evicted or orphaned: nobody holds its coroutine, so it starts again from its journal.
        return _queue_again(tx, run, RunEvent.INTERRUPT, now_ms=now_ms)
    state = next_state(run.state, RunEvent.WAKE)
    if take_slot and Slots(tx, run.environment_id).take(run.queue, run.concurrency_key):
        state = next_state(state, RunEvent.RESUME)
    return save(tx, run, now_ms=now_ms, state=state)


def requeue_run(
    tx: Tx,
    run_id: str,
    event: RunEvent,
    *,
    now_ms: int,
    fence: int | None,
    interruptions: int | None,
    not_before_ms: int | None,
    machine: str | None,
    unpin: bool,
    only_from: frozenset[RunState] | None,
) -> Run | None:
    run = _guarded(tx, run_id, event, fence, only_from)
    if run is None:
        return None
    changes: dict[str, Any] = {"not_before_ms": not_before_ms}
    if event is RunEvent.RETRY:
        changes["failures"] = run.failures + 1
        tx.change(_DROP_JOURNAL, {"run_": run_id})
    if interruptions is not None:
        changes["interruptions"] = interruptions
    if machine is not None:
        changes["machine"] = machine
    if unpin:
        changes["version"] = None
    still_waits = run.state is RunState.SUSPENDED and run.wait is not None
    if still_waits and not _superseded(tx, run):
        return save(tx, run, now_ms=now_ms, worker_id=None, **changes)
    return _queue_again(tx, run, event, now_ms=now_ms, **changes)


def _queue_again(tx: Tx, run: Run, event: RunEvent, *, now_ms: int, **changes: Any) -> Run:
    """To QUEUED; or COMPLETED when its session has gone on without it (rulings §1.11)."""
    if _superseded(tx, run):
        state = next_state(run.state, RunEvent.COMPLETE)
        return _end(tx, run, state, now_ms=now_ms, **changes)
    state = next_state(run.state, event)
    return save(tx, run, now_ms=now_ms, state=state, worker_id=None, wait=None, **changes)


def _superseded(tx: Tx, run: Run) -> bool:
    """Whether a session run is no longer its session's current one.

    Locks the session, so that a swap that happens now is either seen here or finds the run as
    this transaction leaves it.
    """
    if run.session_id is None:
        return False
    current: str | None = tx.scalar(_CURRENT_LOCKED, {"id_": run.session_id})
    return current != run.id


def finish_run(
    tx: Tx,
    run_id: str,
    event: RunEvent,
    *,
    now_ms: int,
    fence: int | None,
    output: bytes | None,
    output_type: str | None,
    error: Mapping[str, Any] | None,
    metadata: bytes | None,
    cursor: InputCursor | None,
    only_from: frozenset[RunState] | None,
) -> Run | None:
    check_texts(output_type=output_type)
    run = _guarded(tx, run_id, event, fence, only_from)
    if run is None:
        return None
    changes: dict[str, Any] = {"output": output, "output_type": output_type, "error": error}
    if metadata is not None:
        changes["metadata"] = metadata
    if cursor is not None and run.session_id is not None:
        advance_cursor(tx, run.session_id, cursor)
    return _end(tx, run, next_state(run.state, event), now_ms=now_ms, **changes)


def _end(tx: Tx, run: Run, state: RunState, *, now_ms: int, **changes: Any) -> Run:
    """Make a locked run final, and leave its session unchecked if it was the current one."""
    changes = {**changes, "state": state, "wait": None, "finished_at_ms": now_ms}
    ended = save(tx, run, now_ms=now_ms, **changes)
    tx.change(_DROP_JOURNAL, {"run_": run.id})
    if run.session_id is not None:
        tx.change(_UNCHECK, {"id_": run.session_id, "run_": run.id})
    return ended


def clear_boot_input(tx: Tx, run_id: str) -> None:
    tx.change(_UPDATE, {"id_": run_id, "boot_input": None})
