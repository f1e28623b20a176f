"""Slots: how many runs of a queue, and of an environment, may be CLAIMED or RUNNING at once.

Slots are not stored but counted, from the rows that hold them: a count cannot drift, and a crash
cannot leak one. What must not happen is that two callers count the same free slot. Whoever wants
one therefore locks the queue's row first (and the environment's, if that has a limit) and counts
then; the other waits, and counts what the first one took. Giving a slot back needs no lock.

Queues without a limit are neither locked nor counted, so they cost nothing however busy they are.
Each concurrency key has the whole limit of its queue to itself (tasks-and-runs §8.2).
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import bindparam, func, select

from everturn.rules.run_states import SLOTTED
from everturn.storage.sql.tables import environments, in_states, queues, runs
from everturn.storage.sql.transaction import UNCOUNTED, Tx

_LIMITED = select(queues.c.name, queues.c.concurrency_limit).where(
    queues.c.environment_id == bindparam("environment_"),
    queues.c.concurrency_limit.is_not(None),
)
_LOCK_QUEUE = (
    select(queues.c.name)
    .where(
        queues.c.environment_id == bindparam("environment_"), queues.c.name == bindparam("name_")
    )
    .with_for_update()
)
_LOCK_ENVIRONMENT = (
    select(environments.c.id)
    .where(environments.c.id == bindparam("environment_"))
    .with_for_update()
)
_HOLDERS = (
    select(func.count())
    .select_from(runs)
    .where(runs.c.environment_id == bindparam("environment_"), in_states(*sorted(SLOTTED)))
)
_HOLDERS_OF_QUEUE = _HOLDERS.where(
    runs.c.queue == bindparam("queue_"), runs.c.concurrency_key == bindparam("key_")
)


class Slots:
    """The free slots of one environment, for the length of one transaction."""

    def __init__(self, tx: Tx, environment_id: str) -> None:
        self._tx = tx
        self._environment = {"environment_": environment_id}
        limited = tx.rows(_LIMITED, self._environment)
        self.limits: dict[str, int] = {row.name: row.concurrency_limit for row in limited}
        self._locked: set[str] = set()
        self._free: dict[tuple[str, str], int] = {}
        self._free_in_environment: int | None = None

    def lock(self, names: Iterable[str]) -> None:
        """Lock queues, by name, before slots of several are taken: so nobody waits in a ring."""
        for name in sorted(set(names) & self.limits.keys() - self._locked):
            self._tx.row(_LOCK_QUEUE, {**self._environment, "name_": name})
            self._locked.add(name)

    def take(self, queue: str, concurrency_key: str | None) -> bool:
        """Count a slot as taken, if there is one. The caller then writes the run that has it."""
        pair = (queue, concurrency_key or "")
        if queue in self.limits and pair not in self._free:
            self.lock([queue])
            values = {**self._environment, "queue_": pair[0], "key_": pair[1]}
            self._free[pair] = self.limits[queue] - self._tx.scalar(_HOLDERS_OF_QUEUE, values)
        if self._free.get(pair, 1) <= 0 or not self._take_in_environment():
            return False
        if pair in self._free:
            self._free[pair] -= 1
        return True

    def _take_in_environment(self) -> bool:
        limit = self._tx.settings.environment_limit
        if limit >= UNCOUNTED:
            return True
        if self._free_in_environment is None:
            self._tx.row(_LOCK_ENVIRONMENT, self._environment)
            self._free_in_environment = limit - self._tx.scalar(_HOLDERS, self._environment)
        if self._free_in_environment <= 0:
            return False
        self._free_in_environment -= 1
        return True
