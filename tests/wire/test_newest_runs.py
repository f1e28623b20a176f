"""The newest `@trigger.dev/sdk` (4.8.3): wait tokens, subscriptions, packets, batches, streams.

The tests are those of 4.5.0; only the packages differ.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from driver import installed
from test_official_runs import *  # noqa: F403  # collected here, with the packages below

# Packages are installed within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def node_folder() -> Path:
    return installed("node-newest")
