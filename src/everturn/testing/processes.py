"""Real server and worker processes, for tests, benchmarks and the demonstration.

They listen on loopback, on ports below the ephemeral range (which other sockets may take at any
moment), keep their data where the caller says, and are stopped by pid.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from everturn.errors import EverturnError
from everturn.ids import RandomIds

DEADLINE_S = 30.0


class NotReady(EverturnError):
    """A process did not come up in time. The message holds the end of its log."""

    code = "not_ready"


def free_port() -> int:
    """A loopback port that is free right now, below the ephemeral range."""
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NotReady("no free port between 20000 and 32000")


class EverturnProcess:
    """One `everturn …` process with its log in a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self._file = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "everturn", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def until_logged(self, text: str, times: int = 1) -> None:
        """Return when its log holds `text` that often. Raises NotReady when it does not."""
        deadline = time.monotonic() + DEADLINE_S
        while self.log_text().count(text) < times:
            if not self.running or time.monotonic() > deadline:
                raise NotReady(f"never said {text!r}\n{self.log_text()[-4000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._file.close()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self, timeout_s: float = DEADLINE_S) -> int:
        """SIGTERM, and wait for the exit status; kill -9 past the timeout."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            self.kill()


class System:
    """A server and any number of workers over one data directory; everything can be killed.

    Everything is synchronous on purpose: a test may kill and restart from any thread, also while
    its own event loop is busy following a stream.
    """

    def __init__(
        self, data_dir: Path, app: Path | str, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self.app = str(app)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = "tr_dev_" + RandomIds().part(24).replace("-", "a").replace("_", "b")
        self._environment = {
            "EVERTURN_SECRET_KEY": self.key,
            "EVERTURN_API_URL": self.url,
            "EVERTURN_OFFLINE_DELAY_MS": "20",
            **(environment or {}),
        }
        self.server: EverturnProcess | None = None
        self.workers: list[EverturnProcess] = []
        data_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        try:
            self.start_server()
            self.start_worker()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_server(self) -> EverturnProcess:
        self.server = EverturnProcess(
            ["server", "--port", str(self.port), "--data-dir", str(self.data_dir)],
            self.data_dir / "server.log",
            self._environment,
        )
        self._until("/healthz", self.server)
        return self.server

    def start_worker(
        self,
        *,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        concurrency: int | None = None,
        idle_ttl_s: float | None = None,
    ) -> EverturnProcess:
        """Start one more worker.

        `concurrency` is how many runs it takes at once, `idle_ttl_s` how long it keeps those that
        are suspended.
        """
        options = [] if concurrency is None else ["--concurrency", str(concurrency)]
        options += [] if idle_ttl_s is None else ["--idle-ttl", str(idle_ttl_s)]
        worker = EverturnProcess(
            ["worker", self.app, "--url", self.url, *options],
            self.data_dir / f"worker-{len(self.workers)}.log",
            {**self._environment, **(environment or {})},
        )
        self.workers.append(worker)
        if wait:
            self._until("/readyz", worker)
        return worker

    def kill_worker(self) -> None:
        """kill -9 the newest worker."""
        self.workers[-1].kill()

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.kill()

    def close(self) -> None:
        for process in [*self.workers, *([self.server] if self.server else [])]:
            if process.running:
                process.stop(5.0)
            else:
                process.kill()

    def logs(self) -> str:
        """Every log, for the message of a failing test."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}"
            for path in sorted(self.data_dir.glob("*.log"))
        )

    def _until(self, path: str, process: EverturnProcess) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if not process.running:
                break
            with (
                suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(self.url + path, timeout=2) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.02)
        raise NotReady(f"{path} never answered 200\n{process.log_text()[-4000:]}")
