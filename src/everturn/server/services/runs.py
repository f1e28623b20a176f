"""Runs by request: triggered and cancelled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from everturn.errors import InvalidRequest, TaskNotFound, Unprocessable
from everturn.rules.run_states import FINAL, RunEvent
from everturn.server.services import trigger_options as given
from everturn.server.services.results import internal_error
from everturn.storage.ports.state import Environment, NewRun, Run

if TYPE_CHECKING:
    from everturn.server.services import Services

log = logging.getLogger("everturn.runs")

_DEPTH_MAX = 100


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
        parent: Run | None = None,
    ) -> tuple[Run, bool]:
        """Queue a run of a task; `(run, False)` becomes `(earlier run, True)` for a known key.

        Args:
            environment: the environment or its id.
            body: the JSON body of wire-protocol §9.1.
            request_key: of one call over its retries; a repeat answers the first run.
            token_otu: digest of a one-time-use token: it may start one run.
            parent: the run this is a child of; else `options.parentRunId` names one.

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
        if parent is None:
            parent = await self._parent(environment_id, parsed.options.parent_run_id)
        if token_otu is not None:
            request_key = f"otu:{token_otu}"
        new = self._new_run(
            environment_id, task_id, task.queue or None, parsed, parent, request_key
        )
        run, created = await self._services.state.create_run(
            environment_id, new, now_ms=self._services.clock.now_ms()
        )
        if not created and token_otu is not None:
            raise Unprocessable("This one-time use token has already been used")
        if created:
            log.info("run.triggered", extra={"run_id": run.id, "task_id": task_id})
        # Also for a repeat: the wake-up of the first call may have been lost with its server.
        self._services.wakeups.notify(f"queue/{environment_id}")
        self._services.links.timer.moved(run.not_before_ms)
        return run, not created

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
            if run.session_id is not None and run.fence > 0:
                session = await state.session(environment_id, run.session_id)
                if session is not None and session.current_run_id == run.id:
                    await self._services.outbox.fence_off(session, run)
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
        task_id: str,
        declared_queue: str | None,
        body: given.TriggerBody,
        parent: Run | None,
        request_key: str | None,
    ) -> NewRun:
        options, now_ms = body.options, self._services.clock.now_ms()
        payload, payload_type = given.payload_of(body)
        awaited = options.resume_parent_on_completion and parent is not None
        if parent is not None:
            if awaited and parent.state in FINAL:
                raise Unprocessable("the parent run is finished and cannot wait for a child")
            if parent.depth + 1 > _DEPTH_MAX:
                raise Unprocessable(f"runs nest at most {_DEPTH_MAX} deep")
        key = options.concurrency_key
        return NewRun(
            id=self._services.ids.new("run"),
            task_id=task_id,
            payload=payload,
            payload_type=payload_type,
            queue=given.queue_of(options) or declared_queue or f"task/{task_id}",
            concurrency_key=None if key is None else str(key),
            priority_ms=round((options.priority or 0) * 1000),
            not_before_ms=given.start_of(options, now_ms),
            # A family finishes before newer families start (tasks-and-runs §8.3).
            queued_at_ms=parent.queued_at_ms if parent is not None and awaited else None,
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
            parent_run_id=parent.id if parent is not None else None,
            root_run_id=(parent.root_run_id or parent.id) if parent is not None else None,
            depth=parent.depth + 1 if parent is not None else 0,
            trigger_function="triggerAndWait" if awaited else "trigger",
            is_test=options.test or (parent is not None and parent.is_test),
        )
