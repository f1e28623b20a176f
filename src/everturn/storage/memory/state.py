"""State in plain dicts: the executable specification of `storage/ports/state.py`.

The SQL engine is tested against the same suite (`testing/contracts/state.py`), and random calls
on both must give the same answers. Nothing here survives the process, and nothing is fast on
purpose: where a choice is between short and quick, it is short.

The verbs live in files named like those of `storage/sql`: workers, sessions, runs, claims,
waitpoints, batches and retention.
"""

from __future__ import annotations

from everturn.storage.memory.state_batches import Batches
from everturn.storage.memory.state_claims import Claims
from everturn.storage.memory.state_retention import Retention
from everturn.storage.memory.state_runs import Runs
from everturn.storage.memory.state_sessions import Sessions
from everturn.storage.memory.state_waitpoints import Waitpoints
from everturn.storage.memory.state_workers import Environments


class MemoryState(Environments, Sessions, Runs, Claims, Waitpoints, Batches, Retention):
    """Sessions, runs, queues, workers and keys of one process, for as long as it lives."""

    async def close(self) -> None:
        """Later calls raise Unavailable."""
        self._closed = True
