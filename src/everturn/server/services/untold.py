"""What was to be told to others when a call was cut short, remembered for the sweeps.

The state has the change by then, and who waits for it does not know. In memory only: after a crash
the sweeps of a start find the same (`sweeps/relatives.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Past it the oldest is left to `sweeps/relatives.py`.
UNTOLD_MAX: Final = 10_000


class Untold:
    """Ids whose telling was cut short, oldest first."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        """Those of this moment; they may be told meanwhile."""
        return iter(tuple(self._ids))

    def told(self, id: str) -> None:
        """Nothing is left to be done for it."""
        self._ids.pop(id, None)

    @contextmanager
    def unless_told(self, id: str) -> Iterator[None]:
        """Remember the id unless the block is passed to its end."""
        is_told = False
        try:
            yield
            is_told = True
        finally:
            if not is_told:
                self._ids[id] = None
                if len(self._ids) > UNTOLD_MAX:
                    del self._ids[next(iter(self._ids))]
