"""A real server and worker, and a machine under them that may misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from load_kit import Hostile, Server, build_hostile

from everturn.client.config import configure
from everturn.testing.processes import System

APP = Path(__file__).parent.parent / "apps" / "conversations.py"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def hostile(tmp_path: Path, library: Path) -> Hostile:
    return Hostile(library, tmp_path / "words", tmp_path / "data")


@pytest.fixture
def system(tmp_path: Path, hostile: Hostile) -> Iterator[System]:
    ledger = {"EVERTURN_TEST_LEDGER": str(tmp_path / "ledger")}
    with System(tmp_path / "data", APP, environment={**ledger, **hostile.environment}) as running:
        configure(url=running.url, secret_key=running.key)
        try:
            yield running
        finally:
            configure()


@pytest.fixture
def server(system: System) -> Server:
    return Server(system)
