"""The port of state: sessions, runs, queues, workers, keys. Not on the path of a chunk.

Every verb is one transaction: it happens whole and durably, or not at all. Verbs that change a
run are guarded: they name the fence they act under (or None for the server's own decisions) and
change nothing when the run has moved on, answering None or False instead of raising. Legal moves
are `rules/run_states.TRANSITIONS`; an engine uses `run_states.sources(event)` in its guards.

Rows handed out are snapshots, frozen. Times are milliseconds since the epoch, and always handed
in by the caller. Values are kept byte for byte; a name that holds a NUL is refused by every verb
that stores it or lists by it (`texts.py`: InvalidRequest). Environment ids are checked by every
verb that takes one: a row of another environment is as if it did not exist (P-12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from everturn.protocol.records import InputCursor
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.batches import BatchStore
from everturn.storage.ports.retention import RetentionStore
from everturn.storage.ports.rows import (
    ApiKey,
    Environment,
    Holding,
    MakeRun,
    NewRun,
    NewSession,
    OpenedSession,
    Page,
    Run,
    RunFilter,
    Session,
    SessionFilter,
    TaskVersion,
    Wait,
    Worker,
)
from everturn.storage.ports.waitpoints import WaitpointStore


class StateStore(WaitpointStore, BatchStore, RetentionStore, Protocol):
    """Sessions, runs, queues, workers and keys, and what `waitpoints.py`, `batches.py` and
    `retention.py` add.

    Any call may raise Unavailable.
    """

    # --- environments and keys ---------------------------------------------------------------

    async def ensure_environment(
        self, slug: str, *, now_ms: int, id: str | None = None
    ) -> Environment:
        """The environment of that slug, made when missing (with `id` if given)."""
        ...

    async def environment(self, environment_id: str) -> Environment | None: ...

    async def environments(self) -> Sequence[Environment]: ...

    async def add_key(self, key: ApiKey) -> None:
        """Store a key. A key with the same sha256 in the same environment is left as it is.

        Raises Conflict when another environment has it.
        """
        ...

    async def key_by_sha256(self, sha256: str) -> ApiKey | None: ...

    async def keys(self, environment_id: str) -> Sequence[ApiKey]:
        """All keys of an environment, revoked ones too, newest first."""
        ...

    async def revoke_key(self, environment_id: str, key_id: str, *, now_ms: int) -> bool:
        """Revoke a key as of `now_ms`; one that was revoked later is revoked earlier now.

        False when there is no such key, or it was revoked by then.
        """
        ...

    # --- tasks, workers, queues --------------------------------------------------------------

    async def register_worker(
        self,
        worker: Worker,
        tasks: Sequence[TaskVersion],
        queues: Mapping[str, int | None],
        *,
        now_ms: int,
    ) -> None:
        """A worker process (re)connected: its lease, its version and the tasks of that version.

        The version becomes the newest of its environment unless this worker was known already.
        `queues` are declared queues and their concurrency limits (None: unlimited).
        """
        ...

    async def renew_worker(self, worker_id: str, *, lease_until_ms: int) -> bool:
        """Extend the lease of a worker and so of all its runs. False: it was given up already."""
        ...

    async def set_draining(self, worker_id: str) -> None:
        """Hand no further runs to it; those it holds may finish."""
        ...

    async def remove_worker(self, worker_id: str) -> Sequence[Run]:
        """Forget a worker. Returns the runs it still holds (RESIDENT states), unchanged."""
        ...

    async def held_runs(self, worker_id: str) -> Sequence[Run]:
        """The runs that are a worker's by their rows: RESIDENT ones, in no particular order."""
        ...

    async def holdings(self, worker_id: str) -> Sequence[Holding]:
        """The same runs, named only: cheap enough to be asked for again and again."""
        ...

    async def worker(self, worker_id: str) -> Worker | None: ...

    async def expired_workers(self, *, now_ms: int) -> Sequence[Worker]: ...

    async def live_workers(self, environment_id: str, *, now_ms: int) -> Sequence[Worker]: ...

    async def task(self, environment_id: str, task_id: str) -> TaskVersion | None:
        """The task as its newest version declares it; None if it was never registered."""
        ...

    async def tasks(self, environment_id: str) -> Sequence[TaskVersion]:
        """Every task ever registered, as its newest version declares it, by id."""
        ...

    # --- sessions ----------------------------------------------------------------------------

    async def open_session(
        self, environment_id: str, new: NewSession, make_run: MakeRun, *, now_ms: int
    ) -> OpenedSession:
        """Create a session with its first run, or find it by external id; atomically.

        On a hit only `trigger_config` is replaced, and a run is made only when the current one
        is missing or final; `make_run` gets the updated row. Two callers converge (P-11).

        Raises:
            SessionClosedError: the row exists and is closed or expired.
        """
        ...

    async def session(self, environment_id: str, key: str) -> Session | None:
        """By `session_…` id when the key starts so, else by external id."""
        ...

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
        """Newest first. `after`/`before` are cursors of an earlier page.

        Raises InvalidRequest for a cursor that names no session of this environment.
        """
        ...

    async def update_session(
        self,
        environment_id: str,
        key: str,
        *,
        now_ms: int,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        clear_metadata: bool = False,
    ) -> Session | None: ...

    async def close_session(
        self, environment_id: str, key: str, *, reason: str | None, now_ms: int
    ) -> Session | None:
        """Close; the first call wins and later ones return the row as it is."""
        ...

    async def continue_session(
        self,
        session_id: str,
        *,
        replacing: str | None,
        make_run: MakeRun,
        reason: Literal["continuation", "upgrade", "manual"],
        now_ms: int,
    ) -> tuple[Session, Run] | None:
        """Give a session its next run, if `replacing` is still its current run.

        For `continuation` the replaced run must be final (or None). For the others it may be
        live: it stays as it is, superseded (rulings §1.11). Returns None, changing nothing, when
        somebody else was faster or the session is closed or expired.
        """
        ...

    async def set_cursor(
        self, session_id: str, cursor: InputCursor, *, task_id: str | None = None
    ) -> None:
        """Remember a committed cursor, if newer. With `task_id`: what a raw task consumed
        (rulings §1.16), kept per session and task, set as given (`seek` may go back)."""
        ...

    async def consumed(self, session_id: str, task_id: str) -> int | None: ...

    async def is_unchecked(self, session_id: str, run_id: str) -> bool:
        """Whether that run ended as the session's current one and `checked` has not followed."""
        ...

    async def unchecked_sessions(self, *, limit: int) -> Sequence[Session]:
        """Sessions whose current run became final and was not yet `checked`: a crash's leavings."""
        ...

    async def checked(self, session_id: str, run_id: str) -> None:
        """The service has looked for open input after this run became final."""
        ...

    # --- runs --------------------------------------------------------------------------------

    async def create_run(
        self, environment_id: str, new: NewRun, *, now_ms: int
    ) -> tuple[Run, bool]:
        """Queue a run; `(run, False)` when an idempotency or request key found an earlier one.

        A key is free again when its time is over or its run ended FAILED, CRASHED,
        SYSTEM_FAILURE, EXPIRED or TIMED_OUT (tasks-and-runs §9). `(run, False)` also when the
        call was debounced: the run is the delayed one of that key, moved by `debouncing.pushed`.
        Calls that race for a new key make one run. Whichever run is answered, a repeat of the
        call (its request key) is answered with it too.
        """
        ...

    async def run_by_request(
        self, environment_id: str, request_key: str, *, now_ms: int
    ) -> Run | None:
        """The run that a call with this request key was answered with, while that is kept."""
        ...

    async def release_key(self, environment_id: str, task_id: str, key: str) -> bool:
        """Forget an idempotency key: the next run with it is a new one. False: nobody held it."""
        ...

    async def reschedule_run(
        self, environment_id: str, run_id: str, *, not_before_ms: int, now_ms: int
    ) -> Run | None:
        """Move a delayed run: QUEUED, never claimed, `not_before_ms` still to come. Else None."""
        ...

    async def run(self, environment_id: str | None, run_id: str) -> Run | None:
        """A run; `environment_id=None` is for the server's own use."""
        ...

    async def runs(
        self,
        environment_id: str,
        where: RunFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Run]: ...

    async def children(self, run_id: str, *, limit: int, alive: bool = False) -> Sequence[Run]:
        """The first `limit` runs that a run started, oldest first; with `alive` those not final.

        Without what they carry, which may be large and is not what they are asked for: `payload`
        is empty, `boot_input` and `output` are None.
        """
        ...

    async def claim_runs(self, worker_id: str, *, limit: int, now_ms: int) -> Sequence[Run]:
        """Give eligible runs to a worker: at most `limit`, each with a slot of its queue.

        First RESUMING runs that are parked in this very worker (-> RUNNING; fence, attempt and
        worker unchanged; `wait` is kept until the next change). Then QUEUED runs of the tasks of
        the worker's version, oldest `queued_at_ms - priority_ms` first, `not_before_ms` passed
        (-> CLAIMED, attempt + 1, `version` pinned, `worker_id` set, `started_at_ms` on the first,
        fence = the next of its session, or run fence + 1 without one).

        A run pinned or locked to a version goes to workers of that version only. An unpinned one
        goes to workers of the newest registered version among live, non-draining workers that
        serve its task. A session's run is claimable only while it is the current one.
        Queue limits (per concurrency key) and the environment's own are never exceeded by
        concurrent callers. Nothing for a worker that is unknown, expired or draining, except
        its own RESUMING runs.
        """
        ...

    async def start_run(self, run_id: str, *, fence: int, now_ms: int) -> bool:
        """CLAIMED -> RUNNING: the worker confirmed. `executed_at_ms` is set the first time."""
        ...

    async def suspend_run(self, run_id: str, wait: Wait, *, fence: int, now_ms: int) -> Run | None:
        """RUNNING -> SUSPENDED: its slot is free from now on. The caller checks afterwards
        whether the wait was over already, and wakes it then."""
        ...

    async def wake_run(self, run_id: str, *, now_ms: int, take_slot: bool = True) -> Run | None:
        """SUSPENDED -> RESUMING, or straight to RUNNING when `take_slot` and one is free.

        None when it is not suspended. A run without a worker (evicted) goes to QUEUED instead,
        to be claimed with its journal.
        """
        ...

    async def requeue_run(
        self,
        run_id: str,
        event: RunEvent,
        *,
        now_ms: int,
        fence: int | None = None,
        interruptions: int | None = None,
        not_before_ms: int | None = None,
        machine: str | None = None,
        unpin: bool = False,
        only_from: frozenset[RunState] | None = None,
    ) -> Run | None:
        """RETRY (`failures` + 1, journal dropped) or INTERRUPT (journal kept) -> QUEUED.

        `worker_id` is cleared. An INTERRUPT of a SUSPENDED run that still waits for something
        keeps it SUSPENDED without a worker. `interruptions` is stored as given. A session run
        that is no longer the current one is not queued again: it ends COMPLETED (rulings §1.11).
        `only_from` narrows the states (compare-and-set of an eviction, rulings §1.18).
        """
        ...

    async def finish_run(
        self,
        run_id: str,
        event: RunEvent,
        *,
        now_ms: int,
        fence: int | None = None,
        output: bytes | None = None,
        output_type: str | None = None,
        error: Mapping[str, Any] | None = None,
        metadata: bytes | None = None,
        cursor: InputCursor | None = None,
        only_from: frozenset[RunState] | None = None,
    ) -> Run | None:
        """Make a run final. None, changing nothing, when it is final already, moved on, or its
        fence is another.

        `cursor` goes to the session row if newer. A session's current run leaves the session
        unchecked (see `unchecked_sessions`). `only_from` narrows the states (compare-and-set of
        an eviction, rulings §1.18).
        """
        ...

    async def clear_boot_input(self, run_id: str) -> None:
        """Its first message is in the log."""
        ...

    async def waiting_on_run(self, run_id: str) -> Sequence[Run]:
        """Suspended runs whose wait is this run."""
        ...

    async def due_runs(self, *, now_ms: int, limit: int) -> Sequence[Run]:
        """Suspended runs whose `wait.until_ms` has passed."""
        ...

    async def next_due_ms(self, *, now_ms: int) -> int | None:
        """The earliest `wait.until_ms` of a suspended run, `not_before_ms` of a queued one or
        `timeout_at_ms` of a token that is not completed. A queued run whose time has come waits
        for a worker, and not for time."""
        ...

    async def unstarted_runs(self, *, claimed_before_ms: int, now_ms: int) -> Sequence[Run]:
        """CLAIMED longer than they may be, or further ahead of `now_ms` than
        limits.CLOCK_AHEAD_MS: the clock was set back since, and nobody knows how long."""
        ...

    async def orphaned_runs(self) -> Sequence[Run]:
        """CLAIMED, RUNNING or RESUMING runs, or SUSPENDED ones with a worker, whose worker is
        not registered any more."""
        ...

    async def stranded_runs(self, *, queued_before_ms: int, now_ms: int) -> Sequence[Run]:
        """QUEUED session runs pinned to a version that no live worker serves, while another
        version of their task has one (rulings §1.19). A time ahead of `now_ms` counts as above."""
        ...

    async def expired_runs(self, *, now_ms: int, limit: int) -> Sequence[Run]:
        """QUEUED runs that were never claimed and whose `expire_at_ms` has passed, oldest first."""
        ...

    async def overdue_runs(self, *, now_ms: int) -> Sequence[Run]:
        """RUNNING runs past their `max_duration_s` plus a minute: their worker did not stop them."""
        ...

    async def superseded_runs(self, *, limit: int) -> Sequence[Run]:
        """Runs that nothing will ever move: their session has gone on with another run, and they
        are QUEUED, or SUSPENDED until a record of the session comes. Oldest first."""
        ...

    async def set_metadata(
        self,
        environment_id: str,
        run_id: str,
        change: Callable[[bytes | None], bytes],
        *,
        now_ms: int,
    ) -> Run | None:
        """Read, change and write a run's metadata in one transaction. `change` is pure."""
        ...

    async def add_tags(
        self, environment_id: str, run_id: str, tags: Sequence[str], *, now_ms: int
    ) -> Run | None:
        """Union, in order. Raises Unprocessable past limits.RUN_TAGS_MAX; nothing changes then."""
        ...

    async def note_stream(
        self, environment_id: str, run_id: str, stream: str, *, now_ms: int
    ) -> Run | None:
        """A stream of the run gets its first value. A repeat changes nothing.

        Raises Unprocessable past limits.RUN_STREAMS_MAX streams; nothing changes then.
        """
        ...

    # --- the journal -------------------------------------------------------------------------

    async def journal(self, run_id: str) -> Sequence[tuple[int, str, bytes]]:
        """`(position, key, result)` of the steps of the run's current attempt, in order."""
        ...

    async def journal_put(
        self, run_id: str, position: int, key: str, result: bytes, *, fence: int
    ) -> bool:
        """Keep a step's result before the author sees it. False when fenced. A repeat is fine."""
        ...

    async def close(self) -> None: ...
