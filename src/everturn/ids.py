"""The only door to chance: ids, part ids and jitter.

Public ids are `<prefix>_<body>`; the body is 25 characters of `[a-z0-9]` starting with `c`, which
is what the original's clients were written against (they rely on exactly one underscore).
Spec: wire-protocol §2.1.
"""

from __future__ import annotations

import random
import secrets
from typing import Protocol

_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_NANOID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"


class Ids(Protocol):
    """Where every id and every random number of ours comes from."""

    def new(self, prefix: str) -> str:
        """A fresh public id, for example `new("run")` -> `run_c…` (25 characters of body)."""
        ...

    def part(self, length: int = 21) -> str:
        """A fresh part id over the nanoid alphabet."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A random number in [low, high), for jitter."""
        ...


class RandomIds:
    """Ids from a cryptographic source, or from a seed when one is given."""

    def __init__(self, seed: int | None = None) -> None:
        self._random: random.Random = (
            secrets.SystemRandom() if seed is None else random.Random(seed)
        )

    def new(self, prefix: str) -> str:
        return f"{prefix}_c" + "".join(self._random.choices(_LOWER, k=24))

    def part(self, length: int = 21) -> str:
        return "".join(self._random.choices(_NANOID, k=length))

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def internal_id(public_id: str) -> str:
    """The body of a public id: `run_cabc` -> `cabc`. The whole string when it has no prefix."""
    return public_id.partition("_")[2] or public_id
