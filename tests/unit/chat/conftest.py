"""What every test of chat agents has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everturn.tasks import registry


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """A registry of its own, so that tests may declare agents of the same name."""
    with registry.collecting(registry.Registry()):
        yield
