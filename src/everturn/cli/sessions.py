"""`everturn sessions`: list, show, follow and close."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import anyio
import cyclopts
from cyclopts import Parameter

from everturn.cli.output import TRIES, ago, console, fail, print_json, print_table
from everturn.client.api import Api
from everturn.client.follow import Follower
from everturn.errors import SessionNotFound

app = cyclopts.App(name="sessions", help="List, show, follow and close sessions.")

Json = Annotated[bool, Parameter(name="--json", help="Print JSON, for scripts.")]


@app.command(name="list")
def list_(
    *,
    status: Literal["ACTIVE", "CLOSED", "EXPIRED"] | None = None,
    task: str | None = None,
    tag: str | None = None,
    limit: int = 20,
    as_json: Json = False,
) -> None:
    """The newest sessions.

    Parameters
    ----------
    status
        Only those in this status.
    task
        Only those of this agent or task.
    tag
        Only those with this tag.
    limit
        At most this many, 1 to 100.
    """
    query = {"page[size]": str(limit)}
    for name, value in (("status", status), ("taskIdentifier", task), ("tags", tag)):
        if value is not None:
            query[f"filter[{name}]"] = value
    page = anyio.run(Api(tries=TRIES).list_sessions, query)
    if as_json:
        print_json(page["data"])
        return
    print_table(
        ("SESSION", "AGENT", "STATUS", "RUN", "AGE"),
        (
            (
                item["externalId"] or item["id"],
                item["taskIdentifier"],
                _status(item),
                item.get("currentRunId") or "",
                ago(item["createdAt"]),
            )
            for item in page["data"]
        ),
        empty="no sessions",
    )


@app.command
def show(session: str, *, as_json: Json = False) -> None:
    """One session, by its id or its external id."""
    item = anyio.run(_found, session)
    if as_json:
        print_json(item)
        return
    rows = [
        ("id", item["id"]),
        ("external id", item["externalId"] or ""),
        ("agent", item["taskIdentifier"]),
        ("status", _status(item)),
        ("current run", item.get("currentRunId") or "none"),
        ("tags", ", ".join(item["tags"])),
        ("created", item["createdAt"]),
        ("closed", f"{item['closedAt']} {item['closedReason'] or ''}" if item["closedAt"] else ""),
    ]
    print_table(("", ""), [row for row in rows if row[1]], empty="")


@app.command
def follow(
    session: str,
    *,
    io: Annotated[Literal["in", "out"], Parameter(help="Which channel.")] = "out",
    after: Annotated[int | None, Parameter(help="Begin after this number.")] = None,
    as_json: Json = False,
) -> None:
    """Print the records of a channel as they come, until Ctrl-C. Reconnects by itself."""

    async def run() -> None:
        follower = Follower(Api(), session, io, after=after, endless=True)
        async for record in follower:
            if record.is_command:
                continue
            body = record.body.decode("utf-8", "replace")
            if as_json:
                line = {"seq_num": record.seq_num, "headers": record.headers, "body": body}
                print(json.dumps(line, ensure_ascii=False), flush=True)
            elif record.control is not None:
                console().print(f"[dim]{record.seq_num:>6}  — {record.control}[/]")
            else:
                console().print(f"{record.seq_num:>6}  {body}", markup=False)

    anyio.run(run)


@app.command
def close(session: str, *, reason: str | None = None, as_json: Json = False) -> None:
    """Close a session for good: it takes no more input. Its records stay readable.

    Parameters
    ----------
    reason
        Kept with the session; at most 256 characters.
    """

    async def run() -> dict[str, Any]:
        await _found(session)
        return await Api(tries=TRIES).close_session(session, {"reason": reason} if reason else {})

    item = anyio.run(run)
    if as_json:
        print_json(item)
    else:
        console().print(f"closed {item['externalId'] or item['id']}")


async def _found(session: str) -> dict[str, Any]:
    try:
        return await Api(tries=TRIES).retrieve_session(session)
    except SessionNotFound:
        fail(f"there is no session {session}", "`everturn sessions list` shows those there are.")


def _status(item: Mapping[str, Any]) -> str:
    if item["closedAt"]:
        return "CLOSED"
    if item["expiresAt"]:
        from datetime import UTC, datetime

        if datetime.fromisoformat(item["expiresAt"].replace("Z", "+00:00")) <= datetime.now(UTC):
            return "EXPIRED"
    return "ACTIVE"
