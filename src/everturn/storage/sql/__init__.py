"""State on SQLite and PostgreSQL: one implementation in SQLAlchemy Core, migrated by Alembic."""

from everturn.storage.sql.schema import migrate, schema_state
from everturn.storage.sql.state import SqlState

__all__ = ["SqlState", "migrate", "schema_state"]
