"""Shared fixtures. Asynchronous tests run on asyncio through anyio's plugin."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# No deadline: machines are shared and slow at times. A gate has to say the same of the same commit
# twice, so where CI runs the examples are drawn from the test and not from the clock; on a
# developer's machine each run draws new ones.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
