"""Runs scenarios of the Node scripts against a system."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

from everturn.testing.processes import System

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: What is tried, and the folder that names its packages: the client the protocol was written down
#: from, the newest one, and that one with `ai` 7, which asks for Node 22.
CLIENTS = {"4.5.0": "node", "4.8.3": "node-newest", "4.8.3 with ai 7": "node-ai7"}


def installed(name: str) -> Path:
    """A folder with the driver scripts and the packages of `tests/wire/NAME`, by its lock file.

    Fails where npm is missing.
    """
    npm = shutil.which("npm")
    assert npm, "npm is missing: install Debian's packages nodejs and npm"
    lock = (HERE / name / "package-lock.json").read_bytes()
    folder = ROOT / ".cache" / "node" / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as alone:  # two test processes may want it at once
        fcntl.flock(alone, fcntl.LOCK_EX)
        _install(npm, HERE / name, folder)
    return folder


def _install(npm: str, source: Path, folder: Path) -> None:
    if not (folder / "node_modules" / ".package-lock.json").exists():
        for file in ("package.json", "package-lock.json"):
            shutil.copy(source / file, folder / file)
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True
        )
    for script in (HERE / "node").glob("*.mjs"):
        shutil.copy(script, folder / script.name)


def node_of(folder: Path) -> str:
    """The Node that runs what is installed there: the one among its packages, else the system's.

    Fails where Node is missing.
    """
    packaged = folder / "node_modules" / ".bin" / "node"
    node = str(packaged) if packaged.exists() else shutil.which("node")
    assert node, "node is missing: install Debian's package nodejs"
    return node


class Driver:
    """Runs scenarios of a script (drive.mjs unless another is named) against a system."""

    def __init__(self, folder: Path, system: System, script: str = "drive.mjs") -> None:
        self._script = script
        self._folder = folder
        self._system = system

    def start(self, scenario: str, **arguments: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [node_of(self._folder), self._script, scenario, json.dumps(arguments)],
            cwd=self._folder,
            env={
                **os.environ,
                "TRIGGER_API_URL": self._system.url,
                "TRIGGER_SECRET_KEY": self._system.key,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, scenario: str, **arguments: Any) -> Any:
        return self.finish(self.start(scenario, **arguments))

    def finish(self, process: subprocess.Popen[str]) -> Any:
        out, errors = process.communicate(timeout=100)
        assert process.returncode == 0, f"{errors}\n{self._system.logs()}"
        return json.loads(out.strip().splitlines()[-1])


def played(packages: str, script: str, system: System) -> dict[str, Any]:
    """What each scenario of a script saw. All are played once, by one process."""
    driver = Driver(installed(packages), system, script)
    seen: dict[str, Any] = driver.run("all", id=uuid.uuid4().hex[:12])
    return seen


def saw(seen: dict[str, Any], scenario: str) -> Any:
    """What one of them saw. A scenario that raised fails here, with what it raised."""
    found = seen[scenario]
    assert "failed" not in found, found["failed"]
    return found
