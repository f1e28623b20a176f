"""`everturn migrate`: bring the database schema up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from everturn.cli.output import console, fail


def migrate(
    *,
    data_dir: Annotated[Path, Parameter(help="Where the embedded store lives.")] = Path(
        ".everturn"
    ),
    check: Annotated[
        bool, Parameter(help="Only say whether there is something to do; exit 1 if so.")
    ] = False,
) -> None:
    """Create or upgrade the tables of the state store (`EVERTURN_DATABASE_URL`, else --data-dir).

    The embedded store does this by itself at start. With PostgreSQL run it before new servers.
    """
    from everturn.server.settings import Settings
    from everturn.storage.sql import migrate as upgrade
    from everturn.storage.sql import schema_state

    url = Settings.from_env(data_dir=str(data_dir)).database
    if not check and url.startswith("sqlite"):
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = schema_state(url)
    if state == "ahead":
        fail(
            "the database was made by a newer everturn",
            "Upgrade everturn on this machine; schemas are never taken back.",
        )
    if state == "current":
        console().print("up to date")
    elif check:
        fail("there is no schema yet" if state == "empty" else "the schema is behind")
    else:
        upgrade(url)
        console().print("created" if state == "empty" else "upgraded")
