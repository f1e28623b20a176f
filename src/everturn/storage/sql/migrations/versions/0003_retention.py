"""Expiry of queued runs, names of streams, and what is needed to forget."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


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
    op.add_column("runs", sa.Column("ttl_ms", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("expire_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("streams", sa.LargeBinary(), nullable=True))
    _partial(
        "ix_runs_expiring",
        "runs",
        ["expire_at_ms"],
        "state = 'QUEUED' AND expire_at_ms IS NOT NULL",
    )
    _partial("ix_runs_finished", "runs", ["finished_at_ms"], "finished_at_ms IS NOT NULL")
    _partial(
        "ix_runs_stored",
        "runs",
        ["environment_id", "payload"],
        "payload_type = 'application/store'",
    )
    op.create_index("ix_run_keys_run", "run_keys", ["run_id"], unique=False)
    _partial("ix_run_keys_expires", "run_keys", ["expires_ms"], "expires_ms IS NOT NULL")
    _partial(
        "ix_waitpoints_completed", "waitpoints", ["completed_at_ms"], "completed_at_ms IS NOT NULL"
    )
    op.create_index("ix_waitpoint_tags_waitpoint", "waitpoint_tags", ["waitpoint_id"], unique=False)
    op.create_index("ix_batches_created", "batches", ["created_at_ms"], unique=False)
    op.create_table(
        "chores",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("next_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "packets",
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("noted_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("environment_id", "name"),
    )
    op.create_index("ix_packets_noted", "packets", ["noted_at_ms"], unique=False)
