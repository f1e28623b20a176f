"""The React example as its visitors meet it: built once, served by its own backend."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from browser.relay import Relay

from everturn.testing.processes import DEADLINE_S, NotReady, System, free_port

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLE = ROOT / "examples" / "react-chat"
#: What the page is built from beside `src`; a change of any of it builds again.
SOURCES = ("index.html", "tsconfig.json", "vite.config.ts")
PACKAGES = ("package.json", "package-lock.json")
#: Where the packages of a build are named: the example's own, the newest official client, or that
#: one with `ai` 7, whose packages bring the Node 22 they ask for.
CLIENTS = {
    "4.5.0": EXAMPLE,
    "4.8.3": Path(__file__).parent / "newest",
    "4.8.3 with ai 7": Path(__file__).parent / "ai7",
}


def built_page(client: str) -> Path:
    """The folder with the built page: packages once per lock file, the build once per source."""
    npm = shutil.which("npm")
    assert npm, "npm is missing: install Debian's packages nodejs and npm"
    packages = [CLIENTS[client] / name for name in PACKAGES]
    sources = [EXAMPLE / name for name in SOURCES]
    folder = ROOT / ".cache" / "react-chat" / _digest(packages)
    digest = _digest([*sources, *sorted((EXAMPLE / "src").iterdir())])
    stamp = folder / "dist" / ".sources"
    if stamp.exists() and stamp.read_text() == digest:
        return folder / "dist"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*packages, *sources):
        shutil.copy(file, folder)
    shutil.rmtree(folder / "src", ignore_errors=True)
    shutil.copytree(EXAMPLE / "src", folder / "src")
    if not (folder / "node_modules" / ".package-lock.json").exists():
        _run([npm, "ci", "--no-audit", "--no-fund"], folder)
    _run([npm, "run", "build"], folder)
    stamp.write_text(digest)
    return folder / "dist"


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"


class Site:
    """A server with the example's agent on one origin, its page and backend on another one.

    The page reaches the server through a relay, which tests freeze.
    """

    def __init__(self, folder: Path, page: Path, settings: Mapping[str, str] | None = None) -> None:
        self._log = folder / "backend.log"
        self._environment = {"CHAT_HISTORY": str(folder / "chats.sqlite"), **(settings or {})}
        self._page = page
        self.system = System(folder, EXAMPLE / "agent.py", environment=self._environment)
        self.relay = Relay(self.system.port)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._backend: subprocess.Popen[bytes] | None = None
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self.system)
            opened.enter_context(self.relay)
            opened.callback(self._stop_backend)
            self._start_backend()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def logs(self) -> str:
        return self.system.logs()

    def _stop_backend(self) -> None:
        if self._backend is not None:
            self._backend.terminate()
            self._backend.wait(10)

    def _start_backend(self) -> None:
        with self._log.open("wb") as log:
            self._backend = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "backend:app", "--port", str(self.port)],
                cwd=EXAMPLE,
                env={
                    **os.environ,
                    **self._environment,
                    "CHAT_PAGE": str(self._page),
                    "CHAT_SERVER_URL": self.relay.url,
                    "EVERTURN_API_URL": self.system.url,
                    "EVERTURN_SECRET_KEY": self.system.key,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self._backend.poll() is None:
            with suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(self.url, timeout=2).close()
                return
            time.sleep(0.02)
        raise NotReady(f"the example's backend never answered\n{self._log.read_text()[-4000:]}")
