"""The tables of the state, for SQLite and PostgreSQL alike.

Every row of a run or session carries `seq`, which rises in the order rows were made: it breaks
ties between rows of one millisecond and gives pages their stable order.

Nearly all runs there ever were are final or suspended, and the verbs that run all the time look
for the few that are not. Hence the partial indexes: each holds only the rows of one state, so
claiming a run costs the same beside a hundred finished runs or a hundred thousand. Both databases
use such an index only for a query that names the state literally; `in_states` writes it so.

JSON is stored as bytes as msgspec encodes it: no verb looks inside, and the two databases would
disagree about its type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

from everturn.rules.run_states import RESIDENT, SLOTTED, RunState

metadata: Final = MetaData()

#: SQLite counts rows only in a column of exactly the type INTEGER.
_Seq = BigInteger().with_variant(Integer(), "sqlite")
_Ms = BigInteger


def _states(states: Iterable[RunState]) -> str:
    # Sorted, because SQLite compares this text with the index's own, word for word.
    return ", ".join(f"'{state.value}'" for state in sorted(states))


def in_states(*states: RunState) -> ColumnElement[bool]:
    """`runs.state` is one of `states`, written out literally so that partial indexes apply."""
    if len(states) == 1:
        return literal_column(f"runs.state = '{states[0].value}'")
    return literal_column(f"runs.state IN ({_states(states)})")


def _partial(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


environments = Table(
    "environments",
    metadata,
    Column("id", String, primary_key=True),
    Column("slug", String, nullable=False, unique=True),
    Column("created_at_ms", _Ms, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("id", String, nullable=False),
    Column("environment_id", String, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("hint", String, nullable=False),
    Column("created_at_ms", _Ms, nullable=False),
    Column("revoked_at_ms", _Ms),
    Index("ix_api_keys_environment", "environment_id", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True),
    Column("environment_id", String, nullable=False),
    Column("version", String, nullable=False),
    Column("server_id", String, nullable=False),
    Column("lease_until_ms", _Ms, nullable=False),
    Column("registered_at_ms", _Ms, nullable=False),
    Column("draining", Boolean, nullable=False),
    #: A removed worker is remembered for a while, so that one that comes back is known.
    Column("removed", Boolean, nullable=False),
    Index("ix_workers_environment", "environment_id", "version"),
)

versions = Table(
    "versions",
    metadata,
    Column("environment_id", String),
    Column("version", String),
    #: The highest is the newest version of the environment.
    Column("rank", Integer, nullable=False),
    PrimaryKeyConstraint("environment_id", "version"),
)

version_tasks = Table(
    "version_tasks",
    metadata,
    Column("environment_id", String),
    Column("version", String),
    Column("task_id", String),
    PrimaryKeyConstraint("environment_id", "version", "task_id"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("environment_id", String),
    Column("task_id", String),
    Column("kind", String, nullable=False),
    Column("queue", String, nullable=False),
    Column("queue_limit", Integer),
    Column("config", LargeBinary, nullable=False),
    PrimaryKeyConstraint("environment_id", "task_id"),
)

queues = Table(
    "queues",
    metadata,
    Column("environment_id", String),
    Column("name", String),
    Column("concurrency_limit", Integer),
    PrimaryKeyConstraint("environment_id", "name"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("environment_id", String, nullable=False),
    Column("external_id", String),
    Column("type", String, nullable=False),
    Column("task_id", String, nullable=False),
    Column("trigger_config", LargeBinary, nullable=False),
    Column("tags", LargeBinary),
    Column("metadata", LargeBinary),
    Column("created_at_ms", _Ms, nullable=False),
    Column("updated_at_ms", _Ms, nullable=False),
    Column("expires_at_ms", _Ms),
    Column("closed_at_ms", _Ms),
    Column("closed_reason", Text),
    Column("current_run_id", String),
    Column("fence", _Ms, nullable=False),
    Column("cursor_seq", _Ms),
    Column("cursor_decided", LargeBinary),
    #: The current run, when it became final and nobody has looked for open input since.
    Column("unchecked_run_id", String),
    UniqueConstraint("environment_id", "external_id"),
    Index("ix_sessions_page", "environment_id", "created_at_ms", "seq"),
    _partial("ix_sessions_unchecked", "seq", where="unchecked_run_id IS NOT NULL"),
)

session_tags = Table(
    "session_tags",
    metadata,
    Column("tag", String),
    Column("session_id", String),
    PrimaryKeyConstraint("tag", "session_id"),
    Index("ix_session_tags_session", "session_id"),
)

consumed = Table(
    "consumed",
    metadata,
    Column("session_id", String),
    Column("task_id", String),
    Column("seq_num", _Ms),
    PrimaryKeyConstraint("session_id", "task_id"),
)

runs = Table(
    "runs",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("environment_id", String, nullable=False),
    Column("task_id", String, nullable=False),
    Column("state", String, nullable=False),
    #: When it came into this state.
    Column("since_ms", _Ms, nullable=False),
    Column("queue", String, nullable=False),
    #: Empty for none: a NULL would be unequal to itself where sub-queues are compared.
    Column("concurrency_key", String, nullable=False),
    #: `queued_at_ms - priority_ms`: lowest first.
    Column("place_ms", _Ms, nullable=False),
    Column("queued_at_ms", _Ms, nullable=False),
    Column("priority_ms", _Ms, nullable=False),
    Column("not_before_ms", _Ms),
    Column("version", String),
    Column("worker_id", String),
    Column("fence", _Ms, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("max_attempts", Integer),
    Column("max_duration_s", Integer),
    Column("machine", String),
    Column("wait_kind", String),
    Column("wait_ref", String),
    Column("wait_after", _Ms),
    Column("wait_until_ms", _Ms),
    Column("session_id", String),
    Column("continuation", Boolean, nullable=False),
    Column("previous_run_id", String),
    Column("parent_run_id", String),
    Column("root_run_id", String),
    Column("depth", Integer, nullable=False),
    Column("trigger_function", String, nullable=False),
    Column("is_test", Boolean, nullable=False),
    Column("created_at_ms", _Ms, nullable=False),
    Column("updated_at_ms", _Ms, nullable=False),
    Column("started_at_ms", _Ms),
    Column("executed_at_ms", _Ms),
    Column("finished_at_ms", _Ms),
    Column("idempotency_key", String),
    Column("idempotency_options", LargeBinary),
    Column("tags", LargeBinary),
    Column("batch_id", String),
    Column("ttl_ms", _Ms),
    Column("expire_at_ms", _Ms),
    Column("streams", LargeBinary),
    # Large columns stand last: SQLite then reads the others without following their pages.
    Column("error", LargeBinary),
    Column("payload_type", String, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("boot_input", LargeBinary),
    Column("metadata", LargeBinary),
    Column("output_type", String),
    Column("output", LargeBinary),
    Index("ix_runs_page", "environment_id", "created_at_ms", "seq"),
    _partial("ix_runs_session", "session_id", "seq", where="session_id IS NOT NULL"),
    _partial("ix_runs_parent", "parent_run_id", "seq", where="parent_run_id IS NOT NULL"),
    _partial(
        "ix_runs_queued",
        "environment_id",
        "place_ms",
        "created_at_ms",
        "seq",
        where="state = 'QUEUED'",
    ),
    _partial(
        "ix_runs_delayed",
        "not_before_ms",
        where="state = 'QUEUED' AND not_before_ms IS NOT NULL",
    ),
    _partial(
        "ix_runs_pinned",
        "since_ms",
        where="state = 'QUEUED' AND session_id IS NOT NULL AND version IS NOT NULL",
    ),
    _partial("ix_runs_claimed", "since_ms", where="state = 'CLAIMED'"),
    _partial(
        "ix_runs_bounded",
        "since_ms",
        where="state = 'RUNNING' AND max_duration_s IS NOT NULL",
    ),
    _partial(
        "ix_runs_due",
        "wait_until_ms",
        "seq",
        where="state = 'SUSPENDED' AND wait_until_ms IS NOT NULL",
    ),
    _partial("ix_runs_batch", "batch_id", "seq", where="batch_id IS NOT NULL"),
    _partial(
        "ix_runs_waiting_token", "wait_ref", where="state = 'SUSPENDED' AND wait_kind = 'token'"
    ),
    _partial("ix_runs_waiting", "wait_ref", where="state = 'SUSPENDED' AND wait_kind = 'run'"),
    _partial(
        "ix_runs_expiring",
        "expire_at_ms",
        where="state = 'QUEUED' AND expire_at_ms IS NOT NULL",
    ),
    _partial("ix_runs_finished", "finished_at_ms", where="finished_at_ms IS NOT NULL"),
    _partial(
        "ix_runs_stored",
        "environment_id",
        "payload",
        where="payload_type = 'application/store'",
    ),
    _partial("ix_runs_resuming", "worker_id", "place_ms", where="state = 'RESUMING'"),
    _partial(
        "ix_runs_slots",
        "environment_id",
        "queue",
        "concurrency_key",
        where=f"state IN ({_states(SLOTTED)})",
    ),
    _partial(
        "ix_runs_resident",
        "worker_id",
        where=f"state IN ({_states(RESIDENT)}) AND worker_id IS NOT NULL",
    ),
)

run_tags = Table(
    "run_tags",
    metadata,
    Column("tag", String),
    Column("run_id", String),
    PrimaryKeyConstraint("tag", "run_id"),
    Index("ix_run_tags_run", "run_id"),
)

#: What finds a run again: `scope` is `request`, or `task:<id>` for an idempotency key.
run_keys = Table(
    "run_keys",
    metadata,
    Column("environment_id", String),
    Column("scope", String),
    Column("key", String),
    Column("run_id", String, nullable=False),
    Column("expires_ms", _Ms),
    PrimaryKeyConstraint("environment_id", "scope", "key"),
    Index("ix_run_keys_run", "run_id"),
    _partial("ix_run_keys_expires", "expires_ms", where="expires_ms IS NOT NULL"),
)

journal = Table(
    "journal",
    metadata,
    Column("run_id", String),
    Column("position", Integer),
    Column("key", String, nullable=False),
    Column("result", LargeBinary, nullable=False),
    PrimaryKeyConstraint("run_id", "position"),
)

waitpoints = Table(
    "waitpoints",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("environment_id", String, nullable=False),
    Column("created_at_ms", _Ms, nullable=False),
    Column("timeout_at_ms", _Ms),
    Column("completed_at_ms", _Ms),
    Column("timed_out", Boolean, nullable=False),
    Column("idempotency_key", String),
    Column("idempotency_expires_ms", _Ms),
    #: What finds it again, until that time is over (`keyed.py`).
    Column("active_key", String),
    Column("tags", LargeBinary),
    Column("output_type", String),
    Column("output", LargeBinary),
    UniqueConstraint("environment_id", "active_key"),
    Index("ix_waitpoints_page", "environment_id", "created_at_ms", "seq"),
    _partial(
        "ix_waitpoints_due",
        "timeout_at_ms",
        "seq",
        where="completed_at_ms IS NULL AND timeout_at_ms IS NOT NULL",
    ),
    _partial("ix_waitpoints_completed", "completed_at_ms", where="completed_at_ms IS NOT NULL"),
)

waitpoint_tags = Table(
    "waitpoint_tags",
    metadata,
    Column("tag", String),
    Column("waitpoint_id", String),
    PrimaryKeyConstraint("tag", "waitpoint_id"),
    Index("ix_waitpoint_tags_waitpoint", "waitpoint_id"),
)

batches = Table(
    "batches",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("environment_id", String, nullable=False),
    Column("run_count", Integer, nullable=False),
    Column("created_at_ms", _Ms, nullable=False),
    Column("updated_at_ms", _Ms, nullable=False),
    Column("sealed_at_ms", _Ms),
    Column("parent_run_id", String),
    Column("awaited", Boolean, nullable=False),
    Column("idempotency_key", String),
    Column("idempotency_expires_ms", _Ms),
    Column("token_otu", String),
    Column("active_key", String),
    UniqueConstraint("environment_id", "active_key"),
    Index("ix_batches_created", "created_at_ms"),
)

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", String),
    Column("position", Integer),
    Column("run_id", String, nullable=False),
    PrimaryKeyConstraint("batch_id", "position"),
)

#: Work that one server does for all, and when it may be done again.
chores = Table(
    "chores",
    metadata,
    Column("name", String, primary_key=True),
    Column("next_ms", _Ms, nullable=False),
)

packets = Table(
    "packets",
    metadata,
    Column("environment_id", String),
    Column("name", String),
    Column("noted_at_ms", _Ms, nullable=False),
    PrimaryKeyConstraint("environment_id", "name"),
    Index("ix_packets_noted", "noted_at_ms"),
)

#: Alembic's own table, read by us to see whether anything needs to be migrated.
alembic_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), primary_key=True),
)

Values = dict[str, Any]
