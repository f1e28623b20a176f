"""The port of wake-ups: hints that something may have changed.

A hint may be lost, late or doubled. Whoever waits on one also polls: losing a hint costs a
bounded delay, never data.
"""

from __future__ import annotations

from typing import Protocol


class Waiter(Protocol):
    """Collects hints for one topic; several hints between two waits count as one."""

    async def wait(self, timeout_s: float) -> bool:
        """True when a hint came since the last wait, False after `timeout_s` seconds without."""
        ...

    def close(self) -> None: ...


class Wakeups(Protocol):
    """Topics are short strings made by us: `queue/<environment>`, `worker/<id>`."""

    def notify(self, topic: str) -> None:
        """Hint everybody waiting on the topic. Never blocks, never fails."""
        ...

    def waiter(self, topic: str) -> Waiter:
        """Start collecting hints for a topic."""
        ...
