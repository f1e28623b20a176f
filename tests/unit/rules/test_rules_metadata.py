"""Sums of metadata stay numbers (wire-protocol §9.8)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from everturn.errors import InvalidRequest
from everturn.rules.metadata import Operation, change


def after(*values: Any) -> Any:
    """What increments by these values, one after the other, make of nothing."""
    operations = [Operation(type="increment", key="n", value=value) for value in values]
    return msgspec.json.decode(change(operations)(None))["n"]


@pytest.mark.parametrize("values", [(1.5, 10**400), (10**400, 1.5), (1e308, 1e308)])
def test_an_increment_past_the_largest_number_is_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidRequest, match="largest number"):
        after(*values)


def test_what_is_no_number_counts_as_nothing() -> None:
    assert after("2", None, True, [1], 2, 0.5) == 2.5
