"""Wait tokens and batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _seq() -> sa.Column[int]:
    return sa.Column(
        "seq",
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
        autoincrement=True,
        nullable=False,
    )


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name,
        table,
        columns,
        unique=False,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )


def upgrade() -> None:
    op.add_column("runs", sa.Column("batch_id", sa.String(), nullable=True))
    _partial("ix_runs_batch", "runs", ["batch_id", "seq"], "batch_id IS NOT NULL")
    _partial(
        "ix_runs_waiting_token",
        "runs",
        ["wait_ref"],
        "state = 'SUSPENDED' AND wait_kind = 'token'",
    )
    op.create_table(
        "waitpoints",
        _seq(),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("timeout_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("completed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("timed_out", sa.Boolean(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("idempotency_expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("active_key", sa.String(), nullable=True),
        sa.Column("tags", sa.LargeBinary(), nullable=True),
        sa.Column("output_type", sa.String(), nullable=True),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("environment_id", "active_key"),
        sa.UniqueConstraint("id"),
    )
    op.create_index(
        "ix_waitpoints_page",
        "waitpoints",
        ["environment_id", "created_at_ms", "seq"],
        unique=False,
    )
    _partial(
        "ix_waitpoints_due",
        "waitpoints",
        ["timeout_at_ms", "seq"],
        "completed_at_ms IS NULL AND timeout_at_ms IS NOT NULL",
    )
    op.create_table(
        "waitpoint_tags",
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("waitpoint_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "waitpoint_id"),
    )
    op.create_table(
        "batches",
        _seq(),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("run_count", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("sealed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("parent_run_id", sa.String(), nullable=True),
        sa.Column("awaited", sa.Boolean(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("idempotency_expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("token_otu", sa.String(), nullable=True),
        sa.Column("active_key", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("environment_id", "active_key"),
        sa.UniqueConstraint("id"),
    )
    op.create_table(
        "batch_items",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "position"),
    )
