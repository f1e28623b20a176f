"""The `everturn` command: a file per command, imported when it is used.

`everturn --help` imports none of them, so it answers in a fraction of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cyclopts

from everturn.errors import EverturnError

app = cyclopts.App(
    name="everturn",
    help="Durable sessions for AI agents.\n\n"
    "Start here: `everturn dev app.py`, then `everturn chat AGENT` in another terminal.",
    help_format="markdown",
    version_flags=["--version"],
)
app.command(
    "everturn.cli.dev:dev",
    name="dev",
    help="Server and worker for one app, on this machine, reloading on save.",
)
app.command("everturn.cli.chat:chat", name="chat", help="Talk to an agent in this terminal.")
app.command(
    "everturn.cli.sessions:app", name="sessions", help="List, show, follow and close sessions."
)
app.command("everturn.cli.runs:app", name="runs", help="List, show and cancel runs.")
app.command("everturn.cli.server:server", name="server", help="The HTTP API, without a worker.")
app.command(
    "everturn.cli.worker:worker", name="worker", help="Run an app's agents for a server, anywhere."
)
app.command("everturn.cli.mcp:mcp", name="mcp", help="Tools for an assistant to talk to agents.")
app.command("everturn.cli.keys:app", name="keys", help="Create, list and revoke secret keys.")
app.command(
    "everturn.cli.migrate:migrate", name="migrate", help="Bring the database schema up to date."
)
app.command(
    "everturn.cli.doctor:doctor",
    name="doctor",
    help="Say what is wrong with an installation or a data directory.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Errors of ours become one line on standard error and exit status 1."""
    try:
        app(arguments)
    except EverturnError as error:
        from everturn.cli.output import complain

        complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
