"""Memory of the processes of a soak, by age, and whether it stayed flat.

Processes that are killed every few seconds start small each time, so a figure over all of them
says nothing. Two things are looked at instead:

* one life, long and undisturbed (the first worker, and the server during the storm's quiet part):
  the slope after warming up, as the median of the slopes between all pairs of samples, which one
  burst of traffic does not move. Growth is allowed up to a tenth of the level, or 12 MiB where a
  tenth is less: an allocator's steps. A server keeps the newest records in memory, up to a bound
  (`STREAM_TAIL_BYTES_MAX`) which honest traffic takes long to reach; the soak fills that cache
  first, and the server is warm when it is full.
* lives of a server against each other at the same age: what a start reads back is what was not
  compacted yet. That rises and falls, up to a bound of its own, and must not grow beyond it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

import psutil

from everturn.rules import limits

MIB: Final = 1024 * 1024
#: The first part of a life, in which caches fill: a fifth of it, and at least a minute.
WARM_UP_SHARE: Final = 0.2
WARM_UP_S: Final = 60.0
#: What is left must be this long to say anything.
WINDOW_S: Final = 120.0
GROWTH_SHARE: Final = 0.10
GROWTH_MIB: Final = 12.0
#: What a start may read back more at one time than at another.
UNCOMPACTED_MIB: Final = limits.STREAM_UNCOMPACTED_BYTES_MAX / MIB
#: Age at which lives of a server are compared, and how far a sample may lie from it.
AGE_S: Final = 6.0
AGE_TOLERANCE_S: Final = 3.0
#: Lives on each side of that comparison.
LIVES_MIN: Final = 3
#: Samples of one life that are compared pair by pair.
SAMPLES_MAX: Final = 200


@dataclass
class Life:
    """One process: `(age in seconds, MiB)` since the soak saw it first."""

    role: str
    began: float
    samples: list[tuple[float, float]] = field(default_factory=list)
    #: The age at which it is warm; None leaves that to the general rule.
    warm_at: float | None = None

    def at_age(self) -> float | None:
        near = [(abs(age - AGE_S), mib) for age, mib in self.samples]
        return min(near)[1] if near and min(near)[0] <= AGE_TOLERANCE_S else None


class Memory:
    """Samples, and what they say."""

    def __init__(self) -> None:
        #: By process id.
        self.lives: dict[int, Life] = {}

    def sample(self, role: str, pid: int, now: float) -> None:
        """Note how much a process holds; one that is gone is passed over."""
        try:
            mib = psutil.Process(pid).memory_info().rss / MIB
        except psutil.NoSuchProcess:
            return
        life = self.lives.setdefault(pid, Life(role, now))
        if mib > 0:  # a zombie holds nothing
            life.samples.append((now - life.began, mib))

    def is_warm(self, pid: int, now: float) -> None:
        """From here on, growth counts."""
        if (life := self.lives.get(pid)) is not None:
            life.warm_at = now - life.began

    def newest(self, role: str) -> float:
        """The last sample of a role, in MiB."""
        found = [life.samples[-1][1] for life in self.lives.values() if life.role == role]
        return found[-1] if found else 0.0

    def report(self) -> dict[str, Any]:
        """Figures by role. `flat` is None where there was not enough to say."""
        roles = sorted({life.role for life in self.lives.values()})
        report: dict[str, Any] = {role: self._longest(role) for role in roles}
        report["server"]["at_equal_age"] = self._at_equal_age()
        return report

    def complaints(self) -> list[str]:
        """What grew, one line each."""
        found = []
        for role, figures in self.report().items():
            if figures["flat"] is False:
                found.append(
                    f"memory: {role} grew by {figures['growth_mib']} MiB in {figures['window_s']} s"
                )
            equal = figures.get("at_equal_age")
            if equal is not None and equal["flat"] is False:
                found.append(
                    f"memory: a {role} of the same age holds {equal['last_mib']} MiB and held "
                    f"{equal['first_mib']} MiB"
                )
        return found

    def _longest(self, role: str) -> dict[str, Any]:
        life = max(self._of(role), key=lambda one: one.samples[-1][0])
        ages, levels = zip(*life.samples, strict=True)
        figures: dict[str, Any] = {
            "lives": sum(one.role == role for one in self.lives.values()),
            "age_s": round(ages[-1]),
            "first_mib": round(levels[0], 1),
            "last_mib": round(levels[-1], 1),
            "max_mib": round(max(max(m for _, m in o.samples) for o in self._of(role)), 1),
            "flat": None,
        }
        start = life.warm_at or max(WARM_UP_S, ages[-1] * WARM_UP_SHARE)
        warm = [(age, mib) for age, mib in life.samples if age >= start]
        if not warm or warm[-1][0] - warm[0][0] < WINDOW_S:
            return figures
        window_s = warm[-1][0] - warm[0][0]
        slope = slope_of(warm)
        figures["window_s"] = round(window_s)
        figures["mib_per_hour"] = round(slope * 3600, 1)
        figures["growth_mib"] = round(slope * window_s, 1)
        level = statistics.median(mib for _, mib in warm)
        figures["flat"] = slope * window_s <= max(GROWTH_MIB, GROWTH_SHARE * level)
        return figures

    def _of(self, role: str) -> list[Life]:
        return [life for life in self.lives.values() if life.role == role and life.samples]

    def _at_equal_age(self) -> dict[str, Any] | None:
        levels = [mib for life in self._of("server") if (mib := life.at_age()) is not None]
        third = len(levels) // 3
        if third < LIVES_MIN:
            return None
        first, last = statistics.median(levels[:third]), statistics.median(levels[-third:])
        return {
            "age_s": AGE_S,
            "lives": len(levels),
            "first_mib": round(first, 1),
            "last_mib": round(last, 1),
            "flat": last - first <= UNCOMPACTED_MIB + GROWTH_MIB,
        }


def slope_of(samples: list[tuple[float, float]]) -> float:
    """The median slope between all pairs (Theil and Sen), per second."""
    step = max(1, len(samples) // SAMPLES_MAX)
    pairs = combinations(samples[::step], 2)
    return statistics.median((b - y) / (a - x) for (x, y), (a, b) in pairs if a > x)
