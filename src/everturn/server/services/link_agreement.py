"""Whether a worker's link and the state believe the same of the worker's runs.

The two are told of each other's changes as they happen, and a crash, a store whose answer was
lost, a call that was cut short, or another server may prevent the telling. Two things are left
then, and neither shows by itself while the connection lasts:

* A run that is in the worker's hands although it is over or somebody else's. It was cancelled, and
  nobody said so: the worker works on, for nothing.
* A run that the state gives to the worker, which has let go of it. Its append was refused under an
  old fence, and it keeps silent since, as it must: the run would stay RUNNING for ever.

So what the link holds is compared with the rows, every `limits.HEARTBEAT_MS`. One of the two is
always a moment ahead: a claim is in the state before it is in the worker's hands, an ending is in
the state before it is out of them. Only what is found twice in a row is a disagreement.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from everturn.protocol.link import Cancel
from everturn.rules.run_states import RunState
from everturn.server.services.results import shown_error

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.server.services.link import Link

log = logging.getLogger("everturn.link")

#: A claim that was not confirmed has a sweep of its own, which is faster.
_IN_HAND: Final = frozenset({RunState.RUNNING, RunState.SUSPENDED, RunState.RESUMING})
#: Runs that are put right in one comparison.
_RUNS_MAX: Final = 500

#: A run and the fence it is held under.
_Holding = tuple[str, int]


class Agreement:
    """Compares what one link holds with the rows of its worker's runs."""

    def __init__(self, services: Services, link: Link) -> None:
        self._services = services
        self._link = link
        self._surplus: frozenset[_Holding] = frozenset()
        self._missing: frozenset[_Holding] = frozenset()

    async def compare(self) -> int:
        """Put right what was found before and is found again; how many runs."""
        held = self._link.holdings()
        rows = await self._services.state.holdings(self._link.worker_id)
        now_held = self._link.holdings()
        owned = {(row.run_id, row.fence) for row in rows}
        in_hand = {(row.run_id, row.fence) for row in rows if row.state in _IN_HAND}
        # Held before and after the rows were read: what came or went meanwhile says nothing.
        surplus = frozenset((held & now_held) - owned)
        missing = frozenset(in_hand - held - now_held)
        lasting = (surplus & self._surplus, missing & self._missing)
        self._surplus, self._missing = surplus, missing
        for run_id, fence in sorted(lasting[0])[:_RUNS_MAX]:
            await self._stop(run_id, fence)
        for run_id, fence in sorted(lasting[1])[:_RUNS_MAX]:
            await self._take_back(run_id, fence)
        return sum(min(len(found), _RUNS_MAX) for found in lasting)

    async def _stop(self, run_id: str, fence: int) -> None:
        """The worker works on a run that is not its own any more."""
        run = await self._services.state.run(self._link.environment.id, run_id)
        log.warning("run.held_for_nothing", extra={"run_id": run_id, "fence": fence})
        if run is None or run.fence != fence or run.state is not RunState.CANCELED:
            self._link.lose(run_id, fence)
        elif self._link.release(run_id, fence):
            self._link.send(Cancel(run_id, shown_error(run.error or {})["message"]))

    async def _take_back(self, run_id: str, fence: int) -> None:
        """The worker has let go of a run that the state still gives to it."""
        run = await self._services.state.run(self._link.environment.id, run_id)
        if run is None or run.fence != fence or run.state not in _IN_HAND:
            return
        if self._link.ended.is_set():
            return  # It may have connected again, and named the run.
        await self._services.recovery.recover_all([run], reason="not_held", died=True)
