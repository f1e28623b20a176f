"""`everturn server`: the HTTP API, without a worker."""

from __future__ import annotations

import errno
import signal
import socket
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter

from everturn.cli import logs
from everturn.cli.output import console, fail


def server(
    *,
    host: str = "127.0.0.1",
    port: int = 8030,
    data_dir: Annotated[Path, Parameter(help="Where the embedded store lives.")] = Path(
        ".everturn"
    ),
    log_level: str = "info",
) -> None:
    """Serve the HTTP API and the worker link.

    Everything else is a setting: `EVERTURN_DATABASE_URL`, `EVERTURN_STREAMS_URL`,
    `EVERTURN_OBJECTS_URL`, `EVERTURN_SECRET_KEY`… Make keys with `everturn keys create`.

    Parameters
    ----------
    host
        Address to listen on.
    port
        Port to listen on; 0 takes a free one.
    log_level
        debug, info, warning or error.
    """
    from everturn.server.assembly import build
    from everturn.server.serving import calm_collector, serve
    from everturn.server.settings import Settings

    logs.set_up(log_level)
    port = usable_port(host, port)
    settings = Settings.from_env(host=host, port=port, data_dir=str(data_dir), log_level=log_level)

    def say(url: str) -> None:
        console().print(f"everturn server on [bold]{url}[/]")

    async def run() -> None:
        async with build(settings) as system:
            calm_collector()
            await serve(system, opened=say, handle_signals=True)
            # What is left is to close the stores. It takes a moment, and a signal that comes late
            # must not end the process in the middle of it.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    anyio.run(run, backend_options={"use_uvloop": True})


def usable_port(host: str, port: int) -> int:
    """The port if we may listen on it, a free one for 0; leaves with one line otherwise."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fail(
                    f"port {port} on {host} is taken",
                    f"Something else listens there. Try --port {port + 1}, or --port 0 for any.",
                )
            fail(f"cannot listen on {host}:{port}: {error.strerror}")
        return int(probe.getsockname()[1])
