"""What a run knows of itself: `ctx`, a frozen picture taken when its attempt starts.

A subset of tasks-and-runs §16: what this system has. Tags are those at the start of the attempt.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from everturn.protocol.runs import RunInfo
from everturn.tasks import runtime as runtimes

_ENVIRONMENT_TYPES: Final = {
    "dev": "DEVELOPMENT",
    "prod": "PRODUCTION",
    "staging": "STAGING",
    "preview": "PREVIEW",
}


class AttemptContext(msgspec.Struct, frozen=True, kw_only=True):
    number: int  # from 1
    started_at: datetime


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    tags: tuple[str, ...]
    is_test: bool
    #: True when an earlier attempt was interrupted and its journal is replayed.
    is_recovered: bool
    created_at: datetime
    started_at: datetime
    idempotency_key: str | None
    max_attempts: int
    max_duration: int | None  # seconds
    priority: float  # seconds of head start
    version: str
    parent_run_id: str | None
    root_run_id: str | None
    depth: int


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str


class QueueContext(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class EnvironmentContext(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    slug: str
    type: str  # PRODUCTION, STAGING, DEVELOPMENT or PREVIEW
    branch_name: str | None


class MachineContext(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None


class SessionContext(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    key: str  # external id if there is one, else the id


class TaskContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a run knows of itself. Times are aware datetimes in UTC."""

    run: RunContext
    attempt: AttemptContext
    task: TaskInfo
    queue: QueueContext
    environment: EnvironmentContext
    machine: MachineContext
    session: SessionContext | None


def context_of(info: RunInfo, *, now_ms: int) -> TaskContext:
    """The context of an attempt that starts at `now_ms`."""
    slug, _, branch = info.environment_slug.partition("/")
    return TaskContext(
        run=RunContext(
            id=info.run_id,
            tags=info.tags,
            is_test=info.is_test,
            is_recovered=info.recovered,
            created_at=_time(info.created_at_ms),
            started_at=_time(info.started_at_ms),
            idempotency_key=info.idempotency_key,
            max_attempts=info.max_attempts,
            max_duration=info.max_duration_s,
            priority=info.priority_ms / 1000,
            version=info.version,
            parent_run_id=info.parent_run_id,
            root_run_id=info.root_run_id,
            depth=info.depth,
        ),
        attempt=AttemptContext(number=info.attempt, started_at=_time(now_ms)),
        task=TaskInfo(id=info.task_id),
        queue=QueueContext(name=info.queue),
        environment=EnvironmentContext(
            id=info.environment_id,
            slug=info.environment_slug,
            type=_ENVIRONMENT_TYPES.get(slug, slug.upper()),
            branch_name=branch or None,
        ),
        machine=MachineContext(name=info.machine),
        session=(
            SessionContext(id=info.session_id, key=info.session_key or info.session_id)
            if info.session_id is not None
            else None
        ),
    )


def current_context() -> TaskContext:
    """The context of the run this is called in. Raises NotInRunError outside of one."""
    from everturn.tasks import scope

    return scope.of(runtimes.current()).context


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
