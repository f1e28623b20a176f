"""`everturn dev`: server and worker for one app on one embedded store, reloading on save.

The server runs in this process; the agents run in a child, as in production. Saving a file
starts a child with the new code; as soon as it is connected the old one is told to drain, and
idle sessions continue on the new version with their next message. A dead child is restarted.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.abc
from cyclopts import Parameter

from everturn.cli import logs
from everturn.cli.output import console, fail, stderr
from everturn.cli.server import usable_port
from everturn.cli.supervisor import Supervisor

if TYPE_CHECKING:
    from everturn.server.assembly import System
    from everturn.server.settings import Settings

#: A drained dev worker should not hold up a reload or a Ctrl-C for long.
GRACE_S = 6.0
READY_S = 60.0


def dev(
    app: Annotated[str, Parameter(help="Path of a Python file, or an import path.")],
    *,
    host: str = "127.0.0.1",
    port: int = 8030,
    data_dir: Annotated[Path, Parameter(help="Where sessions are kept.")] = Path(".everturn"),
    reload: Annotated[bool, Parameter(help="Take new code when a file is saved.")] = True,
    log_level: str = "warning",
) -> None:
    """Start server and worker for one app, and keep them running.

    Prints the address and the secret key, and writes both to `dev.json` in the data directory,
    where `everturn chat`, `sessions` and `runs` find them. `EVERTURN_SECRET_KEY` fixes the key.

    Parameters
    ----------
    host
        Address to listen on.
    port
        Port to listen on; 0 takes a free one.
    log_level
        debug, info, warning or error.
    """
    check_app(app)
    port = usable_port(host, port)
    logs.set_up(log_level)
    from everturn.server.settings import Settings

    settings = Settings.from_env(host=host, port=port, data_dir=str(data_dir), log_level=log_level)
    anyio.run(_Dev(app, settings, data_dir, reload).run, backend_options={"use_uvloop": True})


def check_app(app: str) -> None:
    """Leave with one line when the app cannot be there or cannot be Python."""
    path = Path(app)
    if path.suffix != ".py" and not path.exists():
        return  # an import path: the worker will say
    if path.is_dir():
        fail(f"{app} is a folder; name a Python file in it")
    if not path.is_file():
        fail(f"there is no file {app}", "Name the Python file that holds your agents.")
    try:
        compile(path.read_bytes(), app, "exec")
    except SyntaxError as error:
        fail(f"{app}, line {error.lineno}: {error.msg}")
    except ValueError as error:
        fail(f"{app}: {error}")


class _Dev:
    def __init__(self, app: str, settings: Settings, data_dir: Path, reload: bool) -> None:
        self._app = app
        self._settings = settings
        self._data_dir = data_dir
        self._reload = reload
        self._url = ""
        self._status = 0

    async def run(self) -> None:
        from everturn.server.assembly import build

        async with build(self._settings) as system, anyio.create_task_group() as serving:
            await serving.start(self._serve, system)
            self._write_dev_json(system)
            # The worker leaves before the server does: its runs report as they end.
            await self._work(system)
            serving.cancel_scope.cancel()
        if self._status:
            raise SystemExit(self._status)

    async def _work(self, system: System) -> None:
        """Keep a worker running until told to stop; it has left when this returns."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stop_on_signal, tasks.cancel_scope)
            supervisor = Supervisor(
                ["worker", self._app, "--url", self._url, "--log-level", self._settings.log_level],
                {"EVERTURN_SECRET_KEY": system.secret_key or ""},
                grace_s=GRACE_S,
                on_gone=self._tell(system),
                on_restart=self._say_restart,
                on_unusable=lambda: self._give_up(tasks.cancel_scope),
            )
            tasks.start_soon(supervisor.run)
            tasks.start_soon(self._greet, system, supervisor)
            if self._reload:
                tasks.start_soon(self._watch, system, supervisor)

    async def _serve(
        self, system: System, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        from everturn.server.serving import serve

        def opened(url: str) -> None:
            self._url = url
            task_status.started()

        await serve(system, opened=opened)

    def _tell(self, system: System) -> Callable[[str], Awaitable[None]]:
        """A child that has exited holds nothing any more: its runs can move at once."""

        async def gone(worker_id: str) -> None:
            await system.services.recovery.worker_gone(worker_id)

        return gone

    def _write_dev_json(self, system: System) -> None:
        """Where the other commands find this server. Readable by its owner only."""
        path = self._data_dir / "dev.json"
        content = {"url": self._url, "key": system.secret_key, "pid": os.getpid()}
        scratch = path.with_suffix(".tmp")
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(content) + "\n")
        scratch.replace(path)

    async def _greet(self, system: System, supervisor: Supervisor) -> None:
        """Say what there is to talk to, as soon as it can be talked to.

        The store may know tasks of other apps, and workers of an earlier start whose lease is not
        over: what counts is the worker that was started here, and what it declared.
        """
        state, links = system.services.state, system.services.links
        with anyio.move_on_after(READY_S):
            while await state.worker(supervisor.worker_id or "") is None:
                await anyio.sleep(0.02)
            tasks = links.tasks_of(supervisor.worker_id or "")
            agents = [task.task_id for task in tasks if task.kind != "task"]
            others = [task.task_id for task in tasks if task.kind == "task"]
            out = console()
            out.print(f"[bold]everturn[/] is up on [bold]{self._url}[/]")
            out.print(f"secret key  {system.secret_key}")
            if agents:
                out.print(f"agents      {', '.join(agents)}")
            if others:
                out.print(f"tasks       {', '.join(others)}")
            if agents:
                out.print(f"[dim]talk to it from another terminal:[/] everturn chat {agents[0]}")
            return
        stderr().print(f"[yellow]the worker is not ready after {READY_S:.0f} s[/]")

    async def _watch(self, system: System, supervisor: Supervisor) -> None:
        from watchfiles import PythonFilter, awatch

        path = Path(self._app)
        folder = path.parent if path.suffix == ".py" else Path()
        watched = PythonFilter(ignore_paths=[self._data_dir])
        async for changes in awatch(folder, watch_filter=watched, debounce=200):
            names = sorted({Path(name).name for _, name in changes})
            console().print(f"[dim]{', '.join(names)} changed[/]")
            try:
                if path.suffix == ".py":
                    source = await anyio.Path(path).read_bytes()
                    compile(source, self._app, "exec")
            except (SyntaxError, ValueError, OSError) as error:
                stderr().print(f"[red]not reloaded:[/] {error}")
                continue

            async def connected(worker_id: str) -> bool:
                return await system.services.state.worker(worker_id) is not None

            if await supervisor.replace(connected, READY_S):
                console().print("[dim]running the new code[/]")
            else:
                stderr().print("[red]not reloaded:[/] the old code keeps running")

    async def _stop_on_signal(self, scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for _ in received:
                scope.cancel()
                return

    def _give_up(self, scope: anyio.CancelScope) -> None:
        """The worker has said in one line why the app cannot be loaded."""
        self._status = 1
        scope.cancel()

    def _say_restart(self, status: int, delay: float) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        stderr().print(f"[yellow]the worker {how}[/]; starting it again in {delay:g} s")
