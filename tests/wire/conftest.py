"""The official npm client, installed by lock file, and one real system it talks to."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Driver

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
    for script in (HERE / "node").glob("*.mjs"):
        shutil.copy(script, folder / script.name)
    return folder


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(
        tmp_path_factory.mktemp("wire"), ROOT / "tests" / "apps" / "conversations.py"
    ) as running:
        yield running


@pytest.fixture
def drive(node_folder: Path, system: System) -> Driver:
    return Driver(node_folder, system)
