"""How runs end.

An ending has two steps. The state is set first, in one guarded transaction; from then on nobody
else can end the run. Then its surroundings are settled: the session's log and successor, the
parents that waited, the children of a cancelled run. A crash between the two leaves a session
*unchecked*, and a sweep calls `settle` again. Every step of `settle` is harmless when repeated:
the error chunk and the turn-complete have part ids that name run and message, the successor is a
compare-and-set, a wake is one too, and cancelling a cancelled child does nothing.

Nothing in the store says that relatives were not told, so a call that is interrupted between the
steps, by a store that is away or with the link it came over, is remembered and told by a sweep;
what a crash of this process interrupts is found by `sweeps/relatives.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, assert_never

import anyio

from everturn.errors import EverturnError, Fenced, Unavailable
from everturn.protocol.records import InputCursor
from everturn.protocol.runs import OutcomeKind, RunOutcome
from everturn.rules.recovery import EndedRun, decide_ended
from everturn.rules.retries import Retry, RetryPolicy, decide
from everturn.rules.run_states import FINAL, RESIDENT, RunEvent, RunState
from everturn.server.services.readback import open_input, out_tail
from everturn.server.services.results import bounded_error
from everturn.server.services.untold import Untold
from everturn.storage.ports.rows import Run, Session, TaskVersion

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.runs")

_EVENTS: Final[dict[OutcomeKind, RunEvent]] = {
    "completed": RunEvent.COMPLETE,
    "failed": RunEvent.FAIL,
    "canceled": RunEvent.CANCEL,
    "timed_out": RunEvent.TIME_OUT,
    "crashed": RunEvent.CRASH,
}
#: What a reader is told when the server ends a turn. Never an author's words or a stack.
_SHOWN: Final[dict[RunState, str]] = {
    RunState.CANCELED: "The run was cancelled.",
    RunState.TIMED_OUT: "The run took longer than it may.",
    RunState.CRASHED: "The agent's process ended unexpectedly, several times.",
}
_SHOWN_ELSE: Final = "The agent failed before it could answer."
#: Children of one run that are read at once and cancelled with it, and how often more are read.
#: What is left then is left to `sweeps/relatives.py`.
_CHILDREN_MAX: Final = 500
_CHILDREN_ROUNDS_MAX: Final = 100


class Finishing:
    """Ends runs, and settles what depends on them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        #: Ids of runs that may be final without their relatives knowing, oldest first.
        self._untold = Untold()
        #: Runs that are being ended here, each with what is set when its session is settled. Of
        #: two that end one run at the same time one does it; both are waited for.
        self._settling: dict[str, set[anyio.Event]] = {}

    async def report(self, run_id: str, fence: int, outcome: RunOutcome) -> None:
        """A worker says how an attempt ended. A repeat of the same report changes nothing.

        Raises Fenced when the run belongs to another attempt by now.
        """
        run = await self._services.state.run(None, run_id)
        if run is None or run.fence != fence:
            raise Fenced(f"run {run_id} is not held under fence {fence}", run_id=run_id)
        if run.state in FINAL:
            # By this report or against it. If settling was cut short, it is done now.
            await self.settle(run)
            return
        if run.state not in RESIDENT:
            return  # It was queued again.
        self._forget_presence(run)
        if outcome.kind == "interrupted":
            await self._services.recovery.interrupted(run, outcome)
            return
        if outcome.kind in ("failed", "crashed"):
            task = await self._services.state.task(run.environment_id, run.task_id)
            retry = self._retry(run, task, outcome)
            if retry is not None and await self._requeue(run, retry, outcome):
                return
        await self.end(run, _EVENTS[outcome.kind], outcome=outcome)

    async def end(
        self,
        run: Run,
        event: RunEvent,
        *,
        outcome: RunOutcome | None = None,
        error: dict[str, object] | None = None,
        only_from: frozenset[RunState] | None = None,
        stop: str | None = None,
    ) -> Run | None:
        """Make a run final and settle what depends on it.

        Args:
            run: the row as it was read; its fence guards the change.
            only_from: the states the change is allowed from.
            stop: why its worker is to stop it, told right after the state is set; None when the
                worker knows.

        Returns:
            The final row; None, changing nothing, when it moved on meanwhile.
        """
        self._forget_presence(run)
        stored = bounded_error(outcome.error) if outcome and outcome.error else error
        cursor = None
        if outcome is not None and outcome.cursor is not None:
            cursor = InputCursor(outcome.cursor, frozenset(outcome.decided))
        with self._untold.unless_told(run.id), self._settles(run) as settled:
            ended = await self._finish(run, event, outcome, stored, cursor, only_from)
            if ended is None:
                return None
            if stop is not None:
                self._services.links.cancelled(run, stop)
            log.info(
                "run.finished",
                extra={
                    "run_id": run.id,
                    "task_id": run.task_id,
                    "session_id": run.session_id,
                    "state": ended.state.value,
                    "attempt": run.attempt,
                },
            )
            turns = outcome.turns if outcome else 0
            await self.settle(ended, before=run, turns=turns, settled=settled)
        return ended

    async def _finish(
        self,
        run: Run,
        event: RunEvent,
        outcome: RunOutcome | None,
        error: Mapping[str, object] | None,
        cursor: InputCursor | None,
        only_from: frozenset[RunState] | None,
    ) -> Run | None:
        """The first step of `end`: the state."""
        return await self._services.state.finish_run(
            run.id,
            event,
            now_ms=self._services.clock.now_ms(),
            fence=run.fence,
            output=outcome.output if outcome else None,
            output_type=outcome.output_type if outcome else None,
            error=error,
            metadata=outcome.metadata if outcome else None,
            cursor=cursor,
            only_from=only_from,
        )

    # --- what depends on an ended run --------------------------------------------------------

    async def settle(
        self,
        run: Run,
        *,
        before: Run | None = None,
        turns: int = 0,
        settled: anyio.Event | None = None,
    ) -> None:
        """Look after a run that is final. Safe to repeat, from any point.

        Args:
            before: the row as it was when it ended; unknown to a sweep.
            turns: how many turns its worker says it began; a sweep reads that off the log.
            settled: is set as soon as the session is done with, or cannot be.
        """
        try:
            if run.session_id is not None:
                await self._settle_session(run, before or run, turns)
        finally:
            if settled is not None:
                settled.set()
            # A session that cannot be settled is no reason to let a parent wait.
            await self.tell_relatives(run)

    async def tell_relatives(self, run: Run) -> None:
        """Wake whoever waited for this run; cancel the children of a cancelled one."""
        with self._untold.unless_told(run.id):
            await self._tell_relatives(run)

    async def tell_again(self) -> int:
        """Tell the relatives of runs whose ending was interrupted; how many such runs.

        Raises what telling raises; whoever was not told yet stays remembered.
        """
        told = 0
        for run_id in self._untold:
            run = await self._services.state.run(None, run_id)
            if run is not None and run.state in FINAL:
                await self._tell_relatives(run)
                told += 1
            self._untold.told(run_id)
        return told

    async def _tell_relatives(self, run: Run) -> None:
        for parent in await self._services.state.waiting_on_run(run.id):
            await self._services.waits.wake_if_over(parent)
        if run.state is not RunState.CANCELED:
            return
        state, cancel = self._services.state, self._services.runs.cancel
        for _ in range(_CHILDREN_ROUNDS_MAX):
            alive = await state.children(run.id, limit=_CHILDREN_MAX, alive=True)
            for child in alive:
                await cancel(child.environment_id, child.id, "Parent run was cancelled")
            if len(alive) < _CHILDREN_MAX:
                return

    async def let_settle(self, run: Run, session: Session) -> None:
        """See that a final run is settled, before another follows it.

        An ending under way is waited for, because it knows more of the run than its row says; one
        that was cut short is made up for. Raises Unavailable; for a log that cannot be read nothing
        is done.
        """
        for settled in tuple(self._settling.get(run.id, ())):
            await settled.wait()
        if not await self._services.state.is_unchecked(session.id, run.id):
            return
        try:
            await self.settle(run)
        except Unavailable:
            raise
        except EverturnError as error:
            log.error("session.unsettled", extra={"session_id": session.id, "error": error.code})

    @contextmanager
    def _settles(self, run: Run) -> Iterator[anyio.Event]:
        """From before the state is set, so that whoever sees it set finds the mark."""
        settled = anyio.Event()
        endings = self._settling.setdefault(run.id, set())
        endings.add(settled)
        try:
            yield settled
        finally:
            settled.set()
            endings.discard(settled)
            if not endings:
                self._settling.pop(run.id, None)

    async def _settle_session(self, run: Run, before: Run, turns: int) -> None:
        state = self._services.state
        assert run.session_id is not None
        session = await state.session(run.environment_id, run.session_id)
        if session is None or session.current_run_id != run.id:
            return
        if run.state is not RunState.COMPLETED and run.fence > 0:
            # Its process may be alive and write on. Only now, because a run that is fenced off
            # and does not end after all could neither go on nor be given to somebody else.
            await self._services.outbox.fence_off(session, run)
        # For the crash between the session's row and its first message.
        await self._services.dispatch.store_boot_input(run, session)
        task = await state.task(run.environment_id, run.task_id)
        if is_agent(task):
            await self._settle_agent(run, before, turns, session)
        await state.checked(session.id, run.id)

    async def _settle_agent(self, run: Run, before: Run, turns: int, session: Session) -> None:
        """Close the turn a dead run left open, and start the successor if messages wait."""
        streams = self._services.streams
        tail = await out_tail(streams, session, run)
        committed = session.cursor.newest(tail.cursor)
        waiting = await open_input(streams, session, committed)
        ending = decide_ended(
            EndedRun(
                state=run.state,
                is_agent=True,
                was_working=was_working(before),
                began_a_turn=tail.wrote or turns > 0,
                open_data=tail.open_data,
                open_first=waiting.first is not None,
                open_more=waiting.more,
                failed_already=tail.failed_already,
            )
        )
        if ending.fail_first:
            await self._services.outbox.fail_open_turn(
                session,
                run,
                _SHOWN.get(run.state, _SHOWN_ELSE),
                first=waiting.first,
                committed=committed,
            )
        active = session.status(self._services.clock.now_ms()) == "ACTIVE"
        if ending.start_successor and active:
            await self._services.dispatch.continue_session(session, "continuation")
        else:
            await self._services.outbox.trim_input(session, committed)

    # --- failures ----------------------------------------------------------------------------

    def _retry(self, run: Run, task: TaskVersion | None, outcome: RunOutcome) -> Retry | None:
        config = task.config if task is not None else {}
        # A turn loop handles its own failures turn by turn: one attempt unless it says more.
        policy = RetryPolicy.of(config, default_attempts=1 if is_agent(task) else 3)
        declared = config.get("maxAttempts")
        return decide(
            outcome,
            policy,
            failures=run.failures + 1,
            attempt=run.attempt,
            max_attempts=run.max_attempts
            if run.max_attempts is not None
            else (declared if isinstance(declared, int) else None),
            machine=run.machine,
            now_ms=self._services.clock.now_ms(),
            uniform=self._services.ids.uniform,
        )

    async def _requeue(self, run: Run, retry: Retry, outcome: RunOutcome) -> bool:
        now_ms = self._services.clock.now_ms()
        metadata = outcome.metadata
        if metadata is not None:
            await self._services.state.set_metadata(
                run.environment_id, run.id, lambda _: metadata, now_ms=now_ms
            )
        queued = await self._services.state.requeue_run(
            run.id,
            RunEvent.RETRY,
            now_ms=now_ms,
            fence=run.fence,
            interruptions=0,
            not_before_ms=now_ms + retry.delay_ms if retry.delay_ms else None,
            machine=retry.machine,
        )
        if queued is None:
            return False
        if queued.state in FINAL:
            await self.tell_relatives(queued)
            return True
        log.info(
            "run.retried",
            extra={"run_id": run.id, "attempt": run.attempt, "delay_ms": retry.delay_ms},
        )
        self._services.wakeups.notify(f"queue/{run.environment_id}")
        self._services.links.timer.moved(queued.not_before_ms)
        return True

    def _forget_presence(self, run: Run) -> None:
        """Before the state changes, so that no append trusts a presence that is ending."""
        if run.session_id is not None:
            self._services.links.not_live(run.session_id)


def is_agent(task: TaskVersion | None) -> bool:
    """Whether runs of this task are turn loops; a task nobody knows any more is taken for one.

    The mistake that costs nothing is made: a successor of an unknown task waits for a version.
    """
    if task is None:
        return True
    match task.kind:
        case "agent" | "custom-agent":
            return True
        case "task":
            return False
        case _:
            assert_never(task.kind)


def was_working(run: Run) -> bool:
    """Whether its code had begun and was not parked, judged by the row.

    A run that waits in the queue for its second attempt had begun as well: what it left open is
    read off the log.
    """
    return run.executed_at_ms is not None and run.state not in (
        RunState.SUSPENDED,
        RunState.RESUMING,
    )
