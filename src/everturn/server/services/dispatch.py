"""Seeing that some run reads what was appended: the run check, successors and swaps.

An append has three steps: record, run check, wake-up (rulings §1.1). The record is durable when
the run check begins. Whoever suspends or finalises a run sets the state first and reads the tail
afterwards. So of an append and an ending that meet, one sees the other:

    append stores the record .......... run check reads the state
    ending sets the state ............. ending reads the tail

If the run check still reads "running", the state was set after that, and the tail was read after
the record was stored. A run check that fails for want of a store does not fail the append: the
session is remembered and a sweep repeats the check.

The short cut for a hot append is `Links.is_live`: an agent that is running on a link of this very
server needs no look at the state. The mark is taken away *before* the state of a suspending or
ending run is set, so the argument above holds for it too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from everturn.errors import EverturnError, RunNotFound, SessionNotFound, Unavailable
from everturn.protocol.records import NewRecord, input_body
from everturn.rules import limits
from everturn.rules.boot_records import boot_part_id, continuation_payload, first_payload
from everturn.rules.run_states import FINAL, RunEvent, RunState
from everturn.server.services.readback import in_channel
from everturn.storage.ports.rows import NewRun, Run, Session

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.dispatch")

_ROUNDS_MAX: Final = 3
#: Sessions whose run check failed, kept for the sweep. Past it the oldest is forgotten here; the
#: next append, or the sweep of a restart, finds it.
_RECHECKS_MAX: Final = 10_000
_TASKS_KEPT: Final = 10_000


class Dispatch:
    """Makes, wakes and swaps the runs of sessions."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rechecks: dict[str, Session] = {}
        self._queues: dict[tuple[str, str], str] = {}

    # --- building runs -----------------------------------------------------------------------

    def knows_queue(self, environment_id: str, task_id: str, queue: str) -> None:
        """Remember the queue a task declares, for runs that name none."""
        if (environment_id, task_id) in self._queues or len(self._queues) < _TASKS_KEPT:
            self._queues[environment_id, task_id] = queue

    def session_run(self, session: Session, previous_run_id: str | None) -> NewRun:
        """The next run of a session, built from its trigger config.

        It is the first run when `previous_run_id` is None. Has no effect and may be called again
        when a transaction is retried; only the run's id differs then (wire-protocol §4.8).
        """
        config = session.trigger_config
        base = config.get("basePayload")
        base = base if isinstance(base, Mapping) else {}
        idle = _int(config.get("idleTimeoutInSeconds"))
        boot_input: bytes | None = None
        if previous_run_id is None:
            payload, boot_input = first_payload(base, session_id=session.id, idle_timeout_s=idle)
        else:
            payload = continuation_payload(
                base, session_id=session.id, idle_timeout_s=idle, previous_run_id=previous_run_id
            )
        return NewRun(
            id=self._services.ids.new("run"),
            task_id=session.task_id,
            payload=msgspec.json.encode(payload),
            queue=self._queue(session.environment_id, session.task_id, config.get("queue")),
            session_id=session.id,
            boot_input=boot_input,
            continuation=previous_run_id is not None,
            previous_run_id=previous_run_id,
            lock_version=_text(config.get("lockToVersion")),
            max_attempts=_int(config.get("maxAttempts")),
            max_duration_s=_int(config.get("maxDuration")),
            machine=_text(config.get("machine")),
            tags=_tags(config.get("tags")),
        )

    def queue_of(self, environment_id: str, task_id: str) -> str:
        """The queue runs of a task go to when nothing else is said."""
        return self._queues.get((environment_id, task_id)) or f"task/{task_id}"

    # --- after a run row was made ------------------------------------------------------------

    async def created(self, run: Run, session: Session | None = None) -> None:
        """Put a new run's first message into the log and tell the workers.

        Safe to repeat: the message's part id names the run, and the same is done again before
        the run's first claim is sent, for the crash between the row and this call.
        """
        await self.store_boot_input(run, session)
        self._services.wakeups.notify(f"queue/{run.environment_id}")

    async def store_boot_input(self, run: Run, session: Session | None = None) -> None:
        """Append the first message as `boot:<run id>`, then clear it (rulings §1.4)."""
        if run.boot_input is None or run.session_id is None:
            return
        if session is None:
            session = await self._services.state.session(run.environment_id, run.session_id)
        if session is None:
            return
        part_id = boot_part_id(run.id)
        body = input_body(run.boot_input.decode(), part_id)
        await self._services.streams.append(in_channel(session), [NewRecord(body, (), part_id)])
        await self._services.state.clear_boot_input(run.id)

    # --- the run check -----------------------------------------------------------------------

    async def ensure_run(self, session: Session) -> None:
        """See that some run will read what was just appended to the session's `.in`.

        Never raises, cancellation excepted: the record is stored and the caller's append has
        succeeded. A check that could not be made is made again by a sweep.
        """
        if self._services.links.is_live(session.id):
            return
        intent = self._services.links.intend(session.id)
        try:
            await self._check(session, intent)
        except (EverturnError, OSError) as error:
            log.warning(
                "session.run_check_failed",
                extra={"session_id": session.id, "error": type(error).__name__},
            )
            self._remember(session)
        finally:
            self._services.links.forgo(session.id, intent)

    async def repeat_failed_checks(self) -> int:
        """Make again the run checks that failed; how many there were."""
        waiting, self._rechecks = self._rechecks, {}
        for session in waiting.values():
            await self.ensure_run(session)
        return len(waiting)

    async def _check(self, session: Session, intent: object) -> None:
        state = self._services.state
        for _ in range(_ROUNDS_MAX):
            row = await state.session(session.environment_id, session.id)
            if row is None or row.status(self._services.clock.now_ms()) != "ACTIVE":
                return
            run = None
            if row.current_run_id is not None:
                run = await state.run(row.environment_id, row.current_run_id)
            if run is not None and run.state not in FINAL:
                if run.state is RunState.RUNNING:
                    self._services.links.mark(row.id, run, intent)
                await self._services.waits.wake_if_over(run)
                return
            await self.let_settle(row, run)
            if await self.continue_session(row, "continuation") is not None:
                return
        raise Unavailable(f"session {session.id} changed its run {_ROUNDS_MAX} times meanwhile")

    async def let_settle(self, session: Session, run: Run | None) -> None:
        """Before a session goes on: what its current run left open, if that is final, is closed.

        Else the successor answers what is said to have failed a moment later (rulings §1.9).
        """
        if run is not None and run.state in FINAL:
            await self._services.finishing.let_settle(run, session)

    async def continue_session(
        self, session: Session, reason: Literal["continuation", "upgrade", "manual"]
    ) -> Run | None:
        """Give the session its next run if its current one has not changed since `session`."""
        task = await self._services.state.task(session.environment_id, session.task_id)
        if task is not None:
            self.knows_queue(session.environment_id, session.task_id, task.queue)
        swapped = await self._services.state.continue_session(
            session.id,
            replacing=session.current_run_id,
            make_run=self.session_run,
            reason=reason,
            now_ms=self._services.clock.now_ms(),
        )
        if swapped is None:
            return None
        row, run = swapped
        log.info(
            "session.continued",
            extra={"session_id": row.id, "run_id": run.id, "reason": reason},
        )
        await self.created(run, row)
        return run

    # --- swaps -------------------------------------------------------------------------------

    async def end_and_continue(
        self,
        session: Session,
        calling_run_id: str,
        reason: str,
        *,
        from_run: bool = False,
    ) -> tuple[str, bool]:
        """Swap in a successor for `calling_run_id`, if that is the session's current run.

        A run that swaps itself (`from_run`) goes on to its end, superseded. A swap from outside
        ends the old run: its waits are over and it is fenced (rulings §1.11).

        Returns:
            `(current run id, swapped)`; safe to repeat.

        Raises:
            SessionNotFound: the row is gone.
            RunNotFound: `calling_run_id` is no run of this environment.
        """
        state = self._services.state
        row = await state.session(session.environment_id, session.id)
        if row is None:
            raise SessionNotFound("Session not found")
        old = await state.run(row.environment_id, calling_run_id)
        if old is None:
            raise RunNotFound("callingRunId not found in this environment")
        if row.current_run_id != calling_run_id:
            return row.current_run_id or "", False
        # The old run's presence says nothing about the session from here on.
        self._services.links.not_live(row.id)
        run = await self.continue_session(row, "upgrade" if reason == "upgrade" else "manual")
        if run is None:
            row = await state.session(session.environment_id, session.id) or row
            return row.current_run_id or "", False
        if not from_run:
            await self.retire(row, old)
        return run.id, True

    async def retire(
        self, session: Session, old: Run, *, only_from: frozenset[RunState] | None = None
    ) -> bool:
        """End a run that was superseded from outside. True when this call did."""
        if old.fence > 0:
            await self._services.outbox.fence_off(session, old)
        ended = await self._services.state.finish_run(
            old.id, RunEvent.COMPLETE, now_ms=self._services.clock.now_ms(), only_from=only_from
        )
        if ended is None:
            return False
        self._services.links.lost(old)
        await self._services.finishing.tell_relatives(ended)
        return True

    # --- the rest ----------------------------------------------------------------------------

    def _queue(self, environment_id: str, task_id: str, chosen: Any) -> str:
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        return name if isinstance(name, str) and name else self.queue_of(environment_id, task_id)

    def _remember(self, session: Session) -> None:
        self._rechecks[session.id] = session
        if len(self._rechecks) > _RECHECKS_MAX:
            del self._rechecks[next(iter(self._rechecks))]


def _int(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _tags(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(tag for tag in value if isinstance(tag, str))[: limits.RUN_TAGS_MAX]
