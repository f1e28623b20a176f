"""The state contract on memory, SQLite and PostgreSQL."""

from __future__ import annotations

import pytest

from everturn.testing.contracts.state import *  # noqa: F403  # the suite's classes, to be collected

pytestmark = pytest.mark.anyio
