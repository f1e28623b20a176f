"""The official npm client, installed by lock file, and one real system it talks to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everturn.testing.processes import System

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder with the driver script and its packages. Fails where Node is missing."""
    npm = shutil.which("npm")
    assert npm, "npm is missing: install Debian's packages nodejs and npm"
    lock = (HERE / "node" / "package-lock.json").read_bytes()
    folder = ROOT / ".cache" / "node" / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "node_modules" / ".package-lock.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder / name)
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True
        )
    shutil.copy(HERE / "node" / "drive.mjs", folder / "drive.mjs")
    return folder


class Driver:
    """Runs scenarios of drive.mjs against a system."""

    def __init__(self, folder: Path, system: System) -> None:
        self._folder = folder
        self._system = system

    def start(self, scenario: str, **arguments: Any) -> subprocess.Popen[str]:
        node = shutil.which("node")
        assert node, "node is missing: install Debian's package nodejs"
        return subprocess.Popen(
            [node, "drive.mjs", scenario, json.dumps(arguments)],
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


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(
        tmp_path_factory.mktemp("wire"), ROOT / "tests" / "apps" / "conversations.py"
    ) as running:
        yield running


@pytest.fixture
def drive(node_folder: Path, system: System) -> Driver:
    return Driver(node_folder, system)
