"""What suspended runs wait for: is it over, and the Wake that says so.

A wake is a compare-and-set from SUSPENDED, so however many notice the end of a wait (the append,
the timer, the child that finished, a sweep), one of them wakes the run. The others find nothing
to do. The run goes on at once when a slot is free; else it is RESUMING, and the link of its
worker picks it up with the next claim.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from everturn.errors import CursorTrimmed
from everturn.protocol.link import RecordFrame, Wake
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.server.services.readback import in_channel
from everturn.server.services.results import run_result
from everturn.storage.ports.rows import Run, Wait

if TYPE_CHECKING:
    from everturn.protocol.records import Record
    from everturn.server.services import Services

log = logging.getLogger("everturn.waits")

#: Records a Wake carries; the run reads on from its tail.
_WAKE_RECORDS_MAX = 100


class WaitOver(msgspec.Struct, frozen=True):
    """Why a wait is over. All empty: the time of an `until` wait has come."""

    timed_out: bool = False
    records: tuple[RecordFrame, ...] = ()
    result: dict[str, object] | None = None


class Waits:
    """Wakes runs whose wait is over."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def over(self, run: Run, wait: Wait) -> WaitOver | None:
        """What ended this wait, None while it goes on. An event wins over its timeout."""
        if wait.kind == "channel":
            records = await self._records_after(run, wait.after)
            if records:
                return WaitOver(records=tuple(RecordFrame.of(record) for record in records))
        elif wait.kind == "run":
            child = await self._services.state.run(run.environment_id, wait.ref)
            result = run_result(child) if child is not None else None
            if result is not None:
                return WaitOver(result=msgspec.to_builtins(result, builtin_types=(bytes,)))
        elif wait.kind == "token":
            token = await self._services.state.waitpoint(run.environment_id, wait.ref)
            if token is None or token.completed_at_ms is not None:
                # The run asks for the output itself: it may be larger than a wake should be.
                return WaitOver()
        if wait.until_ms is not None and wait.until_ms <= self._services.clock.now_ms():
            return WaitOver(timed_out=wait.kind != "until")
        return None

    async def wake_if_over(self, run: Run) -> bool:
        """Wake a suspended run if its wait is over. True when this call woke it."""
        if run.state is not RunState.SUSPENDED or run.wait is None:
            return False
        ended = await self.over(run, run.wait)
        if ended is None:
            return False
        answered = False
        try:
            woken = await self._services.state.wake_run(
                run.id, now_ms=self._services.clock.now_ms()
            )
            answered = True
        finally:
            if not answered:
                # The store was away, or we are cancelled with the link that brought us here: it
                # may have been woken. Whoever tries again then finds it running, and says nothing.
                self._services.links.doubt(run)
        if woken is None:
            return False
        log.debug("run.woken", extra={"run_id": run.id, "state": woken.state.value})
        if woken.state is RunState.RUNNING:
            self._services.links.woken(woken, self.frame(woken, ended))
        elif woken.worker_id is not None:
            self._services.wakeups.notify(f"worker/{woken.worker_id}")
        else:
            self._services.wakeups.notify(f"queue/{woken.environment_id}")
        return True

    async def wake_frame(self, run: Run) -> Wake:
        """The Wake of a run that goes on now, composed from the wait that is still on its row.

        The facts a wait ended by do not go away again, except a timeout that a record overtook;
        then the records are what it gets, which is the better answer.
        """
        ended = await self.over(run, run.wait) if run.wait is not None else None
        return self.frame(run, ended or WaitOver(timed_out=True))

    @staticmethod
    def frame(run: Run, ended: WaitOver) -> Wake:
        return Wake(run.id, run.fence, ended.timed_out, list(ended.records), ended.result)

    async def _records_after(self, run: Run, after: int | None) -> list[Record]:
        if run.session_id is None:
            return []
        session = await self._services.state.session(run.environment_id, run.session_id)
        if session is None:
            return []
        channel = in_channel(session)
        streams = self._services.streams
        try:
            page = await streams.read(
                channel,
                after=after,
                records_max=_WAKE_RECORDS_MAX,
                bytes_max=limits.LINK_MESSAGE_BYTES_MAX // 8,
            )
        except CursorTrimmed as trimmed:
            page = await streams.read(
                channel,
                after=trimmed.first_seq_num - 1,
                records_max=_WAKE_RECORDS_MAX,
                bytes_max=limits.LINK_MESSAGE_BYTES_MAX // 8,
            )
        return list(page)
