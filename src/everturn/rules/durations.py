"""Durations as people write them: numbers, `timedelta`, `"30s"`, `"1h30m"`.

Spec: wire-protocol §2.3, tasks-and-runs §12.1. A month is 30 days and a year 365 days.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from everturn.errors import InvalidRequest

Duration = int | float | str | timedelta

#: Seconds of the units of written durations.
UNIT_S: Final[Mapping[str, int]] = {
    "s": 1,
    "m": 60,
    "h": 3600,
    "hr": 3600,
    "d": 86_400,
    "w": 7 * 86_400,
}
#: Seconds of the units of `wait.for_(…)`.
LONG_UNIT_S: Final[Mapping[str, int]] = {
    "seconds": 1,
    "minutes": 60,
    "hours": 3600,
    "days": 86_400,
    "weeks": 7 * 86_400,
    "months": 30 * 86_400,
    "years": 365 * 86_400,
}
#: Longer ones overflow the clocks they end up in; a thousand years is nobody's intention.
DURATION_S_MAX: Final = 1000 * LONG_UNIT_S["years"]
_WRITTEN_CHARS_MAX: Final = 64

_WRITTEN = re.compile(r"(?:[0-9]+(?:hr|[wdhms]))+")
_PART = re.compile(r"([0-9]+)(hr|[wdhms])")
_TTL = re.compile(r"([0-9]+)([smhd])")


def parse(value: Duration) -> float:
    """Seconds of a duration.

    Args:
        value: seconds as a number, a `timedelta`, or parts such as `"1h30m"` with the units
            w, d, hr, h, m and s.

    Raises:
        InvalidRequest: it is none of these, negative, not finite, or over DURATION_S_MAX.
    """
    seconds = _seconds(value)
    if not math.isfinite(seconds) or seconds < 0 or seconds > DURATION_S_MAX:
        raise InvalidRequest(f"{value!r} is not a duration between 0 s and {DURATION_S_MAX} s")
    return seconds


def _seconds(value: Duration) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool):
        raise InvalidRequest("a duration is a number of seconds, a timedelta or text like '1h30m'")
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise InvalidRequest(
                f"a number of hundreds of digits is no duration of up to {DURATION_S_MAX} s"
            ) from None
    if (
        not isinstance(value, str)
        or len(value) > _WRITTEN_CHARS_MAX
        or not _WRITTEN.fullmatch(value)
    ):
        raise InvalidRequest(f"{value!r} is not a duration: write '30s', '10m', '1h30m' or '7d'")
    return float(sum(int(count) * UNIT_S[unit] for count, unit in _PART.findall(value)))


def written(seconds: int) -> str:
    """A duration as `parse` reads it, in days and smaller units: `"1h30m"`, `"0s"`."""
    text = ""
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, UNIT_S[unit])
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def of_units(**units: float | None) -> float:
    """Seconds of exactly one unit, as in `of_units(minutes=5)`.

    Raises:
        InvalidRequest: no unit, several units, or one that LONG_UNIT_S does not hold.
    """
    given = [(unit, count) for unit, count in units.items() if count is not None]
    if len(given) != 1 or given[0][0] not in LONG_UNIT_S:
        raise InvalidRequest(f"give exactly one of {', '.join(LONG_UNIT_S)}")
    unit, count = given[0]
    return parse(count * LONG_UNIT_S[unit])


def idempotency_ttl(text: str) -> int | None:
    """Seconds of an idempotency key's lifetime (`"60s"`, `"1h"`), or None when it is malformed.

    A malformed lifetime counts as the default of 30 days (tasks-and-runs §9); one of more than
    DURATION_S_MAX is that long.
    """
    found = _TTL.fullmatch(text) if len(text) <= _WRITTEN_CHARS_MAX else None
    return min(int(found[1]) * UNIT_S[found[2]], DURATION_S_MAX) if found else None
