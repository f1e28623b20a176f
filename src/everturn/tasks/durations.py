"""Durations for authors: `durations.parse("1h30m")`. The rules are in `rules/durations.py`."""

from __future__ import annotations

from everturn.rules.durations import Duration, of_units, parse

__all__ = ["Duration", "of_units", "parse"]
