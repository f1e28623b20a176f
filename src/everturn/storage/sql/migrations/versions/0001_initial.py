"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("ix_api_keys_environment", "api_keys", ["environment_id", "id"], unique=False)
    op.create_table(
        "consumed",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("seq_num", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "task_id"),
    )
    op.create_table(
        "environments",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("slug"),
    )
    op.create_table(
        "journal",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "queues",
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("concurrency_limit", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("environment_id", "name"),
    )
    op.create_table(
        "run_keys",
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("environment_id", "scope", "key"),
    )
    op.create_table(
        "run_tags",
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "run_id"),
    )
    op.create_index("ix_run_tags_run", "run_tags", ["run_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("concurrency_key", sa.String(), nullable=False),
        sa.Column("place_ms", sa.BigInteger(), nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("priority_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=True),
        sa.Column("max_duration_s", sa.Integer(), nullable=True),
        sa.Column("machine", sa.String(), nullable=True),
        sa.Column("wait_kind", sa.String(), nullable=True),
        sa.Column("wait_ref", sa.String(), nullable=True),
        sa.Column("wait_after", sa.BigInteger(), nullable=True),
        sa.Column("wait_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("session_id", sa.String(), nullable=True),
        sa.Column("continuation", sa.Boolean(), nullable=False),
        sa.Column("previous_run_id", sa.String(), nullable=True),
        sa.Column("parent_run_id", sa.String(), nullable=True),
        sa.Column("root_run_id", sa.String(), nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("trigger_function", sa.String(), nullable=False),
        sa.Column("is_test", sa.Boolean(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("executed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("idempotency_options", sa.LargeBinary(), nullable=True),
        sa.Column("tags", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("payload_type", sa.String(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("boot_input", sa.LargeBinary(), nullable=True),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("output_type", sa.String(), nullable=True),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
    )
    op.create_index(
        "ix_runs_bounded",
        "runs",
        ["since_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'RUNNING' AND max_duration_s IS NOT NULL"),
        postgresql_where=sa.text("state = 'RUNNING' AND max_duration_s IS NOT NULL"),
    )
    op.create_index(
        "ix_runs_claimed",
        "runs",
        ["since_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'CLAIMED'"),
        postgresql_where=sa.text("state = 'CLAIMED'"),
    )
    op.create_index(
        "ix_runs_delayed",
        "runs",
        ["not_before_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED' AND not_before_ms IS NOT NULL"),
        postgresql_where=sa.text("state = 'QUEUED' AND not_before_ms IS NOT NULL"),
    )
    op.create_index(
        "ix_runs_due",
        "runs",
        ["wait_until_ms", "seq"],
        unique=False,
        sqlite_where=sa.text("state = 'SUSPENDED' AND wait_until_ms IS NOT NULL"),
        postgresql_where=sa.text("state = 'SUSPENDED' AND wait_until_ms IS NOT NULL"),
    )
    op.create_index(
        "ix_runs_page", "runs", ["environment_id", "created_at_ms", "seq"], unique=False
    )
    op.create_index(
        "ix_runs_parent",
        "runs",
        ["parent_run_id", "seq"],
        unique=False,
        sqlite_where=sa.text("parent_run_id IS NOT NULL"),
        postgresql_where=sa.text("parent_run_id IS NOT NULL"),
    )
    op.create_index(
        "ix_runs_pinned",
        "runs",
        ["since_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED' AND session_id IS NOT NULL AND version IS NOT NULL"),
        postgresql_where=sa.text(
            "state = 'QUEUED' AND session_id IS NOT NULL AND version IS NOT NULL"
        ),
    )
    op.create_index(
        "ix_runs_queued",
        "runs",
        ["environment_id", "place_ms", "created_at_ms", "seq"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED'"),
        postgresql_where=sa.text("state = 'QUEUED'"),
    )
    op.create_index(
        "ix_runs_resident",
        "runs",
        ["worker_id"],
        unique=False,
        sqlite_where=sa.text(
            "state IN ('CLAIMED', 'RESUMING', 'RUNNING', 'SUSPENDED') AND worker_id IS NOT NULL"
        ),
        postgresql_where=sa.text(
            "state IN ('CLAIMED', 'RESUMING', 'RUNNING', 'SUSPENDED') AND worker_id IS NOT NULL"
        ),
    )
    op.create_index(
        "ix_runs_resuming",
        "runs",
        ["worker_id", "place_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'RESUMING'"),
        postgresql_where=sa.text("state = 'RESUMING'"),
    )
    op.create_index(
        "ix_runs_session",
        "runs",
        ["session_id", "seq"],
        unique=False,
        sqlite_where=sa.text("session_id IS NOT NULL"),
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index(
        "ix_runs_slots",
        "runs",
        ["environment_id", "queue", "concurrency_key"],
        unique=False,
        sqlite_where=sa.text("state IN ('CLAIMED', 'RUNNING')"),
        postgresql_where=sa.text("state IN ('CLAIMED', 'RUNNING')"),
    )
    op.create_index(
        "ix_runs_waiting",
        "runs",
        ["wait_ref"],
        unique=False,
        sqlite_where=sa.text("state = 'SUSPENDED' AND wait_kind = 'run'"),
        postgresql_where=sa.text("state = 'SUSPENDED' AND wait_kind = 'run'"),
    )
    op.create_table(
        "session_tags",
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "session_id"),
    )
    op.create_index("ix_session_tags_session", "session_tags", ["session_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("external_id", sa.String(), nullable=True),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("trigger_config", sa.LargeBinary(), nullable=False),
        sa.Column("tags", sa.LargeBinary(), nullable=True),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("closed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("closed_reason", sa.Text(), nullable=True),
        sa.Column("current_run_id", sa.String(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("cursor_seq", sa.BigInteger(), nullable=True),
        sa.Column("cursor_decided", sa.LargeBinary(), nullable=True),
        sa.Column("unchecked_run_id", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("environment_id", "external_id"),
        sa.UniqueConstraint("id"),
    )
    op.create_index(
        "ix_sessions_page", "sessions", ["environment_id", "created_at_ms", "seq"], unique=False
    )
    op.create_index(
        "ix_sessions_unchecked",
        "sessions",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("unchecked_run_id IS NOT NULL"),
        postgresql_where=sa.text("unchecked_run_id IS NOT NULL"),
    )
    op.create_table(
        "tasks",
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("queue_limit", sa.Integer(), nullable=True),
        sa.Column("config", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("environment_id", "task_id"),
    )
    op.create_table(
        "version_tasks",
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("environment_id", "version", "task_id"),
    )
    op.create_table(
        "versions",
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("environment_id", "version"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("server_id", sa.String(), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("registered_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_workers_environment", "workers", ["environment_id", "version"], unique=False
    )
