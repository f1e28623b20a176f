"""Sessions: opened, found, listed, changed, closed, given another run.

The row of a session is looked up on every append, so rows are cached. What a cached row may be
trusted for: who the session is (id, external id, environment, task) and whether it is closed or
expired. Everything a run changes (current run, fence, cursor) may be stale in it. The cache is
exact while one server owns the state, because every change of what it is trusted for goes through
this service; with several servers it is switched off.

A read that was begun before a change must not be cached after it, so every change raises a
generation, and a row is kept only if the generation is still the one its read began with. A change
that was cut short may be made at any time after, or not at all: that row is cached no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from everturn.errors import (
    InvalidRequest,
    NotFound,
    SessionClosedError,
    SessionNotFound,
    Unprocessable,
)
from everturn.protocol.sessions import CreateSession, UpdateSession
from everturn.storage.ports.rows import NewSession, OpenedSession, Page, Session, SessionFilter

if TYPE_CHECKING:
    from everturn.server.services import Services

CACHE_ROWS_MAX: Final = 50_000

ContinueReason = Literal["upgrade", "manual"]


class Sessions:
    """What can be done with session rows."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rows: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._generation = 0
        #: Rows by id that may change without our hearing of it.
        self._uncertain: set[str] = set()
        self._cached = services.settings.servers == 1

    # --- finding ---------------------------------------------------------------------------------

    def peek(self, environment_id: str, key: str) -> Session | None:
        """The cached row, without waiting; None when it is not cached. See the module's text."""
        return self._rows.get((environment_id, key))

    async def find(self, environment_id: str, key: str) -> Session | None:
        """The row by either form of its id, perhaps cached. See the module's text."""
        row = self._rows.get((environment_id, key))
        if row is not None:
            return row
        generation = self._generation
        row = await self._services.state.session(environment_id, key)
        cached = self._cached and generation == self._generation
        if row is not None and cached and row.id not in self._uncertain:
            self._rows[environment_id, key] = row
            while len(self._rows) > CACHE_ROWS_MAX:
                self._rows.popitem(last=False)
        return row

    async def fresh(self, environment_id: str, key: str) -> Session | None:
        """The row as it is stored now."""
        return await self._services.state.session(environment_id, key)

    def forget(self, session: Session) -> None:
        """Drop a row from the cache: something it is trusted for has changed."""
        self._generation += 1
        self._rows.pop((session.environment_id, session.id), None)
        if session.external_id is not None:
            self._rows.pop((session.environment_id, session.external_id), None)

    # --- changing --------------------------------------------------------------------------------

    async def create(self, environment_id: str, body: CreateSession) -> OpenedSession:
        """Open a session with a run, or find it by its external id (wire-protocol §4.2).

        Raises InvalidRequest for an id or date that may not be; Unprocessable for a task that was
        never registered here; SessionClosedError when the session is closed or expired.
        """
        services = self._services
        new = NewSession(
            id=services.ids.new("session"),
            external_id=body.external_id,
            type=body.type,
            task_id=body.taskIdentifier,
            trigger_config=body.triggerConfig.wire(),
            tags=tuple(dict.fromkeys(body.tags)),
            metadata=body.metadata,
            expires_at_ms=body.expires_at_ms,
        )
        task = await services.state.task(environment_id, new.task_id)
        if task is None:
            raise Unprocessable(
                f"Task {new.task_id!r} is not registered in this environment", should_retry=False
            )
        # A server that has not seen the task's worker itself learns here which queue it named.
        services.dispatch.knows_queue(environment_id, task.task_id, task.queue)
        if body.external_id is not None:
            await self._let_settle(environment_id, body.external_id)
        try:
            opened = await services.state.open_session(
                environment_id, new, services.dispatch.session_run, now_ms=services.clock.now_ms()
            )
        except SessionClosedError as error:
            raise SessionClosedError(
                f"Session is {await self._why_refused(environment_id, new)}; "
                "use a different externalId to create a new session",
                **error.details,
            ) from error
        self.forget(opened.session)
        if opened.run_created:
            await services.dispatch.created(opened.run, opened.session)
        return opened

    async def _let_settle(self, environment_id: str, external_id: str) -> None:
        row = await self.fresh(environment_id, external_id)
        if row is not None and row.current_run_id is not None:
            run = await self._services.state.run(environment_id, row.current_run_id)
            await self._services.dispatch.let_settle(row, run)

    async def _why_refused(self, environment_id: str, new: NewSession) -> str:
        row = await self.fresh(environment_id, new.external_id or new.id)
        return "expired" if row is not None and row.closed_at_ms is None else "closed"

    async def update(self, environment_id: str, key: str, body: UpdateSession) -> Session:
        """Replace tags or metadata (§4.5). Raises SessionNotFound; Unprocessable for a new id."""
        row = await self.fresh(environment_id, key)
        if row is None:
            raise SessionNotFound("Session not found")
        if isinstance(body.externalId, str | None) and body.externalId != row.external_id:
            raise Unprocessable(
                "externalId cannot be changed after creation; close this session and create a "
                "new one with the desired externalId"
            )
        with self._changes(row):
            changed = await self._services.state.update_session(
                environment_id,
                key,
                now_ms=self._services.clock.now_ms(),
                tags=tuple(dict.fromkeys(body.tags)) if isinstance(body.tags, list) else None,
                metadata=body.metadata if isinstance(body.metadata, dict) else None,
                clear_metadata=body.metadata is None,
            )
        if changed is None:
            raise SessionNotFound("Session not found")
        return changed

    async def close(self, environment_id: str, key: str, reason: str | None) -> Session:
        """Close; the first call wins (§4.6). Raises SessionNotFound."""
        row = await self.fresh(environment_id, key)
        if row is None:
            raise SessionNotFound("Session not found")
        with self._changes(row):
            closed = await self._services.state.close_session(
                environment_id, key, reason=reason, now_ms=self._services.clock.now_ms()
            )
        if closed is None:
            raise SessionNotFound("Session not found")
        return closed

    @contextmanager
    def _changes(self, row: Session) -> Iterator[None]:
        """Around a change of what a cached row is trusted for."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done and len(self._uncertain) < CACHE_ROWS_MAX:
                self._uncertain.add(row.id)
            elif not done:
                # A store that fails that often is no cheaper to keep a cache for.
                self._cached = False
                self._rows.clear()
            self.forget(row)

    async def end_and_continue(
        self, environment_id: str, key: str, calling_run_id: str, reason: str
    ) -> tuple[str, bool]:
        """Swap the session's run, if it is still the caller's (§4.7): `(run id, swapped)`."""
        row = await self.fresh(environment_id, key)
        if row is None:
            raise SessionNotFound("Session not found")
        status = row.status(self._services.clock.now_ms())
        if status == "CLOSED":
            raise InvalidRequest("Cannot end-and-continue a closed session")
        if status == "EXPIRED":
            raise InvalidRequest("Cannot end-and-continue an expired session")
        if await self._services.state.run(environment_id, calling_run_id) is None:
            raise NotFound("callingRunId not found in this environment")
        kind: ContinueReason = "upgrade" if reason == "upgrade" else "manual"
        swapped: tuple[str, bool] = await self._services.dispatch.end_and_continue(
            row, calling_run_id, kind
        )
        self.forget(row)
        return swapped

    async def page(
        self,
        environment_id: str,
        where: SessionFilter,
        *,
        limit: int,
        after: str | None,
        before: str | None,
    ) -> Page[Session]:
        """One page, newest first (§4.3). Raises InvalidRequest for a cursor of another list."""
        return await self._services.state.sessions(
            environment_id,
            where,
            limit=limit,
            after=after,
            before=before,
            now_ms=self._services.clock.now_ms(),
        )
