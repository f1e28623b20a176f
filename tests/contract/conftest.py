"""Engines for the contract suites: a PostgreSQL server of our own, and a fresh database per test."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from everturn.storage.memory.state import MemoryState
from everturn.storage.ports.state import StateStore
from everturn.storage.sql import schema
from everturn.storage.sql.state import SqlState

START_S = 30.0
_TEMPLATE = "everturn_template"
_numbers = itertools.count(1)


def postgres_binaries() -> Path:
    """The folder with initdb and postgres. Fails the test, saying what to install, without one."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(answer.stdout.strip()))
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    pytest.fail("PostgreSQL is not installed: apt-get install postgresql (Debian package)")


def free_port() -> int:
    """A free port below 32768: the ones above are handed out to outgoing connections."""
    for port in range(20_000 + os.getpid() % 5_000, 32_768):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.fail("no free port below 32768")


class PostgresServer:
    """One PostgreSQL in a temporary folder, run by somebody who is not root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binaries = postgres_binaries()
        self.port = free_port()
        self._user = self._unprivileged()
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def _unprivileged() -> str | None:
        """Who runs the server: PostgreSQL refuses root."""
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def start(self) -> None:
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        data = self._folder / "data"
        arguments = [
            str(self._binaries / "initdb"),
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "everturn",
        ]
        made = subprocess.run(
            [*arguments, "-N", "-E", "UTF8", "--locale=C"],
            user=self._user,
            capture_output=True,
            text=True,
            cwd=self._folder,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(self._binaries / "postgres"),
                    *("-D", str(data), "-p", str(self.port), "-k", str(self._folder)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                    *("-c", "synchronous_commit=off", "-c", "max_connections=200"),
                ],
                user=self._user,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with psycopg.connect(self.dsn("postgres")):
                    return
            except psycopg.OperationalError:
                assert self._process is not None
                log = (self._folder / "log").read_text()
                assert self._process.poll() is None, log
                assert time.monotonic() < deadline, log
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: connections are ended
            self._process.wait(START_S)

    def dsn(self, database: str) -> str:
        return f"postgresql://everturn@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]  # a plain str, not a literal

    def create_database(self, *, template: str = "template1") -> str:
        """The URL of a new database."""
        name = f"test_{next(_numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.dsn(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server for the whole run, made when a test first asks for it."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = PostgresServer(folder)
    try:
        server.start()
        server.execute(f'CREATE DATABASE "{_TEMPLATE}"')
        schema.migrate(server.dsn(_TEMPLATE))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> str:
    """A database with nothing in it."""
    return postgres_server.create_database()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """A database of the current schema, without rows."""
    return postgres_server.create_database(template=_TEMPLATE)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    """The state port, once per engine."""
    store: StateStore
    if request.param == "memory":
        store = MemoryState()
    elif request.param == "sqlite":
        store = await SqlState.open(f"sqlite:///{tmp_path}/state.db")
    else:
        store = await SqlState.open(request.getfixturevalue("postgres_url"))
    yield store
    await store.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def small_state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    """The state port with room for three runs with slots in an environment."""
    store: StateStore
    if request.param == "memory":
        store = MemoryState(environment_limit=3)
    elif request.param == "sqlite":
        store = await SqlState.open(f"sqlite:///{tmp_path}/state.db", environment_limit=3)
    else:
        url = request.getfixturevalue("postgres_url")
        store = await SqlState.open(url, environment_limit=3)
    yield store
    await store.close()
