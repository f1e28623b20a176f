"""The official npm client, installed by lock file, and one real system it talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import ROOT, Driver, installed

from everturn.testing.processes import System


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder with the driver script and its packages. Fails where Node is missing."""
    return installed("node")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(
        tmp_path_factory.mktemp("wire"), ROOT / "tests" / "apps" / "conversations.py"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def tasks_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("tasks"), ROOT / "tests" / "apps" / "tasks.py") as running:
        yield running


@pytest.fixture
def drive(node_folder: Path, system: System) -> Driver:
    return Driver(node_folder, system)
