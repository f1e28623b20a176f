"""Handing runs to one worker.

A loop waits for hints (a run was queued, a wait is over, the worker has credit) and looks as well
each sweep interval, since hints may be lost. What a claim needs is done in this order:

1. The claim itself: one transaction gives the run to the worker, with the session's next fence.
2. The fence is raised on the session's `out`, durably: the previous holder can write no more.
3. The first message, if the run still carries one, goes into the log.
4. Only now the Claim frame is sent.

If 2 or 3 cannot be done, the run goes back to its queue; if that fails as well, the sweep for
claims that nobody confirmed does it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from everturn.errors import EverturnError
from everturn.protocol.link import Claim
from everturn.protocol.runs import RunInfo
from everturn.rules import limits
from everturn.rules.retries import RetryPolicy
from everturn.rules.run_states import RunEvent, RunState
from everturn.server.services.finishing import is_agent
from everturn.server.services.readback import out_channel
from everturn.storage.ports.rows import Environment, Run, Session

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.server.services.link import Link

log = logging.getLogger("everturn.claims")

#: Runs claimed in one transaction.
_CLAIMS_MAX: Final = 32


class Claimer:
    """Claims runs for the worker of one link, within its credit."""

    def __init__(self, services: Services, link: Link) -> None:
        self._services = services
        self._link = link
        self._credit = 0
        self._hint = anyio.Event()

    def grant(self, runs: int) -> None:
        """The worker takes this many more runs; replaces what was granted before."""
        self._credit = max(0, runs)
        self.kick()

    def kick(self) -> None:
        """Something may have become claimable."""
        self._hint.set()

    async def run(self) -> None:
        """Claim until cancelled."""
        uncertain = False
        async with anyio.create_task_group() as tasks:
            for topic in (
                f"queue/{self._link.environment.id}",
                f"worker/{self._link.worker_id}",
            ):
                tasks.start_soon(self._listen, topic)
            while True:
                await self._hint.wait()
                self._hint = anyio.Event()
                try:
                    await self._claim_all()
                except EverturnError as error:
                    log.warning("claim.failed", extra={"error": error.code})
                    uncertain = True
                    await self._services.clock.sleep(limits.SWEEP_MS / 1000)
                    self.kick()
                else:
                    if uncertain:
                        # A claim whose answer was lost may have woken runs that are parked here.
                        uncertain = False
                        self._link.doubt()

    async def _listen(self, topic: str) -> None:
        waiter = self._services.wakeups.waiter(topic)
        try:
            while True:
                await waiter.wait(limits.SWEEP_MS / 1000)
                self.kick()
        finally:
            waiter.close()

    async def _claim_all(self) -> None:
        while self._credit > 0:
            wanted = min(self._credit, _CLAIMS_MAX)
            runs = await self._services.state.claim_runs(
                self._link.worker_id, limit=wanted, now_ms=self._services.clock.now_ms()
            )
            self._credit = max(0, self._credit - len(runs))
            async with anyio.create_task_group() as tasks:
                for run in runs:
                    tasks.start_soon(self._hand_over, run)
            if len(runs) < wanted:
                return

    async def _hand_over(self, run: Run) -> None:
        if run.state is RunState.RUNNING:  # it was RESUMING, parked in this very worker
            await self._send_wake(run)
            return
        try:
            await self._send_claim(run)
        except EverturnError as error:
            log.warning("claim.not_sent", extra={"run_id": run.id, "error": error.code})
            await self._give_back(run)

    async def _send_wake(self, run: Run) -> None:
        """Tell a parked run to go on. By the state it does so already: nobody else will."""
        while True:
            try:
                frame = await self._services.waits.wake_frame(run)
            except EverturnError as error:
                log.warning("wake.not_sent", extra={"run_id": run.id, "error": error.code})
                await self._services.clock.sleep(limits.SWEEP_MS / 1000)
            else:
                self._link.woken(run, frame)
                return

    async def _send_claim(self, run: Run) -> None:
        session = None
        if run.session_id is not None:
            session = await self._services.state.session(run.environment_id, run.session_id)
        if session is not None:
            await self._services.streams.raise_fence(out_channel(session), run.fence)
            await self._services.dispatch.store_boot_input(run, session)
        info = await run_info(self._services, self._link.environment, run, session)
        self._link.hold(run, session)
        self._link.send(Claim(info))
        log.info(
            "run.claimed",
            extra={
                "run_id": run.id,
                "task_id": run.task_id,
                "session_id": run.session_id,
                "attempt": run.attempt,
                "worker_id": self._link.worker_id,
            },
        )

    async def _give_back(self, run: Run) -> None:
        try:
            await self._services.state.requeue_run(
                run.id,
                RunEvent.INTERRUPT,
                now_ms=self._services.clock.now_ms(),
                fence=run.fence,
                interruptions=run.interruptions,
            )
        except EverturnError:
            log.warning("claim.not_returned", extra={"run_id": run.id})


async def run_info(
    services: Services, environment: Environment, run: Run, session: Session | None
) -> RunInfo:
    """Everything an attempt needs to start."""
    task = await services.state.task(run.environment_id, run.task_id)
    journal = await services.state.journal(run.id) if run.attempt > 1 else ()
    payload, payload_type = await services.packets.resolved(
        run.environment_id, run.payload, run.payload_type
    )
    consumed = None
    if session is not None:
        consumed = await services.state.consumed(session.id, run.task_id)
    policy = RetryPolicy.of(
        task.config if task is not None else {}, default_attempts=1 if is_agent(task) else 3
    )
    return RunInfo(
        run_id=run.id,
        task_id=run.task_id,
        environment_id=environment.id,
        environment_slug=environment.slug,
        fence=run.fence,
        attempt=run.attempt,
        failures=run.failures,
        # Every earlier attempt that did not fail was interrupted. After a failure the journal
        # is empty, and there is nothing to recover.
        recovered=bool(journal) or run.attempt - 1 > run.failures,
        payload=payload,
        payload_type=payload_type,
        session_id=session.id if session is not None else None,
        session_key=session.key if session is not None else None,
        cursor=session.cursor.seq_num if session is not None else None,
        decided=tuple(sorted(session.cursor.decided)) if session is not None else (),
        consumed=consumed,
        version=run.version or "",
        queue=run.queue,
        max_attempts=run.max_attempts if run.max_attempts is not None else policy.max_attempts,
        max_duration_s=run.max_duration_s or _declared_duration(task.config if task else {}),
        machine=run.machine,
        tags=run.tags,
        metadata=run.metadata,
        created_at_ms=run.created_at_ms,
        started_at_ms=run.started_at_ms or services.clock.now_ms(),
        priority_ms=run.priority_ms,
        concurrency_key=run.concurrency_key,
        idempotency_key=run.idempotency_key,
        parent_run_id=run.parent_run_id,
        root_run_id=run.root_run_id,
        depth=run.depth,
        is_test=run.is_test,
        journal=tuple(journal),
    )


def _declared_duration(config: object) -> int | None:
    value = config.get("maxDuration") if isinstance(config, dict) else None
    return int(value) if isinstance(value, (int, float)) and value > 0 else None
