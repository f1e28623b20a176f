"""`everturn worker`: runs an app's agents for a server, anywhere."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Annotated

import anyio
from cyclopts import Parameter

from everturn.cli import logs
from everturn.cli.output import fail, stderr
from everturn.cli.supervisor import UNUSABLE, Supervisor, leave_with_parent
from everturn.errors import EverturnError
from everturn.rules import limits
from everturn.worker.parking import IDLE_TTL_S


def worker(
    app: Annotated[str, Parameter(help="Path of a Python file, or an import path.")],
    *,
    url: Annotated[str | None, Parameter(help="Address of a server [EVERTURN_API_URL].")] = None,
    concurrency: Annotated[int, Parameter(help="Runs at once in each process.")] = 100,
    processes: Annotated[int, Parameter(help="Worker processes to keep running.")] = 1,
    idle_ttl: Annotated[
        float, Parameter(help="Seconds a suspended run stays in memory; later it boots again.")
    ] = IDLE_TTL_S,
    log_level: str = "info",
) -> None:
    """Connect to a server and run what it hands out, until stopped.

    The secret key comes from `EVERTURN_SECRET_KEY`. SIGTERM drains: running turns finish or park
    within 20 seconds, the rest moves to another worker.

    Parameters
    ----------
    log_level
        debug, info, warning or error.
    """
    from everturn.client import config

    target = config.resolve(config.ClientConfig(url=url))
    url, key = target.url, target.secret_key
    if key is None:
        fail(
            "no secret key: a worker signs in with one",
            "Set EVERTURN_SECRET_KEY, or run where `everturn dev` left its dev.json.",
        )
    if processes < 1 or concurrency < 1:
        fail("--processes and --concurrency are at least 1")
    if not 0 < idle_ttl < float("inf"):
        fail(f"--idle-ttl is a number of seconds above 0, not {idle_ttl:g}")
    logs.set_up(log_level)
    leave_with_parent()
    if processes > 1:
        arguments = ["worker", app, "--url", url, "--concurrency", str(concurrency)]
        arguments += ["--idle-ttl", str(idle_ttl), "--log-level", log_level]
        anyio.run(_supervise, arguments, key, processes)
        return

    from everturn.worker.loading import load_app
    from everturn.worker.worker import Worker

    try:
        loaded = load_app(app)
    except EverturnError as error:
        fail(str(error), status=UNUSABLE)
    runner = Worker(
        loaded,
        url,
        key,
        concurrency=concurrency,
        idle_ttl_s=idle_ttl,
        worker_id=os.environ.get("EVERTURN_WORKER_ID"),
    )
    anyio.run(partial(runner.run, handle_signals=True), backend_options={"use_uvloop": True})


async def _supervise(arguments: list[str], key: str, processes: int) -> None:
    def say(status: int, delay: float) -> None:
        stderr().print(f"a worker process ended with status {status}; starting again in {delay} s")

    async with anyio.create_task_group() as tasks:
        for _ in range(processes):
            supervisor = Supervisor(
                arguments,
                {"EVERTURN_SECRET_KEY": key},
                grace_s=limits.DRAIN_S + 5,
                on_restart=say,
            )
            tasks.start_soon(supervisor.run)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for _ in received:
                tasks.cancel_scope.cancel()
                break
