"""`everturn keys`: create, list and revoke secret keys.

They work on the state store directly (`--data-dir`, or `EVERTURN_DATABASE_URL`), so they are used
on the machine that has it; a running server sees a change within seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import anyio
import cyclopts
from cyclopts import Parameter

from everturn.cli.output import ago, console, fail, print_json, print_table

if TYPE_CHECKING:
    from everturn.server.assembly import KeyRing
    from everturn.server.settings import Settings

T = TypeVar("T")

app = cyclopts.App(name="keys", help="Create, list and revoke secret keys.")

Environment = Annotated[
    str, Parameter(name=["--env"], help="dev, prod, staging or preview/<branch>.")
]
DataDir = Annotated[Path, Parameter(help="Where the embedded store lives.")]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON, for scripts.")]


@app.command
def create(
    *, env: Environment = "prod", data_dir: DataDir = Path(".everturn"), as_json: Json = False
) -> None:
    """Make a key and show it, once."""

    async def make(ring: KeyRing) -> tuple[str, str]:
        if not await ring.fits():
            fail(
                "the keys of this store were made under another master key than the one here",
                "Name the server's folder with --data-dir, or set EVERTURN_MASTER_KEY to its key. "
                "If that is lost, revoke the keys first.",
            )
        assert ring.environment is not None, "it is made"
        key, secret = await ring.keys.create(ring.environment)
        return key.id, secret

    key_id, secret = _with_keys(_settings(env, data_dir), make, make=True)
    if as_json:
        print_json({"id": key_id, "key": secret, "environment": env})
    else:
        console().print(secret)


@app.command(name="list")
def list_(
    *, env: Environment = "prod", data_dir: DataDir = Path(".everturn"), as_json: Json = False
) -> None:
    """The keys of an environment. Their text is never shown again."""

    async def read(ring: KeyRing) -> tuple[list[dict[str, str | None]], str]:
        if ring.environment is None:
            return [], await _elsewhere(ring, f"there is no environment {env} yet")
        rows = [
            {
                "id": key.id,
                "key": key.hint,
                "created": _time(key.created_at_ms),
                "revoked": _time(key.revoked_at_ms),
            }
            for key in await ring.state.keys(ring.environment.id)
        ]
        return rows, "" if rows else await _elsewhere(ring, f"no keys in {env}")

    rows, empty = _with_keys(_stored(env, data_dir), read)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("ID", "KEY", "AGE", "STATUS"),
        (
            (
                row["id"] or "",
                row["key"] or "",
                ago(row["created"]),
                f"revoked {ago(row['revoked'])} ago" if row["revoked"] else "active",
            )
            for row in rows
        ),
        empty=empty,
    )


@app.command
def revoke(
    key_id: str,
    *,
    env: Environment = "prod",
    data_dir: DataDir = Path(".everturn"),
    at_once: Annotated[
        bool, Parameter(name="--at-once", help="For a key that leaked: without the 24 hours.")
    ] = False,
) -> None:
    """Revoke a key by its id. It keeps working for 24 hours, so that a rotation breaks nothing."""

    async def end(ring: KeyRing) -> str | None:
        if ring.environment is not None and await ring.keys.revoke(
            ring.environment.id, key_id, at_once=at_once
        ):
            return None
        return await _elsewhere(ring, f"there is no key {key_id} in {env}")

    missing = _with_keys(_stored(env, data_dir), end)
    if missing is not None:
        fail(missing, f"`everturn keys list --env {env}` shows those there are.")
    left = "running servers refuse it within seconds" if at_once else "it works for 24 hours more"
    console().print(f"revoked {key_id}; {left}")


def _settings(env: str, data_dir: Path) -> Settings:
    from everturn.server.settings import Settings

    return Settings.from_env(data_dir=str(data_dir), environment=env, secret_key="")


def _stored(env: str, data_dir: Path) -> Settings:
    """Settings of a store that is there: looking for keys in a wrong place makes no new one."""
    from everturn.server.settings import MEMORY_URL
    from everturn.storage.sql import schema_state

    settings = _settings(env, data_dir)
    if settings.database != MEMORY_URL and schema_state(settings.database) == "empty":
        where = f"in {data_dir}" if settings.database_url is None else "in that database"
        fail(
            f"there is no store {where}",
            "Name its folder with --data-dir; `everturn keys create` makes one.",
        )
    return settings


def _with_keys(
    settings: Settings, work: Callable[[KeyRing], Awaitable[T]], *, make: bool = False
) -> T:
    from everturn.server.assembly import open_keys

    async def run() -> T:
        async with open_keys(settings, make=make) as ring:
            return await work(ring)

    return anyio.run(run)


async def _elsewhere(ring: KeyRing, missing: str) -> str:
    """What is missing in this environment, and which others have keys."""
    others = await ring.usable_elsewhere()
    if not others:
        return missing
    return f"{missing}; there are keys in {', '.join(others)} (--env {others[0]})"


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
