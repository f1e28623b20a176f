"""The option `debounce`, from Python to the wire; durations back to text."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from everturn.errors import InvalidRequest
from everturn.rules.debouncing import wire_debounce
from everturn.rules.durations import parse, written
from everturn.tasks.triggers import wire_options


def test_durations_of_all_kinds_become_whole_seconds() -> None:
    given: Any = {"key": "k", "delay": 0.2, "mode": "trailing", "max_delay": timedelta(hours=1.5)}
    wire = {"key": "k", "delay": "1s", "mode": "trailing", "maxDelay": "1h30m"}

    assert wire_debounce(given) == wire
    assert wire_options({"debounce": given}) == {"debounce": wire}


@pytest.mark.parametrize(
    "bad",
    [{"key": "k"}, {"delay": 1}, {"key": "k", "delay": "x"}, {"key": "k", "delay": 1, "x": 1}],
)
def test_what_cannot_be_meant_is_refused_before_it_is_sent(bad: Any) -> None:
    with pytest.raises(InvalidRequest):
        wire_debounce(bad)


@pytest.mark.parametrize("seconds", [0, 1, 59, 60, 3600, 86_399, 86_400, 5 * 86_400 + 3601])
def test_a_written_duration_is_read_back(seconds: int) -> None:
    assert parse(written(seconds)) == seconds
