"""Claims and sweeps in memory: who gets which run, and what a crash left behind."""

from __future__ import annotations

from collections.abc import Sequence

from everturn.rules import limits
from everturn.rules.run_states import RESIDENT, RunEvent, RunState, next_state
from everturn.storage.memory.state_tables import changed
from everturn.storage.memory.state_workers import Workers
from everturn.storage.ports.rows import Run, Worker

#: A worker stops a run at its `max_duration_s` by itself; past this much more it did not.
OVERDUE_GRACE_MS = 60_000


class Claims(Workers):
    """Handing out runs."""

    async def claim_runs(self, worker_id: str, *, limit: int, now_ms: int) -> Sequence[Run]:
        self._check_open()
        worker = self._workers.get(worker_id)
        if worker is None:
            return ()
        claimed: list[Run] = []
        for run in self._resumable(worker):
            if len(claimed) < limit and self._slot_free(run):
                claimed.append(self._resume(run, now_ms=now_ms))
        if worker.draining or worker.lease_until_ms <= now_ms:
            return tuple(claimed)
        for run in self._claimable(worker, now_ms=now_ms):
            if len(claimed) >= limit:
                break
            if self._slot_free(run):
                claimed.append(self._claim(run, worker, now_ms=now_ms))
        return tuple(claimed)

    def _resumable(self, worker: Worker) -> list[Run]:
        mine = [r for r in self._in_states(RunState.RESUMING) if r.worker_id == worker.id]
        return sorted(mine, key=_place)

    def _resume(self, run: Run, *, now_ms: int) -> Run:
        run = changed(run, state=next_state(run.state, RunEvent.RESUME), updated_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        return run

    def _claimable(self, worker: Worker, *, now_ms: int) -> list[Run]:
        eligible = [
            run
            for run in self._in_states(RunState.QUEUED)
            if run.environment_id == worker.environment_id
            and (run.not_before_ms is None or run.not_before_ms <= now_ms)
            and not self._superseded(run)
            and self._may_claim(worker, run, now_ms=now_ms)
        ]
        return sorted(eligible, key=_place)

    def _claim(self, run: Run, worker: Worker, *, now_ms: int) -> Run:
        fence = run.fence + 1
        if run.session_id is not None:
            session = self._sessions[run.session_id]
            fence = session.fence + 1
            self._sessions[session.id] = changed(session, fence=fence)
        run = changed(
            run,
            state=next_state(run.state, RunEvent.CLAIM),
            fence=fence,
            attempt=run.attempt + 1,
            version=worker.version,
            worker_id=worker.id,
            started_at_ms=now_ms if run.started_at_ms is None else run.started_at_ms,
            updated_at_ms=now_ms,
        )
        self._put_run(run, now_ms=now_ms)
        return run

    # --- sweeps ------------------------------------------------------------------------------

    async def waiting_on_run(self, run_id: str) -> Sequence[Run]:
        self._check_open()
        return tuple(
            run
            for run in self._in_states(RunState.SUSPENDED)
            if run.wait is not None and run.wait.kind == "run" and run.wait.ref == run_id
        )

    async def due_runs(self, *, now_ms: int, limit: int) -> Sequence[Run]:
        self._check_open()
        due = [
            (run.wait.until_ms, run.id, run)
            for run in self._in_states(RunState.SUSPENDED)
            if run.wait is not None
            and run.wait.until_ms is not None
            and run.wait.until_ms <= now_ms
        ]
        return tuple(run for _, _, run in sorted(due, key=lambda entry: entry[:2])[:limit])

    async def next_due_ms(self, *, now_ms: int) -> int | None:
        self._check_open()
        waits = [run.wait for run in self._in_states(RunState.SUSPENDED) if run.wait is not None]
        times = [wait.until_ms for wait in waits]
        delayed = [run.not_before_ms or 0 for run in self._in_states(RunState.QUEUED)]
        times += [at_ms for at_ms in delayed if at_ms > now_ms]
        tokens = self._waitpoints.values()
        times += [token.timeout_at_ms for token in tokens if token.completed_at_ms is None]
        return min((time for time in times if time is not None), default=None)

    async def expired_runs(self, *, now_ms: int, limit: int) -> Sequence[Run]:
        self._check_open()
        expired = [
            (run.expire_at_ms, run.id, run)
            for run in self._in_states(RunState.QUEUED)
            if run.attempt == 0 and run.expire_at_ms is not None and run.expire_at_ms <= now_ms
        ]
        return tuple(run for _, _, run in sorted(expired, key=lambda entry: entry[:2])[:limit])

    async def unstarted_runs(self, *, claimed_before_ms: int, now_ms: int) -> Sequence[Run]:
        self._check_open()
        return tuple(
            run
            for run in self._in_states(RunState.CLAIMED)
            if self._is_old(run, claimed_before_ms, now_ms)
        )

    async def orphaned_runs(self) -> Sequence[Run]:
        self._check_open()
        return tuple(
            run
            for run in self._in_states(*RESIDENT)
            if run.worker_id is not None and run.worker_id not in self._workers
        )

    async def stranded_runs(self, *, queued_before_ms: int, now_ms: int) -> Sequence[Run]:
        self._check_open()
        found = []
        for run in self._in_states(RunState.QUEUED):
            if run.session_id is None or run.version is None:
                continue
            if self._is_old(run, queued_before_ms, now_ms):
                serving = self._serving(run.environment_id, run.task_id, now_ms=now_ms)
                if serving and run.version not in serving:
                    found.append(run)
        return tuple(found)

    def _is_old(self, run: Run, before_ms: int, now_ms: int) -> bool:
        """Whether its state began by `before_ms`, or before the clock was set back."""
        since_ms = self._since[run.id]
        return since_ms <= before_ms or since_ms > now_ms + limits.CLOCK_AHEAD_MS

    async def overdue_runs(self, *, now_ms: int) -> Sequence[Run]:
        self._check_open()
        return tuple(
            run
            for run in self._in_states(RunState.RUNNING)
            if run.max_duration_s is not None
            and self._since[run.id] + run.max_duration_s * 1000 + OVERDUE_GRACE_MS < now_ms
        )

    async def superseded_runs(self, *, limit: int) -> Sequence[Run]:
        self._check_open()
        on_input = [
            run
            for run in self._in_states(RunState.SUSPENDED)
            if run.wait is not None and run.wait.kind == "channel"
        ]
        stuck = {
            run.id
            for run in (*self._in_states(RunState.QUEUED), *on_input)
            if self._superseded(run)
        }
        return tuple(run for run in self._runs.values() if run.id in stuck)[:limit]


def _place(run: Run) -> tuple[int, int]:
    """Where a run stands in its queue; runs of one place keep the order they were made in."""
    return run.queued_at_ms - run.priority_ms, run.created_at_ms
