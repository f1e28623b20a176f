"""The dicts of the memory state engine, and the few operations that keep them consistent.

Everything here is synchronous and runs between two awaits of one event loop, which is what makes
each verb a transaction. A verb therefore checks everything first and writes afterwards: an
exception half-way would otherwise leave half a change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from everturn.errors import InvalidRequest, Unavailable
from everturn.ids import Ids, RandomIds
from everturn.protocol.records import InputCursor
from everturn.rules.run_states import FINAL, SLOTTED, RunEvent, RunState, sources
from everturn.storage.ports.batches import Batch
from everturn.storage.ports.retention import PacketName
from everturn.storage.ports.rows import (
    ApiKey,
    Environment,
    NewRun,
    Page,
    Run,
    Session,
    TaskVersion,
    Worker,
    queued_run,
)
from everturn.storage.ports.texts import check_texts
from everturn.storage.ports.waitpoints import Waitpoint

Row = TypeVar("Row", Session, Run, Waitpoint)
changed = msgspec.structs.replace


class Tables:
    """Rows by id, and the indexes the verbs look things up by."""

    def __init__(self, ids: Ids | None = None, *, environment_limit: int = 1_000_000) -> None:
        """`environment_limit`: runs of one environment that may hold a slot at the same time."""
        self._ids: Ids = ids if ids is not None else RandomIds()
        self._environment_limit = environment_limit
        self._closed = False

        self._environments: dict[str, Environment] = {}
        self._keys: dict[str, ApiKey] = {}  # by sha256

        self._workers: dict[str, Worker] = {}
        #: Workers that were removed; they are known still when they come back (see register).
        self._departed: dict[str, Worker] = {}
        #: environment -> version -> rank; the highest rank is the newest version.
        self._versions: dict[str, dict[str, int]] = {}
        self._version_tasks: dict[tuple[str, str], frozenset[str]] = {}
        self._tasks: dict[str, dict[str, TaskVersion]] = {}
        self._queues: dict[tuple[str, str], int | None] = {}

        self._sessions: dict[str, Session] = {}
        self._external: dict[tuple[str, str], str] = {}
        self._unchecked: dict[str, str] = {}  # session id -> its run that became final
        self._consumed: dict[tuple[str, str], int | None] = {}

        self._runs: dict[str, Run] = {}
        self._by_state: dict[RunState, dict[str, None]] = {state: {} for state in RunState}
        #: When each run came into its present state.
        self._since: dict[str, int] = {}
        self._children: dict[str, list[str]] = {}
        #: (environment, scope, key) -> (run id, when the key is free again)
        self._run_keys: dict[tuple[str, str, str], tuple[str, int | None]] = {}
        self._journals: dict[str, dict[int, tuple[str, bytes]]] = {}

        self._waitpoints: dict[str, Waitpoint] = {}
        #: (environment, active key) -> id, of tokens and of batches.
        self._waitpoint_keys: dict[tuple[str, str], str] = {}
        self._batches: dict[str, Batch] = {}
        self._batch_keys: dict[tuple[str, str], str] = {}
        #: batch id -> index -> run id
        self._batch_items: dict[str, dict[int, str]] = {}

        #: When a chore may be done again.
        self._chores: dict[str, int] = {}
        #: (environment, name) -> when it was noted.
        self._packets: dict[PacketName, int] = {}

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the state store is closed")

    # --- runs --------------------------------------------------------------------------------

    def _insert_run(self, environment_id: str, new: NewRun, *, now_ms: int) -> Run:
        run = queued_run(environment_id, new, now_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        if run.parent_run_id is not None:
            self._children.setdefault(run.parent_run_id, []).append(run.id)
        return run

    def _put_run(self, run: Run, *, now_ms: int) -> None:
        before = self._runs.get(run.id)
        if before is None or before.state is not run.state:
            if before is not None:
                del self._by_state[before.state][run.id]
            self._by_state[run.state][run.id] = None
            self._since[run.id] = now_ms
        self._runs[run.id] = run

    def _in_states(self, *states: RunState) -> list[Run]:
        # Sorted, because callers pass sets, whose order is another in each process.
        return [self._runs[run_id] for state in sorted(states) for run_id in self._by_state[state]]

    def _guarded(
        self,
        run_id: str,
        event: RunEvent,
        *,
        fence: int | None = None,
        only_from: frozenset[RunState] | None = None,
    ) -> Run | None:
        """The run, if `event` is legal for it now and its fence is the caller's."""
        run = self._runs.get(run_id)
        if run is None or run.state not in sources(event):
            return None
        if only_from is not None and run.state not in only_from:
            return None
        if fence is not None and run.fence != fence:
            return None
        return run

    def _superseded(self, run: Run) -> bool:
        """Whether a session run is no longer its session's current one."""
        if run.session_id is None:
            return False
        session = self._sessions.get(run.session_id)
        return session is None or session.current_run_id != run.id

    def _finish(self, run: Run, state: RunState, *, now_ms: int) -> Run:
        """Make a run final, and leave its session unchecked if it was the current one."""
        run = changed(run, state=state, wait=None, updated_at_ms=now_ms, finished_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        self._journals.pop(run.id, None)
        if run.session_id is not None and not self._superseded(run):
            self._unchecked[run.session_id] = run.id
        return run

    # --- slots -------------------------------------------------------------------------------

    def _slot_free(self, run: Run) -> bool:
        """Whether its queue (per concurrency key) and its environment have room for the run."""
        holders = [r for r in self._in_states(*SLOTTED) if r.environment_id == run.environment_id]
        if len(holders) >= self._environment_limit:
            return False
        limit = self._queues.get((run.environment_id, run.queue))
        if limit is None:
            return True
        sub_queue = (run.queue, run.concurrency_key)
        return sum((r.queue, r.concurrency_key) == sub_queue for r in holders) < limit

    # --- sessions ----------------------------------------------------------------------------

    def _find_session(self, environment_id: str, key: str) -> Session | None:
        session_id = key
        if not key.startswith("session_"):
            session_id = self._external.get((environment_id, key), "")
        session = self._sessions.get(session_id)
        if session is None or session.environment_id != environment_id:
            return None
        return session

    def _current_is_live(self, session: Session) -> bool:
        run = self._runs.get(session.current_run_id or "")
        return run is not None and run.state not in FINAL

    def _set_current(self, session: Session, new: NewRun, *, now_ms: int) -> tuple[Session, Run]:
        """Give a session its next run; it becomes the current one."""
        run = self._insert_run(
            session.environment_id, changed(new, session_id=session.id), now_ms=now_ms
        )
        session = changed(session, current_run_id=run.id, updated_at_ms=now_ms)
        self._sessions[session.id] = session
        self._unchecked.pop(session.id, None)
        return session, run

    def _advance_cursor(self, session_id: str, cursor: InputCursor) -> None:
        session = self._sessions.get(session_id)
        if session is not None:
            self._sessions[session_id] = changed(session, cursor=session.cursor.newest(cursor))


def page_of(
    rows: Sequence[Row],
    matches: Callable[[Row], bool],
    *,
    limit: int,
    after: str | None,
    before: str | None,
) -> Page[Row]:
    """One page of `rows`, which come in the order they were made; the page is newest first.

    Raises InvalidRequest for a cursor that names none of `rows`, or for two cursors.
    """
    check_texts(after=after, before=before)
    if after is not None and before is not None:
        raise InvalidRequest("a page is named by one cursor, after or before, not by both")
    # Sorting is stable: rows of the same millisecond stay in the order they were made.
    ordered = sorted(rows, key=lambda row: row.created_at_ms)[::-1]
    cursor = after if after is not None else before
    if cursor is None:
        return _from(([row for row in ordered if matches(row)]), limit, reached=False)
    places = [place for place, row in enumerate(ordered) if row.id == cursor]
    if not places:
        raise InvalidRequest(f"the cursor {cursor!r} names nothing here")
    if after is not None:
        return _from([row for row in ordered[places[0] + 1 :] if matches(row)], limit, reached=True)
    newer = [row for row in ordered[: places[0]] if matches(row)]
    items = newer[-limit:]
    return Page(
        items=tuple(items),
        next=items[-1].id if items else None,
        previous=items[0].id if len(newer) > limit else None,
    )


def _from(rows: list[Row], limit: int, *, reached: bool) -> Page[Row]:
    items = rows[:limit]
    return Page(
        items=tuple(items),
        next=items[-1].id if len(rows) > limit else None,
        previous=items[0].id if reached and items else None,
    )
