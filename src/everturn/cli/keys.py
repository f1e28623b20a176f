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
        key, secret = await ring.keys.create(ring.environment)
        return key.id, secret

    key_id, secret = _with_keys(env, data_dir, make)
    if as_json:
        print_json({"id": key_id, "key": secret, "environment": env})
    else:
        console().print(secret)


@app.command(name="list")
def list_(
    *, env: Environment = "prod", data_dir: DataDir = Path(".everturn"), as_json: Json = False
) -> None:
    """The keys of an environment. Their text is never shown again."""

    async def read(ring: KeyRing) -> list[dict[str, str | None]]:
        return [
            {
                "id": key.id,
                "key": key.hint,
                "created": _time(key.created_at_ms),
                "revoked": _time(key.revoked_at_ms),
            }
            for key in await ring.state.keys(ring.environment.id)
        ]

    rows = _with_keys(env, data_dir, read)
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
        empty=f"no keys in {env}",
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

    async def end(ring: KeyRing) -> bool:
        return await ring.keys.revoke(ring.environment.id, key_id, at_once=at_once)

    if not _with_keys(env, data_dir, end):
        fail(f"there is no key {key_id} in {env}", "`everturn keys list` shows those there are.")
    left = "running servers refuse it within seconds" if at_once else "it works for 24 hours more"
    console().print(f"revoked {key_id}; {left}")


def _with_keys(env: str, data_dir: Path, work: Callable[[KeyRing], Awaitable[T]]) -> T:
    from everturn.server.assembly import open_keys
    from everturn.server.settings import Settings

    settings = Settings.from_env(data_dir=str(data_dir), environment=env, secret_key="")

    async def run() -> T:
        async with open_keys(settings) as ring:
            return await work(ring)

    return anyio.run(run)


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
