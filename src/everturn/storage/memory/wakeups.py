"""Wake-ups inside one process: a hint is an event set on every waiter of its topic."""

from __future__ import annotations

import anyio

from everturn.storage.ports.wakeups import Waiter


class MemoryWaiter:
    """Collects the hints of one topic; several hints between two waits count as one."""

    def __init__(self, owner: MemoryWakeups, topic: str) -> None:
        self._owner = owner
        self._topic = topic
        self._event = anyio.Event()

    def hint(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """True when a hint came since the last wait, False after `timeout_s` without one."""
        with anyio.move_on_after(timeout_s):
            await self._event.wait()
        # Looked at after the wait, not inside it: a hint that arrives as the time runs out is
        # answered now, and a cancelled wait leaves it for the next one.
        if not self._event.is_set():
            return False
        self._event = anyio.Event()
        return True

    def close(self) -> None:
        """Stop collecting. Closing twice is fine."""
        self._owner.forget(self._topic, self)


class MemoryWakeups:
    """The port of wake-ups for one event loop. Topics without waiters cost nothing."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[MemoryWaiter]] = {}

    def notify(self, topic: str) -> None:
        """Hint everybody waiting on the topic now; nobody waiting means nothing happens."""
        for waiter in self._waiters.get(topic, ()):
            waiter.hint()

    def waiter(self, topic: str) -> Waiter:
        """Start collecting hints for a topic; close it when done, or it collects for ever."""
        waiter = MemoryWaiter(self, topic)
        self._waiters.setdefault(topic, set()).add(waiter)
        return waiter

    def forget(self, topic: str, waiter: MemoryWaiter) -> None:
        waiters = self._waiters.get(topic)
        if waiters is None:
            return
        waiters.discard(waiter)
        if not waiters:
            del self._waiters[topic]
