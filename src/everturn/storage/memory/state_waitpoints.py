"""Wait tokens in memory."""

from __future__ import annotations

from collections.abc import Sequence

from everturn.rules.run_states import RunState
from everturn.storage.memory.state_tables import Tables, changed, page_of
from everturn.storage.ports.rows import Page, Run
from everturn.storage.ports.waitpoints import (
    NewWaitpoint,
    Waitpoint,
    WaitpointFilter,
    pending_waitpoint,
)


class Waitpoints(Tables):
    """Making, completing and finding wait tokens."""

    async def create_waitpoint(
        self, environment_id: str, new: NewWaitpoint, *, now_ms: int
    ) -> tuple[Waitpoint, bool]:
        self._check_open()
        key = new.active_key
        if key is not None:
            found = self._waitpoints.get(self._waitpoint_keys.get((environment_id, key), ""))
            if found is not None:
                expires_ms = found.idempotency_expires_ms
                if expires_ms is None or expires_ms > now_ms:
                    return found, False
        waitpoint = pending_waitpoint(environment_id, new, now_ms=now_ms)
        self._waitpoints[waitpoint.id] = waitpoint
        if key is not None:
            self._waitpoint_keys[environment_id, key] = waitpoint.id
        return waitpoint, True

    async def waitpoint(self, environment_id: str | None, waitpoint_id: str) -> Waitpoint | None:
        self._check_open()
        found = self._waitpoints.get(waitpoint_id)
        if found is not None and environment_id not in (None, found.environment_id):
            return None
        return found

    async def waitpoints(
        self,
        environment_id: str,
        where: WaitpointFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Waitpoint]:
        self._check_open()

        def matches(row: Waitpoint) -> bool:
            return (
                (not where.statuses or row.status in where.statuses)
                and (not where.tags or bool(set(where.tags) & set(row.tags)))
                and where.idempotency_key in (None, row.idempotency_key)
                and (where.created_from_ms is None or row.created_at_ms >= where.created_from_ms)
                and (where.created_to_ms is None or row.created_at_ms <= where.created_to_ms)
            )

        mine = [row for row in self._waitpoints.values() if row.environment_id == environment_id]
        return page_of(mine, matches, limit=limit, after=after, before=before)

    async def complete_waitpoint(
        self,
        environment_id: str,
        waitpoint_id: str,
        *,
        now_ms: int,
        output: bytes | None = None,
        output_type: str | None = None,
        timed_out: bool = False,
    ) -> tuple[Waitpoint, bool] | None:
        found = await self.waitpoint(environment_id, waitpoint_id)
        if found is None:
            return None
        if found.completed_at_ms is not None:
            return found, False
        found = changed(
            found,
            completed_at_ms=now_ms,
            output=output,
            output_type=output_type,
            timed_out=timed_out,
        )
        self._waitpoints[waitpoint_id] = found
        return found, True

    async def due_waitpoints(self, *, now_ms: int, limit: int) -> Sequence[Waitpoint]:
        self._check_open()
        due = [
            (row.timeout_at_ms, row.id, row)
            for row in self._waitpoints.values()
            if row.completed_at_ms is None
            and row.timeout_at_ms is not None
            and row.timeout_at_ms <= now_ms
        ]
        return tuple(row for _, _, row in sorted(due, key=lambda entry: entry[:2])[:limit])

    async def waiting_on_token(self, waitpoint_id: str) -> Sequence[Run]:
        self._check_open()
        return tuple(
            run
            for run in self._in_states(RunState.SUSPENDED)
            if run.wait is not None and run.wait.kind == "token" and run.wait.ref == waitpoint_id
        )
