"""When the holder of a run is gone.

How it shows: a link is lost and does not come back within its grace; a lease ran out; a claim is
not confirmed; a server starts and finds runs of workers nobody knows; a worker says itself that
it drained. For each run the facts are gathered in an order that keeps them true:

1. Raise the fence on the session's `.out`. A process that was only thought dead writes nothing
   from here on, so what is read next cannot change.
2. Read the log: open input, data after the newest turn-complete, who wrote that.
3. Decide (`rules/recovery.py`), then change the state in one guarded transaction.

A crash before step 3 leaves a run whose worker is not registered: `orphaned_runs` finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from everturn.errors import EverturnError, StorageCorrupt, Unavailable
from everturn.protocol.records import InputCursor
from everturn.protocol.runs import RunOutcome
from everturn.rules.recovery import (
    FailVisibly,
    Finalise,
    LostRun,
    Requeue,
    RequeueReason,
    decide_lost,
)
from everturn.rules.run_states import FINAL, RESIDENT, RunEvent, RunState
from everturn.server.services.finishing import is_agent
from everturn.server.services.readback import OutTail, open_input, out_tail
from everturn.server.services.results import internal_error, shown_error
from everturn.storage.ports.rows import Run

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.recovery")

#: How often a run that keeps moving is looked at; past it a sweep finds what is left.
_ROUNDS_MAX: Final = 3


class Recovery:
    """Gives away, ends or fails the runs of holders that are gone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def worker_gone(self, worker_id: str) -> int:
        """Forget a worker and recover every run it held; how many there were.

        Called after the grace of a lost link, when a lease ran out, or when its process was
        seen to exit. Does nothing for a worker that is forgotten already.
        """
        runs = await self._services.state.remove_worker(worker_id)
        if runs:
            log.warning("worker.lost", extra={"worker_id": worker_id, "runs": len(runs)})
        return await self.recover_all(runs, reason="worker_gone", died=True)

    async def recover_all(self, runs: Iterable[Run], *, reason: RequeueReason, died: bool) -> int:
        """Recover runs one after the other; how many.

        Raises Unavailable, which is everybody's trouble. Any other failure is of one run alone,
        and must not hold up those behind it.
        """
        count = 0
        for run in runs:
            try:
                await self.recover(run, reason=reason, died=died)
            except Unavailable:
                raise
            except EverturnError as error:
                log.error("run.not_recovered", extra={"run_id": run.id, "error": error.code})
            else:
                count += 1
        return count

    async def interrupted(self, run: Run, outcome: RunOutcome) -> None:
        """A worker gave up a run by itself: a drain, or a lease it could not renew.

        The cursor it reports is what it has committed, so it counts as the session's. An attempt
        that says what kept it from going on counts as a death: what it could not do, the next
        may not be able to do either, and that must end (rulings §1.8).
        """
        if run.session_id is not None and outcome.cursor is not None:
            await self._services.state.set_cursor(
                run.session_id, InputCursor(outcome.cursor, frozenset(outcome.decided))
            )
        if outcome.error is None:
            await self.recover(run, reason="drained", died=False)
        else:
            why = shown_error(outcome.error)["message"]
            await self.recover(run, reason="gave_up", died=True, why=why)

    async def recover(
        self, run: Run, *, reason: RequeueReason, died: bool, why: str = "its process died"
    ) -> None:
        """Decide what becomes of a run whose holder is gone, and carry it out.

        It may move while that is decided, by a wake for instance, and is looked at again then: the
        fence is raised by now, so its holder could not go on with it.

        `why` is what the run says when it is ended for that: `… 3 times in a row` follows.
        """
        for _ in range(_ROUNDS_MAX):
            if await self._recover_as_read(run, reason, died, why):
                return
            row = await self._services.state.run(None, run.id)
            if row is None or row.fence != run.fence or row.worker_id != run.worker_id:
                return
            if row.state not in RESIDENT:
                return
            run = row

    async def _recover_as_read(self, run: Run, reason: RequeueReason, died: bool, why: str) -> bool:
        """False, changing nothing but the fence, when the run is not as it was read any more."""
        try:
            facts = await self._facts(run, died)
        except StorageCorrupt as error:
            await self._broken(run, error)
            return True
        verdict = decide_lost(facts)
        match verdict:
            case Finalise():
                ended = await self._services.finishing.end(
                    run, RunEvent.COMPLETE, only_from=frozenset({run.state})
                )
                changed = ended is not None
            case Requeue(interruptions):
                changed = await self._requeue(run, interruptions, facts.is_agent)
            case FailVisibly(deaths):
                ended = await self._services.finishing.end(
                    run,
                    RunEvent.CRASH,
                    error=internal_error("TASK_RUN_CRASHED", f"{why} {deaths} times in a row"),
                )
                changed = ended is not None
            case _:
                assert_never(verdict)
        if changed:
            log.warning(
                "run.recovered",
                extra={
                    "run_id": run.id,
                    "session_id": run.session_id,
                    "attempt": run.attempt,
                    "reason": reason,
                    "verdict": type(verdict).__name__,
                },
            )
            self._services.links.lost(run)
        return changed

    async def _broken(self, run: Run, error: StorageCorrupt) -> None:
        """End a run whose session's log cannot be read back: no attempt could read it either.

        Its session stays unsettled, and a sweep tries again: the log may be restored.
        """
        log.error("run.log_corrupt", extra={"run_id": run.id, "reason": error.message})
        parked = run.state in (RunState.SUSPENDED, RunState.RESUMING)
        try:
            await self._services.finishing.end(
                run,
                RunEvent.COMPLETE if parked else RunEvent.BREAK,
                error=None if parked else internal_error("STORAGE_CORRUPT", error.message),
                only_from=frozenset({run.state}),
            )
        except StorageCorrupt:
            log.error("run.unsettled", extra={"run_id": run.id, "error": error.code})
        self._services.links.lost(run)

    async def _facts(self, run: Run, died: bool) -> LostRun:
        state = self._services.state
        task = await state.task(run.environment_id, run.task_id)
        session = None
        if run.session_id is not None:
            session = await state.session(run.environment_id, run.session_id)
        facts = LostRun(
            state=run.state,
            is_agent=is_agent(task) and session is not None,
            on_session=session is not None,
            is_current=session is None or session.current_run_id == run.id,
            interruptions=run.interruptions,
            died=died,
        )
        if session is None or not facts.is_current:
            return facts
        await self._services.outbox.fence_off(session, run)
        tail = await out_tail(self._services.streams, session, run)
        waiting = await open_input(
            self._services.streams, session, session.cursor.newest(tail.cursor)
        )
        return msgspec.structs.replace(
            facts,
            open_input=waiting.first is not None or _waits_for_handover(run, tail),
            open_data=tail.open_data,
            progress=_made_progress(run, tail),
        )

    async def _requeue(self, run: Run, interruptions: int, is_agent: bool) -> bool:
        self._not_live(run)
        queued = await self._services.state.requeue_run(
            run.id,
            RunEvent.INTERRUPT,
            now_ms=self._services.clock.now_ms(),
            fence=run.fence,
            interruptions=interruptions,
        )
        if queued is None:
            return False
        if queued.state in FINAL:
            await self._services.finishing.tell_relatives(queued)
            return True
        if queued.state is RunState.SUSPENDED:
            await self._after_parking(queued, is_agent)
        self._services.wakeups.notify(f"queue/{run.environment_id}")
        return True

    async def _after_parking(self, run: Run, is_agent: bool) -> None:
        """A suspended run that still waits has stayed so, without a worker.

        An agent has no journal to come back to its wait with: its turn begins anew, at once. A
        task's wait may have ended while nobody could be told.
        """
        if is_agent:
            await self._services.state.wake_run(run.id, now_ms=self._services.clock.now_ms())
        else:
            await self._services.waits.wake_if_over(run)

    def _not_live(self, run: Run) -> None:
        if run.session_id is not None:
            self._services.links.not_live(run.session_id)


def _made_progress(run: Run, tail: OutTail) -> bool:
    newest = tail.turn_complete
    return newest is not None and run.fence > 0 and newest.fence == run.fence


def _waits_for_handover(run: Run, tail: OutTail) -> bool:
    """A head start's first run owes an answer although no message lies in the log yet."""
    if run.continuation or tail.turn_complete is not None or b"handover-prepare" not in run.payload:
        return False
    try:
        payload = msgspec.json.decode(run.payload)
    except msgspec.DecodeError:
        return False
    return isinstance(payload, dict) and payload.get("trigger") == "handover-prepare"
