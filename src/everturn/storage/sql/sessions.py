"""Sessions: opening, continuing, closing and listing them.

Two callers that open one external id converge because the id is unique: the loser of the insert
waits for the winner's commit and then finds the row. Two that continue one session converge
because both lock its row and compare its current run first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, delete, or_, select, update

from everturn.errors import Conflict, SessionClosedError
from everturn.rules.run_states import FINAL
from everturn.storage.ports.rows import (
    MakeRun,
    NewRun,
    NewSession,
    OpenedSession,
    Page,
    Run,
    Session,
    SessionFilter,
)
from everturn.storage.ports.texts import check_texts
from everturn.storage.sql.pages import page_of
from everturn.storage.sql.rows import optional, packed, session_of, session_values
from everturn.storage.sql.runs import find_run, insert_run
from everturn.storage.sql.tables import session_tags, sessions
from everturn.storage.sql.transaction import Tx

_BY_ID = select(sessions).where(sessions.c.id == bindparam("id_"))
_BY_EXTERNAL = select(sessions).where(
    sessions.c.environment_id == bindparam("environment_"),
    sessions.c.external_id == bindparam("external_"),
)
_BY_ID_LOCKED = _BY_ID.with_for_update()
_BY_EXTERNAL_LOCKED = _BY_EXTERNAL.with_for_update()
_UPDATE = update(sessions).where(sessions.c.id == bindparam("id_"))
_UNCHECKED = (
    select(sessions)
    .where(sessions.c.unchecked_run_id.is_not(None))
    .order_by(sessions.c.seq)
    .limit(bindparam("limit_"))
)
_UNCHECKED_RUN = select(sessions.c.unchecked_run_id).where(sessions.c.id == bindparam("id_"))
_CHECKED = (
    update(sessions)
    .where(sessions.c.id == bindparam("id_"), sessions.c.unchecked_run_id == bindparam("run_"))
    .values(unchecked_run_id=None)
)


def open_session(
    tx: Tx, environment_id: str, new: NewSession, make_run: MakeRun, *, now_ms: int
) -> OpenedSession:
    if new.external_id is not None:
        found = _locked_by_external(tx, environment_id, new.external_id)
        if found is not None:
            return _reopen(tx, found, new, make_run, now_ms=now_ms)
    opened = _create(tx, environment_id, new, make_run, now_ms=now_ms)
    if opened is not None:
        return opened
    found = _locked_by_external(tx, environment_id, new.external_id or "")
    if found is None:
        raise Conflict(f"the session id {new.id!r} is taken")
    return _reopen(tx, found, new, make_run, now_ms=now_ms)


def _locked_by_external(tx: Tx, environment_id: str, external_id: str) -> Session | None:
    keys = {"environment_": environment_id, "external_": external_id}
    row = tx.row(_BY_EXTERNAL_LOCKED, keys)
    return None if row is None else session_of(row)


def _create(
    tx: Tx, environment_id: str, new: NewSession, make_run: MakeRun, *, now_ms: int
) -> OpenedSession | None:
    """The new row and its first run; None when another caller made the row meanwhile."""
    session = Session(
        id=new.id,
        environment_id=environment_id,
        external_id=new.external_id,
        type=new.type,
        task_id=new.task_id,
        trigger_config=new.trigger_config,
        tags=new.tags,
        metadata=new.metadata,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        expires_at_ms=new.expires_at_ms,
    )
    new_run = msgspec.structs.replace(make_run(session, None), session_id=session.id)
    session = msgspec.structs.replace(session, current_run_id=new_run.id)
    if not tx.insert_new(sessions, session_values(session)):
        return None
    _set_tags(tx, session.id, session.tags)
    run = insert_run(tx, environment_id, new_run, now_ms=now_ms)
    return OpenedSession(session=session, run=run, created=True, run_created=True)


def _reopen(
    tx: Tx, found: Session, new: NewSession, make_run: MakeRun, *, now_ms: int
) -> OpenedSession:
    status = found.status(now_ms)
    if status != "ACTIVE":
        raise SessionClosedError(
            f"Session is {status.lower()}; use a different externalId to create a new session",
            reason=found.closed_reason,
        )
    config = {"trigger_config": msgspec.json.encode(new.trigger_config)}
    tx.change(_UPDATE, {"id_": found.id, "updated_at_ms": now_ms, **config})
    session = msgspec.structs.replace(
        found, trigger_config=new.trigger_config, updated_at_ms=now_ms
    )
    live = _live_run(tx, session)
    if live is not None:
        return OpenedSession(session=session, run=live, created=False, run_created=False)
    wanted = make_run(session, session.current_run_id)
    session, run = _set_current(tx, session, wanted, now_ms=now_ms)
    return OpenedSession(session=session, run=run, created=False, run_created=True)


def _live_run(tx: Tx, session: Session) -> Run | None:
    """The session's current run unless it is missing or final.

    Read without its lock. A run that becomes final just now leaves its session unchecked, which
    needs the session's row that we hold: whoever finishes it looks at the session after us.
    """
    run = find_run(tx, session.current_run_id) if session.current_run_id is not None else None
    return None if run is None or run.state in FINAL else run


def _set_current(tx: Tx, session: Session, new: NewRun, *, now_ms: int) -> tuple[Session, Run]:
    """Give a locked session its next run; it becomes the current one."""
    new = msgspec.structs.replace(new, session_id=session.id)
    run = insert_run(tx, session.environment_id, new, now_ms=now_ms)
    changes = {"current_run_id": run.id, "updated_at_ms": now_ms}
    tx.change(_UPDATE, {"id_": session.id, "unchecked_run_id": None, **changes})
    return msgspec.structs.replace(session, **changes), run


def session(tx: Tx, environment_id: str, key: str) -> Session | None:
    return _find(tx, environment_id, key, lock=False)


def _find(tx: Tx, environment_id: str, key: str, *, lock: bool) -> Session | None:
    if key.startswith("session_"):
        row = tx.row(_BY_ID_LOCKED if lock else _BY_ID, {"id_": key})
    else:
        keys = {"environment_": environment_id, "external_": key}
        row = tx.row(_BY_EXTERNAL_LOCKED if lock else _BY_EXTERNAL, keys)
    if row is None or row.environment_id != environment_id:
        return None
    return session_of(row)


def list_sessions(
    tx: Tx,
    environment_id: str,
    where: SessionFilter,
    *,
    limit: int,
    after: str | None,
    before: str | None,
    now_ms: int,
) -> Page[Session]:
    return page_of(
        tx,
        sessions,
        session_of,
        environment_id,
        _conditions(where, now_ms=now_ms),
        limit=limit,
        after=after,
        before=before,
    )


def _conditions(where: SessionFilter, *, now_ms: int) -> list[ColumnElement[bool]]:
    row = sessions.c
    conditions: list[ColumnElement[bool]] = []
    if where.types:
        conditions.append(row.type.in_(where.types))
    if where.task_ids:
        conditions.append(row.task_id.in_(where.task_ids))
    if where.tags:
        tagged = select(session_tags.c.session_id).where(session_tags.c.tag.in_(where.tags))
        conditions.append(row.id.in_(tagged))
    if where.external_id is not None:
        conditions.append(row.external_id == where.external_id)
    if where.statuses:
        conditions.append(_has_status(where.statuses, now_ms=now_ms))
    if where.created_from_ms is not None:
        conditions.append(row.created_at_ms >= where.created_from_ms)
    if where.created_to_ms is not None:
        conditions.append(row.created_at_ms <= where.created_to_ms)
    return conditions


def _has_status(statuses: Sequence[str], *, now_ms: int) -> ColumnElement[bool]:
    """What `Session.status` says, in SQL."""
    row = sessions.c
    is_open = row.closed_at_ms.is_(None)
    each = {
        "CLOSED": row.closed_at_ms.is_not(None),
        "EXPIRED": and_(is_open, row.expires_at_ms <= now_ms),
        "ACTIVE": and_(is_open, or_(row.expires_at_ms.is_(None), row.expires_at_ms > now_ms)),
    }
    return or_(*(each[status] for status in statuses))


def update_session(
    tx: Tx,
    environment_id: str,
    key: str,
    *,
    now_ms: int,
    tags: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
    clear_metadata: bool,
) -> Session | None:
    check_texts(tags=tags)
    found = _find(tx, environment_id, key, lock=True)
    if found is None:
        return None
    changes: dict[str, Any] = {"updated_at_ms": now_ms}
    columns: dict[str, Any] = {"updated_at_ms": now_ms}
    if tags is not None:
        changes["tags"] = tuple(tags)
        columns["tags"] = packed(tags)
        tx.change(delete(session_tags).filter_by(session_id=found.id))
        _set_tags(tx, found.id, tags)
    if metadata is not None or clear_metadata:
        changes["metadata"] = None if clear_metadata else metadata
        columns["metadata"] = optional(changes["metadata"])
    tx.change(_UPDATE, {"id_": found.id, **columns})
    return msgspec.structs.replace(found, **changes)


def _set_tags(tx: Tx, session_id: str, tags: Sequence[str]) -> None:
    for tag in dict.fromkeys(tags):
        tx.insert_new(session_tags, {"tag": tag, "session_id": session_id})


def close_session(
    tx: Tx, environment_id: str, key: str, *, reason: str | None, now_ms: int
) -> Session | None:
    check_texts(reason=reason)
    found = _find(tx, environment_id, key, lock=True)
    if found is None or found.closed_at_ms is not None:
        return found
    changes = {"closed_at_ms": now_ms, "closed_reason": reason, "updated_at_ms": now_ms}
    tx.change(_UPDATE, {"id_": found.id, **changes})
    return msgspec.structs.replace(found, **changes)


def continue_session(
    tx: Tx,
    session_id: str,
    *,
    replacing: str | None,
    make_run: MakeRun,
    reason: Literal["continuation", "upgrade", "manual"],
    now_ms: int,
) -> tuple[Session, Run] | None:
    row = tx.row(_BY_ID_LOCKED, {"id_": session_id})
    if row is None or row.current_run_id != replacing:
        return None
    found = session_of(row)
    if found.status(now_ms) != "ACTIVE":
        return None
    if reason == "continuation" and _live_run(tx, found) is not None:
        return None
    return _set_current(tx, found, make_run(found, replacing), now_ms=now_ms)


def is_unchecked(tx: Tx, session_id: str, run_id: str) -> bool:
    return bool(tx.scalar(_UNCHECKED_RUN, {"id_": session_id}) == run_id)


def unchecked_sessions(tx: Tx, *, limit: int) -> Sequence[Session]:
    return tuple(session_of(row) for row in tx.rows(_UNCHECKED, {"limit_": limit}))


def checked(tx: Tx, session_id: str, run_id: str) -> None:
    tx.change(_CHECKED, {"id_": session_id, "run_": run_id})
