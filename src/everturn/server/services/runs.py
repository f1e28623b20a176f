"""Runs by request: triggered and cancelled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from everturn.errors import InvalidRequest, TaskNotFound, Unprocessable
from everturn.rules.run_states import FINAL, RunEvent, RunState
from everturn.server.services import trigger_options as given
from everturn.server.services.results import internal_error
from everturn.storage.ports.rows import Environment, NewRun, Run, TaskVersion

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.batches import Batch

log = logging.getLogger("everturn.runs")

_DEPTH_MAX = 100
#: `(is of a batch, is awaited)` -> what a run says it was triggered by (wire-protocol §9.5).
_FUNCTIONS: Final = {
    (False, False): "trigger",
    (False, True): "triggerAndWait",
    (True, False): "batchTrigger",
    (True, True): "batchTriggerAndWait",
}


class Runs:
    """Starts runs of tasks, and ends them early."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def trigger(
        self,
        environment: Environment | str,
        task_id: str,
        body: Mapping[str, Any],
        *,
        request_key: str | None = None,
        token_otu: str | None = None,
        token_expires_ms: int | None = None,
        parent: Run | None = None,
        batch: tuple[Batch, int] | None = None,
    ) -> tuple[Run, bool]:
        """Queue a run of a task; `(run, False)` becomes `(earlier run, True)` for a known key.

        Args:
            environment: the environment or its id.
            body: the JSON body of wire-protocol §9.1.
            request_key: of one call over its retries; a repeat answers the first run.
            token_otu: digest of a one-time-use token: it may start one run.
            token_expires_ms: when that token ends; until then its run is remembered.
            parent: the run this is a child of; else `options.parentRunId` names one.
            batch: the batch this is an item of, and its index there. The batch says who the
                parent is and whether it waits.

        Raises:
            TaskNotFound: no worker ever registered the task here.
            InvalidRequest, TooLarge: the body is malformed, or something is over its limit.
            Unprocessable: a rule forbids it; the parent of an awaited child is final, or the
                token was used.
        """
        environment_id = environment if isinstance(environment, str) else environment.id
        parsed = given.parse_body(body)
        task = await self._services.state.task(environment_id, task_id)
        if task is None:
            raise TaskNotFound("Task not found", task_id=task_id)
        if batch is not None:
            parent = await self._parent(environment_id, batch[0].parent_run_id)
        elif parent is None:
            parent = await self._parent(environment_id, parsed.options.parent_run_id)
        if token_otu is not None:
            request_key = f"otu:{token_otu}"
            await self._check_unused(environment_id, task_id, request_key)
        new = self._new_run(environment_id, task, parsed, parent, request_key, batch)
        if token_otu is not None:
            new = msgspec.structs.replace(new, request_expires_ms=token_expires_ms)
        run, created = await self._services.state.create_run(
            environment_id, new, now_ms=self._services.clock.now_ms()
        )
        if created:
            log.info("run.triggered", extra={"run_id": run.id, "task_id": task_id})
        # Also for a repeat: the wake-up of the first call may have been lost with its server.
        self._services.wakeups.notify(f"queue/{environment_id}")
        self._services.links.timer.moved(run.not_before_ms)
        return await self._with_its_parent(run), not created

    async def replay(self, run: Run) -> Run:
        """Run a finished or unfinished run's payload again, as a new run on the current code.

        Copied are payload, metadata, tags, queue, concurrency key, machine and whether it is a
        test (tasks-and-runs §22.2); not its key, delay, priority, limits or parent.

        Raises Unprocessable for a run of a session: what it answered is in the session's log, and
        a second run beside the current one would be fenced at once.
        """
        if run.session_id is not None:
            raise Unprocessable("a run of a session cannot be replayed: send the message again")
        new = NewRun(
            id=self._services.ids.new("run"),
            task_id=run.task_id,
            payload=run.payload,
            payload_type=run.payload_type,
            queue=run.queue,
            concurrency_key=run.concurrency_key,
            machine=run.machine,
            tags=run.tags,
            metadata=run.metadata,
            is_test=run.is_test,
        )
        made, _ = await self._services.state.create_run(
            run.environment_id, new, now_ms=self._services.clock.now_ms()
        )
        log.info("run.replayed", extra={"run_id": made.id, "task_id": run.task_id})
        self._services.wakeups.notify(f"queue/{run.environment_id}")
        return made

    async def reschedule(self, run: Run, delay: str | int | float) -> Run:
        """Move a delayed run to another time.

        Raises Unprocessable when it is not delayed any more, or the time is in the past.
        """
        now_ms = self._services.clock.now_ms()
        at_ms = given.moment_of(delay, now_ms, "delay")
        if at_ms is None:
            raise Unprocessable("delay is a duration, or a date that is still to come")
        moved = await self._services.state.reschedule_run(
            run.environment_id, run.id, not_before_ms=at_ms, now_ms=now_ms
        )
        if moved is None:
            raise Unprocessable("Cannot reschedule a run that is not delayed")
        self._services.links.timer.moved(at_ms)
        return moved

    async def cancel(self, environment_id: str, run_id: str, reason: str) -> Run | None:
        """Cancel a run, and the runs it started. Idempotent: a final run is answered as it is.

        The run is CANCELED at once; its worker is told and stops it. On a session nothing more
        of it reaches `out`, and a turn it had begun is failed visibly (rulings §1.9).

        Returns:
            The row after the call; None when there is no such run.
        """
        state = self._services.state
        run = await state.run(environment_id, run_id)
        while run is not None and run.state not in FINAL:
            ended = await self._services.finishing.end(
                run,
                RunEvent.CANCEL,
                error=internal_error("TASK_RUN_CANCELLED", reason),
                stop=reason,
            )
            if ended is not None:
                self._services.wakeups.notify(f"queue/{environment_id}")
                return ended
            # It was claimed meanwhile, under another fence: look again.
            run = await state.run(environment_id, run_id)
        return run

    # --- parts -------------------------------------------------------------------------------

    async def _with_its_parent(self, run: Run) -> Run:
        """The run; cancelled when its parent was, before it could see this child.

        The child is made first and the parent looked at afterwards, and cancelling does it the
        other way round, so one of the two always sees the other.
        """
        if run.parent_run_id is None or run.state in FINAL:
            return run
        parent = await self._services.state.run(run.environment_id, run.parent_run_id)
        if parent is None or parent.state is not RunState.CANCELED:
            return run
        ended = await self.cancel(run.environment_id, run.id, "Parent run was cancelled")
        return ended or run

    async def _check_unused(self, environment_id: str, task_id: str, request_key: str) -> None:
        """Raise Unprocessable when a one-time token was used.

        Looked at before the run is made, because a first use may well be answered with a run that
        is there: by an idempotency key, or debounced. Two uses at once get the same run.
        """
        now_ms = self._services.clock.now_ms()
        state = self._services.state
        if await state.run_by_request(environment_id, request_key, now_ms=now_ms) is not None:
            raise Unprocessable(
                f"Cannot trigger {task_id} with a one-time use token as it has already been used."
            )

    async def _parent(self, environment_id: str, run_id: str | None) -> Run | None:
        if run_id is None:
            return None
        parent = await self._services.state.run(environment_id, run_id)
        if parent is None:
            raise InvalidRequest(f"parentRunId {run_id} names no run")
        return parent

    def _new_run(
        self,
        environment_id: str,
        task: TaskVersion,
        body: given.TriggerBody,
        parent: Run | None,
        request_key: str | None,
        batch: tuple[Batch, int] | None = None,
    ) -> NewRun:
        options, now_ms = body.options, self._services.clock.now_ms()
        payload, payload_type = given.payload_of(body)
        asked = options.resume_parent_on_completion if batch is None else batch[0].awaited
        awaited = asked and parent is not None
        if parent is not None:
            if awaited and parent.state in FINAL:
                raise Unprocessable("the parent run is finished and cannot wait for a child")
            if parent.depth + 1 > _DEPTH_MAX:
                raise Unprocessable(f"runs nest at most {_DEPTH_MAX} deep")
        key = options.concurrency_key
        # Items run in their order, whatever the order they came in (tasks-and-runs §10).
        place_ms = None if batch is None else batch[0].created_at_ms + batch[1]
        return NewRun(
            id=self._services.ids.new("run"),
            task_id=task.task_id,
            payload=payload,
            payload_type=payload_type,
            queue=given.queue_of(options) or task.queue or f"task/{task.task_id}",
            concurrency_key=None if key is None else str(key),
            priority_ms=round((options.priority or 0) * 1000),
            not_before_ms=given.start_of(options, now_ms),
            # A family finishes before newer families start (tasks-and-runs §8.3).
            queued_at_ms=parent.queued_at_ms if parent is not None and awaited else place_ms,
            lock_version=parent.version
            if parent is not None and awaited
            else options.lock_to_version,
            max_attempts=options.max_attempts,
            max_duration_s=options.max_duration,
            machine=options.machine,
            tags=given.tags_of(options),
            metadata=given.metadata_of(options),
            idempotency_key=options.idempotency_key,
            idempotency_expires_ms=given.key_expiry(options, now_ms),
            idempotency_options=options.idempotency_key_options,
            request_key=request_key,
            ttl_ms=given.ttl_of(options, task.config.get("ttl")),
            debounce=given.debounce_of(options),
            parent_run_id=parent.id if parent is not None else None,
            root_run_id=(parent.root_run_id or parent.id) if parent is not None else None,
            depth=parent.depth + 1 if parent is not None else 0,
            trigger_function=_FUNCTIONS[batch is not None, awaited],
            batch_id=None if batch is None else batch[0].id,
            is_test=options.test or (parent is not None and parent.is_test),
        )
