"""Sessions in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from everturn.errors import SessionClosedError
from everturn.protocol.records import InputCursor
from everturn.storage.memory.state_tables import Tables, changed, page_of
from everturn.storage.ports.rows import (
    MakeRun,
    NewSession,
    OpenedSession,
    Page,
    Run,
    Session,
    SessionFilter,
)
from everturn.storage.ports.texts import check_texts


class Sessions(Tables):
    """Opening, continuing, closing and listing sessions."""

    async def open_session(
        self, environment_id: str, new: NewSession, make_run: MakeRun, *, now_ms: int
    ) -> OpenedSession:
        self._check_open()
        found = None
        if new.external_id is not None:
            found = self._find_session(environment_id, new.external_id)
        if found is None:
            return self._create(environment_id, new, make_run, now_ms=now_ms)
        status = found.status(now_ms)
        if status != "ACTIVE":
            raise SessionClosedError(
                f"Session is {status.lower()}; use a different externalId to create a new session",
                reason=found.closed_reason,
            )
        session = changed(found, trigger_config=new.trigger_config, updated_at_ms=now_ms)
        if self._current_is_live(session):
            self._sessions[session.id] = session
            run = self._runs[session.current_run_id or ""]
            return OpenedSession(session=session, run=run, created=False, run_created=False)
        run_wanted = make_run(session, session.current_run_id)
        session, run = self._set_current(session, run_wanted, now_ms=now_ms)
        return OpenedSession(session=session, run=run, created=False, run_created=True)

    def _create(
        self, environment_id: str, new: NewSession, make_run: MakeRun, *, now_ms: int
    ) -> OpenedSession:
        session = Session(
            id=new.id,
            environment_id=environment_id,
            external_id=new.external_id,
            type=new.type,
            task_id=new.task_id,
            trigger_config=new.trigger_config,
            tags=new.tags,
            metadata=new.metadata,
            created_at_ms=now_ms,
            updated_at_ms=now_ms,
            expires_at_ms=new.expires_at_ms,
        )
        session, run = self._set_current(session, make_run(session, None), now_ms=now_ms)
        if new.external_id is not None:
            self._external[environment_id, new.external_id] = session.id
        return OpenedSession(session=session, run=run, created=True, run_created=True)

    async def session(self, environment_id: str, key: str) -> Session | None:
        self._check_open()
        return self._find_session(environment_id, key)

    async def sessions(
        self,
        environment_id: str,
        where: SessionFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
        now_ms: int,
    ) -> Page[Session]:
        self._check_open()

        def matches(session: Session) -> bool:
            return (
                (not where.types or session.type in where.types)
                and (not where.tags or bool(set(where.tags) & set(session.tags)))
                and (not where.task_ids or session.task_id in where.task_ids)
                and (where.external_id is None or session.external_id == where.external_id)
                and (not where.statuses or session.status(now_ms) in where.statuses)
                and (
                    where.created_from_ms is None or session.created_at_ms >= where.created_from_ms
                )
                and (where.created_to_ms is None or session.created_at_ms <= where.created_to_ms)
            )

        mine = [s for s in self._sessions.values() if s.environment_id == environment_id]
        return page_of(mine, matches, limit=limit, after=after, before=before)

    async def update_session(
        self,
        environment_id: str,
        key: str,
        *,
        now_ms: int,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        clear_metadata: bool = False,
    ) -> Session | None:
        self._check_open()
        check_texts(tags=tags)
        session = self._find_session(environment_id, key)
        if session is None:
            return None
        session = changed(session, updated_at_ms=now_ms)
        if tags is not None:
            session = changed(session, tags=tuple(tags))
        if metadata is not None or clear_metadata:
            session = changed(session, metadata=None if clear_metadata else metadata)
        self._sessions[session.id] = session
        return session

    async def close_session(
        self, environment_id: str, key: str, *, reason: str | None, now_ms: int
    ) -> Session | None:
        self._check_open()
        check_texts(reason=reason)
        session = self._find_session(environment_id, key)
        if session is None or session.closed_at_ms is not None:
            return session
        session = changed(session, closed_at_ms=now_ms, closed_reason=reason, updated_at_ms=now_ms)
        self._sessions[session.id] = session
        return session

    async def continue_session(
        self,
        session_id: str,
        *,
        replacing: str | None,
        make_run: MakeRun,
        reason: Literal["continuation", "upgrade", "manual"],
        now_ms: int,
    ) -> tuple[Session, Run] | None:
        self._check_open()
        session = self._sessions.get(session_id)
        if session is None or session.current_run_id != replacing:
            return None
        if session.status(now_ms) != "ACTIVE":
            return None
        if reason == "continuation" and self._current_is_live(session):
            return None
        return self._set_current(session, make_run(session, replacing), now_ms=now_ms)

    async def set_cursor(
        self, session_id: str, cursor: InputCursor, *, task_id: str | None = None
    ) -> None:
        self._check_open()
        if task_id is None:
            self._advance_cursor(session_id, cursor)
        else:
            self._consumed[session_id, task_id] = cursor.seq_num

    async def consumed(self, session_id: str, task_id: str) -> int | None:
        self._check_open()
        return self._consumed.get((session_id, task_id))

    async def is_unchecked(self, session_id: str, run_id: str) -> bool:
        self._check_open()
        return self._unchecked.get(session_id) == run_id

    async def unchecked_sessions(self, *, limit: int) -> Sequence[Session]:
        self._check_open()
        return tuple(self._sessions[session_id] for session_id in islice(self._unchecked, limit))

    async def checked(self, session_id: str, run_id: str) -> None:
        self._check_open()
        if self._unchecked.get(session_id) == run_id:
            del self._unchecked[session_id]
