"""Rows to the port's structs and back. One place, so that a new field is added once."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row

from everturn.protocol.records import InputCursor
from everturn.rules.run_states import RunState
from everturn.storage.ports.rows import ApiKey, Environment, Run, Session, TaskVersion, Wait, Worker
from everturn.storage.sql.tables import Values

_encode = msgspec.json.encode
_decode = msgspec.json.decode


def packed(value: Any) -> bytes | None:
    """JSON bytes; None for None and for what is empty."""
    return _encode(value) if value else None


def environment_of(row: Row[Any]) -> Environment:
    return Environment(id=row.id, slug=row.slug, created_at_ms=row.created_at_ms)


def key_of(row: Row[Any]) -> ApiKey:
    return ApiKey(**row._asdict())


def worker_of(row: Row[Any]) -> Worker:
    values = row._asdict()
    del values["removed"]
    return Worker(**values)


def task_of(row: Row[Any]) -> TaskVersion:
    return TaskVersion(
        task_id=row.task_id,
        kind=row.kind,
        queue=row.queue,
        queue_limit=row.queue_limit,
        config=_decode(row.config),
    )


# --- sessions -------------------------------------------------------------------------------


def session_of(row: Row[Any]) -> Session:
    values = row._asdict()
    for hidden in ("seq", "unchecked_run_id"):
        del values[hidden]
    values["trigger_config"] = _decode(values["trigger_config"])
    values["tags"] = unpacked_tags(values["tags"])
    # `{}` is not None: what a session holds is given back as it was given.
    values["metadata"] = None if row.metadata is None else _decode(row.metadata)
    values["cursor"] = cursor_of(values.pop("cursor_seq"), values.pop("cursor_decided"))
    return Session(**values)


def session_values(session: Session) -> Values:
    return {
        "id": session.id,
        "environment_id": session.environment_id,
        "external_id": session.external_id,
        "type": session.type,
        "task_id": session.task_id,
        "trigger_config": _encode(session.trigger_config),
        "tags": packed(session.tags),
        "metadata": None if session.metadata is None else _encode(session.metadata),
        "created_at_ms": session.created_at_ms,
        "updated_at_ms": session.updated_at_ms,
        "expires_at_ms": session.expires_at_ms,
        "current_run_id": session.current_run_id,
        "fence": session.fence,
    }


def cursor_of(seq_num: int | None, decided: bytes | None) -> InputCursor:
    return InputCursor(seq_num, frozenset(_decode(decided)) if decided else frozenset())


def cursor_values(cursor: InputCursor) -> Values:
    return {"cursor_seq": cursor.seq_num, "cursor_decided": packed(sorted(cursor.decided))}


# --- runs -----------------------------------------------------------------------------------


def run_of(row: Row[Any]) -> Run:
    values = row._asdict()
    for hidden in ("seq", "since_ms", "place_ms"):
        del values[hidden]
    kind, ref = values.pop("wait_kind"), values.pop("wait_ref")
    after, until_ms = values.pop("wait_after"), values.pop("wait_until_ms")
    if kind is not None:
        values["wait"] = Wait(kind=kind, ref=ref, after=after, until_ms=until_ms)
    values["state"] = RunState(values["state"])
    values["concurrency_key"] = values["concurrency_key"] or None
    values["tags"] = unpacked_tags(values["tags"])
    values["streams"] = unpacked_tags(values["streams"])
    for name in ("error", "idempotency_options"):
        if values[name] is not None:
            values[name] = _decode(values[name])
    return Run(**values)


_PLAIN = frozenset(Run.__struct_fields__) - {
    "state",
    "concurrency_key",
    "tags",
    "streams",
    "error",
    "idempotency_options",
    "wait",
}


def run_values(run: Run) -> Values:
    """A whole row, for an insert."""
    values: Values = {name: getattr(run, name) for name in _PLAIN}
    values["state"] = run.state.value
    values["since_ms"] = run.updated_at_ms
    values["place_ms"] = run.queued_at_ms - run.priority_ms
    values["concurrency_key"] = run.concurrency_key or ""
    values["tags"] = packed(run.tags)
    values["streams"] = packed(run.streams)
    values["idempotency_options"] = optional(run.idempotency_options)
    return values


def wait_values(wait: Wait | None) -> Values:
    if wait is None:
        return {"wait_kind": None, "wait_ref": None, "wait_after": None, "wait_until_ms": None}
    return {
        "wait_kind": wait.kind,
        "wait_ref": wait.ref,
        "wait_after": wait.after,
        "wait_until_ms": wait.until_ms,
    }


def optional(value: Any) -> bytes | None:
    """JSON bytes; None only for None."""
    return None if value is None else _encode(value)


def unpacked_tags(stored: bytes | None) -> tuple[str, ...]:
    """What `packed` made of tags."""
    return tuple(_decode(stored)) if stored else ()
