"""The wake-ups contract on the in-process engine."""

from __future__ import annotations

import pytest

from everturn.storage.memory.wakeups import MemoryWakeups
from everturn.storage.ports.wakeups import Wakeups
from everturn.testing.contracts.wakeups import *  # noqa: F403  # the suite's class, to be collected

pytestmark = pytest.mark.anyio


@pytest.fixture
def wakeups() -> Wakeups:
    return MemoryWakeups()
