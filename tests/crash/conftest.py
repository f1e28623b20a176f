"""One real system per test: a server and a worker process over one data directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conversation import Conversations

from everturn.client.config import configure
from everturn.testing.processes import System

APP = Path(__file__).parent.parent / "apps" / "conversations.py"


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    ledger = {"EVERTURN_TEST_LEDGER": str(tmp_path / "ledger")}
    with System(tmp_path / "data", APP, environment=ledger) as running:
        configure(url=running.url, secret_key=running.key)
        try:
            yield running
        finally:
            configure()


@pytest.fixture
def conversations(system: System) -> Conversations:
    return Conversations(system)
