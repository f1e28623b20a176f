"""What Alembic runs. The connection, and its transaction, are the caller's (schema.py)."""

from __future__ import annotations

from alembic import context

from everturn.storage.sql.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite cannot alter most of a table: Alembic copies it into a new one instead.
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
