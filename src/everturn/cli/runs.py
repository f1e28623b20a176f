"""`everturn runs`: list, show and cancel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import anyio
import cyclopts
from cyclopts import Parameter

from everturn.cli.output import TRIES, ago, console, fail, print_json, print_table
from everturn.client.api import Api
from everturn.errors import RunNotFound

app = cyclopts.App(name="runs", help="List, show and cancel runs.")

Json = Annotated[bool, Parameter(name="--json", help="Print JSON, for scripts.")]


@app.command(name="list")
def list_(
    *,
    status: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    limit: int = 25,
    as_json: Json = False,
) -> None:
    """The newest runs.

    Parameters
    ----------
    status
        Only those in these states, comma-separated: QUEUED, EXECUTING, WAITING, COMPLETED,
        FAILED, CANCELED, CRASHED…
    task
        Only those of this agent or task.
    tag
        Only those with this tag; chat runs carry `chat:<chat id>`.
    limit
        At most this many, 1 to 100.
    """
    query = {"page[size]": str(limit)}
    for name, value in (("status", status), ("taskIdentifier", task), ("tag", tag)):
        if value is not None:
            query[f"filter[{name}]"] = value
    page = anyio.run(Api(tries=TRIES).list_runs, query)
    if as_json:
        print_json(page["data"])
        return
    print_table(
        ("RUN", "TASK", "STATUS", "VERSION", "AGE"),
        (
            (
                item["id"],
                item["taskIdentifier"],
                item["status"],
                item.get("version", ""),
                ago(item["createdAt"]),
            )
            for item in page["data"]
        ),
        empty="no runs",
    )


@app.command
def show(run: str, *, as_json: Json = False) -> None:
    """One run."""
    item = anyio.run(_found, run)
    if as_json:
        print_json(item)
        return
    rows = [
        ("id", item["id"]),
        ("task", item["taskIdentifier"]),
        ("status", item["status"]),
        ("attempts", str(item.get("attemptCount", 0))),
        ("version", item.get("version", "")),
        ("tags", ", ".join(item["tags"])),
        ("created", item["createdAt"]),
        ("started", item.get("startedAt", "")),
        ("finished", item.get("finishedAt", "")),
        ("error", _error(item)),
    ]
    print_table(("", ""), [row for row in rows if row[1]], empty="")


@app.command
def cancel(run: str, *, as_json: Json = False) -> None:
    """Cancel a run. An answer in progress ends visibly; nothing happens to a finished run."""

    async def go() -> dict[str, Any]:
        await _found(run)
        await Api(tries=TRIES).cancel_run(run)
        return await Api(tries=TRIES).retrieve_run(run)

    item = anyio.run(go)
    if as_json:
        print_json(item)
    else:
        console().print(f"{item['id']} is {item['status']}")


async def _found(run: str) -> dict[str, Any]:
    try:
        return await Api(tries=TRIES).retrieve_run(run)
    except RunNotFound:
        fail(f"there is no run {run}", "`everturn runs list` shows those there are.")


def _error(item: Mapping[str, Any]) -> str:
    error = item.get("error")
    if not isinstance(error, Mapping):
        return ""
    name = error.get("name")
    return f"{name}: {error.get('message')}" if name else str(error.get("message"))
