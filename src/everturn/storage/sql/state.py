"""State on SQLite and PostgreSQL: the port's verbs, each handed whole to a database.

What a verb does stands in the module of its noun; `transaction.py` says what a verb may rely on,
and the two `*_database.py` how it is run. The promises are in `storage/ports/state.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anyio import to_thread

from everturn.clock import Clock, SystemClock
from everturn.errors import ConfigurationError
from everturn.ids import Ids, RandomIds
from everturn.protocol.records import InputCursor
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.batches import Batch, NewBatch
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
from everturn.storage.ports.waitpoints import NewWaitpoint, Waitpoint, WaitpointFilter
from everturn.storage.sql import (
    batches,
    claims,
    cursors,
    environments,
    run_details,
    runs,
    schema,
    sessions,
    sweeps,
    waitpoints,
    workers,
)
from everturn.storage.sql.state_details import SqlDetails
from everturn.storage.sql.state_retention import SqlRetention
from everturn.storage.sql.transaction import UNCOUNTED, Database, Settings


class SqlState(SqlDetails, SqlRetention):
    """The state port on a SQL database. Made by `open`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        clock: Clock | None = None,
        ids: Ids | None = None,
        migrate: bool = True,
        environment_limit: int = UNCOUNTED,
        sync: bool = True,
    ) -> SqlState:
        """Open the database of a URL: `sqlite:///folder/state.db` or `postgresql://…`.

        Args:
            clock: paces the retries of transactions; the machine's own by default.
            ids: makes ids of environments, and jitter.
            migrate: bring the schema up to date first; milliseconds when it is.
            environment_limit: runs of one environment that may hold a slot at once. From
                1,000,000 on it is not enforced (see `transaction.UNCOUNTED`).
            sync: False lets SQLite acknowledge what is not on disk yet: for measurements only.
                PostgreSQL has its own setting.

        Raises:
            ConfigurationError: the URL cannot be used; or the schema is not current and
                `migrate` is False; or it belongs to a newer release.
            StorageCorrupt: the file is damaged; names it and the place.
            Unavailable: the database cannot be reached.
        """
        parsed = schema.parsed_url(url)
        if parsed.drivername == "sqlite":
            from everturn.storage.sql.sqlite_database import check_file

            await to_thread.run_sync(check_file, schema.file_of(parsed))
        state = await to_thread.run_sync(schema.schema_state, url)
        if state == "ahead":
            raise ConfigurationError(
                "the state database was made by a newer everturn: its schema is ahead of "
                f"{schema.HEAD}, the newest this release knows. Upgrade everturn on this machine"
            )
        if state != "current" and not migrate:
            raise ConfigurationError(
                f"the schema of the state database is {state}: run everturn migrate"
            )
        if state != "current":
            await to_thread.run_sync(schema.migrate, url)
        settings = Settings(ids if ids is not None else RandomIds(), environment_limit)
        if parsed.drivername == "sqlite":
            from everturn.storage.sql.sqlite_database import SqliteDatabase

            return cls(SqliteDatabase(schema.file_of(parsed), settings, sync=sync))
        from everturn.storage.sql.postgres_database import PostgresDatabase

        clock = clock if clock is not None else SystemClock()
        return cls(PostgresDatabase(parsed, settings, clock))

    async def close(self) -> None:
        """Finish what was accepted; later calls raise Unavailable."""
        await self._db.close()

    # --- environments and keys -------------------------------------------------------------------
    async def ensure_environment(
        self, slug: str, *, now_ms: int, id: str | None = None
    ) -> Environment:
        return await self._db.write(environments.ensure_environment, slug, now_ms=now_ms, id=id)

    async def environment(self, environment_id: str) -> Environment | None:
        return await self._db.read(environments.environment, environment_id)

    async def environments(self) -> Sequence[Environment]:
        return await self._db.read(environments.all_environments)

    async def add_key(self, key: ApiKey) -> None:
        await self._db.write(environments.add_key, key)

    async def key_by_sha256(self, sha256: str) -> ApiKey | None:
        return await self._db.read(environments.key_by_sha256, sha256)

    async def keys(self, environment_id: str) -> Sequence[ApiKey]:
        return await self._db.read(environments.keys, environment_id)

    async def revoke_key(self, environment_id: str, key_id: str, *, now_ms: int) -> bool:
        return await self._db.write(environments.revoke_key, environment_id, key_id, now_ms=now_ms)

    # --- tasks, workers, queues ------------------------------------------------------------------
    async def register_worker(
        self,
        worker: Worker,
        tasks: Sequence[TaskVersion],
        queues: Mapping[str, int | None],
        *,
        now_ms: int,
    ) -> None:
        await self._db.write(workers.register_worker, worker, tasks, queues, now_ms=now_ms)

    async def renew_worker(self, worker_id: str, *, lease_until_ms: int) -> bool:
        return await self._db.write(workers.renew_worker, worker_id, lease_until_ms=lease_until_ms)

    async def set_draining(self, worker_id: str) -> None:
        await self._db.write(workers.set_draining, worker_id)

    async def remove_worker(self, worker_id: str) -> Sequence[Run]:
        return await self._db.write(workers.remove_worker, worker_id)

    async def held_runs(self, worker_id: str) -> Sequence[Run]:
        return await self._db.read(workers.runs_held, worker_id)

    async def holdings(self, worker_id: str) -> Sequence[Holding]:
        return await self._db.read(workers.holdings, worker_id)

    async def worker(self, worker_id: str) -> Worker | None:
        return await self._db.read(workers.worker, worker_id)

    async def expired_workers(self, *, now_ms: int) -> Sequence[Worker]:
        return await self._db.read(workers.expired_workers, now_ms=now_ms)

    async def live_workers(self, environment_id: str, *, now_ms: int) -> Sequence[Worker]:
        return await self._db.read(workers.live_workers, environment_id, now_ms=now_ms)

    async def task(self, environment_id: str, task_id: str) -> TaskVersion | None:
        return await self._db.read(workers.task, environment_id, task_id)

    async def tasks(self, environment_id: str) -> Sequence[TaskVersion]:
        return await self._db.read(workers.all_tasks, environment_id)

    # --- sessions --------------------------------------------------------------------------------
    async def open_session(
        self, environment_id: str, new: NewSession, make_run: MakeRun, *, now_ms: int
    ) -> OpenedSession:
        return await self._db.write(
            sessions.open_session, environment_id, new, make_run, now_ms=now_ms
        )

    async def session(self, environment_id: str, key: str) -> Session | None:
        return await self._db.read(sessions.session, environment_id, key)

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
        return await self._db.read(
            sessions.list_sessions,
            environment_id,
            where,
            limit=limit,
            after=after,
            before=before,
            now_ms=now_ms,
        )

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
        return await self._db.write(
            sessions.update_session,
            environment_id,
            key,
            now_ms=now_ms,
            tags=tags,
            metadata=metadata,
            clear_metadata=clear_metadata,
        )

    async def close_session(
        self, environment_id: str, key: str, *, reason: str | None, now_ms: int
    ) -> Session | None:
        return await self._db.write(
            sessions.close_session, environment_id, key, reason=reason, now_ms=now_ms
        )

    async def continue_session(
        self,
        session_id: str,
        *,
        replacing: str | None,
        make_run: MakeRun,
        reason: Literal["continuation", "upgrade", "manual"],
        now_ms: int,
    ) -> tuple[Session, Run] | None:
        return await self._db.write(
            sessions.continue_session,
            session_id,
            replacing=replacing,
            make_run=make_run,
            reason=reason,
            now_ms=now_ms,
        )

    async def set_cursor(
        self, session_id: str, cursor: InputCursor, *, task_id: str | None = None
    ) -> None:
        await self._db.write(cursors.set_cursor, session_id, cursor, task_id=task_id)

    async def consumed(self, session_id: str, task_id: str) -> int | None:
        return await self._db.read(cursors.consumed, session_id, task_id)

    async def is_unchecked(self, session_id: str, run_id: str) -> bool:
        return await self._db.read(sessions.is_unchecked, session_id, run_id)

    async def unchecked_sessions(self, *, limit: int) -> Sequence[Session]:
        return await self._db.read(sessions.unchecked_sessions, limit=limit)

    async def checked(self, session_id: str, run_id: str) -> None:
        await self._db.write(sessions.checked, session_id, run_id)

    # --- runs ------------------------------------------------------------------------------------
    async def create_run(
        self, environment_id: str, new: NewRun, *, now_ms: int
    ) -> tuple[Run, bool]:
        return await self._db.write(runs.create_run, environment_id, new, now_ms=now_ms)

    async def release_key(self, environment_id: str, task_id: str, key: str) -> bool:
        return await self._db.write(runs.release_key, environment_id, task_id, key)

    async def reschedule_run(
        self, environment_id: str, run_id: str, *, not_before_ms: int, now_ms: int
    ) -> Run | None:
        return await self._db.write(
            runs.reschedule_run,
            environment_id,
            run_id,
            not_before_ms=not_before_ms,
            now_ms=now_ms,
        )

    async def run(self, environment_id: str | None, run_id: str) -> Run | None:
        return await self._db.read(runs.run, environment_id, run_id)

    async def runs(
        self,
        environment_id: str,
        where: RunFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Run]:
        return await self._db.read(
            run_details.list_runs, environment_id, where, limit=limit, after=after, before=before
        )

    async def children(self, run_id: str, *, limit: int, alive: bool = False) -> Sequence[Run]:
        return await self._db.read(run_details.children, run_id, limit=limit, alive=alive)

    async def claim_runs(self, worker_id: str, *, limit: int, now_ms: int) -> Sequence[Run]:
        return await self._db.write(claims.claim_runs, worker_id, limit=limit, now_ms=now_ms)

    async def start_run(self, run_id: str, *, fence: int, now_ms: int) -> bool:
        return await self._db.write(runs.start_run, run_id, fence=fence, now_ms=now_ms)

    async def suspend_run(self, run_id: str, wait: Wait, *, fence: int, now_ms: int) -> Run | None:
        return await self._db.write(runs.suspend_run, run_id, wait, fence=fence, now_ms=now_ms)

    async def wake_run(self, run_id: str, *, now_ms: int, take_slot: bool = True) -> Run | None:
        return await self._db.write(runs.wake_run, run_id, now_ms=now_ms, take_slot=take_slot)

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
        return await self._db.write(
            runs.requeue_run,
            run_id,
            event,
            now_ms=now_ms,
            fence=fence,
            interruptions=interruptions,
            not_before_ms=not_before_ms,
            machine=machine,
            unpin=unpin,
            only_from=only_from,
        )

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
        return await self._db.write(
            runs.finish_run,
            run_id,
            event,
            now_ms=now_ms,
            fence=fence,
            output=output,
            output_type=output_type,
            error=error,
            metadata=metadata,
            cursor=cursor,
            only_from=only_from,
        )

    async def clear_boot_input(self, run_id: str) -> None:
        await self._db.write(runs.clear_boot_input, run_id)

    async def waiting_on_run(self, run_id: str) -> Sequence[Run]:
        return await self._db.read(sweeps.waiting_on_run, run_id)

    async def due_runs(self, *, now_ms: int, limit: int) -> Sequence[Run]:
        return await self._db.read(sweeps.due_runs, now_ms=now_ms, limit=limit)

    async def next_due_ms(self, *, now_ms: int) -> int | None:
        return await self._db.read(sweeps.next_due_ms, now_ms=now_ms)

    async def unstarted_runs(self, *, claimed_before_ms: int, now_ms: int) -> Sequence[Run]:
        return await self._db.read(
            sweeps.unstarted_runs, claimed_before_ms=claimed_before_ms, now_ms=now_ms
        )

    async def orphaned_runs(self) -> Sequence[Run]:
        return await self._db.read(sweeps.orphaned_runs)

    async def stranded_runs(self, *, queued_before_ms: int, now_ms: int) -> Sequence[Run]:
        return await self._db.read(
            sweeps.stranded_runs, queued_before_ms=queued_before_ms, now_ms=now_ms
        )

    async def overdue_runs(self, *, now_ms: int) -> Sequence[Run]:
        return await self._db.read(sweeps.overdue_runs, now_ms=now_ms)

    async def superseded_runs(self, *, limit: int) -> Sequence[Run]:
        return await self._db.read(sweeps.superseded_runs, limit=limit)

    # --- wait tokens -----------------------------------------------------------------------------
    async def create_waitpoint(
        self, environment_id: str, new: NewWaitpoint, *, now_ms: int
    ) -> tuple[Waitpoint, bool]:
        return await self._db.write(waitpoints.create_waitpoint, environment_id, new, now_ms=now_ms)

    async def waitpoint(self, environment_id: str | None, waitpoint_id: str) -> Waitpoint | None:
        return await self._db.read(waitpoints.waitpoint, environment_id, waitpoint_id)

    async def waitpoints(
        self,
        environment_id: str,
        where: WaitpointFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Waitpoint]:
        return await self._db.read(
            waitpoints.list_waitpoints,
            environment_id,
            where,
            limit=limit,
            after=after,
            before=before,
        )

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
        return await self._db.write(
            waitpoints.complete_waitpoint,
            environment_id,
            waitpoint_id,
            now_ms=now_ms,
            output=output,
            output_type=output_type,
            timed_out=timed_out,
        )

    async def due_waitpoints(self, *, now_ms: int, limit: int) -> Sequence[Waitpoint]:
        return await self._db.read(waitpoints.due_waitpoints, now_ms=now_ms, limit=limit)

    async def waiting_on_token(self, waitpoint_id: str) -> Sequence[Run]:
        return await self._db.read(waitpoints.waiting_on_token, waitpoint_id)

    # --- batches ---------------------------------------------------------------------------------
    async def create_batch(
        self, environment_id: str, new: NewBatch, *, now_ms: int
    ) -> tuple[Batch, bool]:
        return await self._db.write(batches.create_batch, environment_id, new, now_ms=now_ms)

    async def batch(self, environment_id: str, batch_id: str) -> Batch | None:
        return await self._db.read(batches.batch, environment_id, batch_id)

    async def add_batch_item(
        self, environment_id: str, batch_id: str, index: int, run_id: str, *, now_ms: int
    ) -> bool:
        return await self._db.write(
            batches.add_batch_item, environment_id, batch_id, index, run_id, now_ms=now_ms
        )

    async def batch_items(self, batch_id: str) -> Sequence[tuple[int, str]]:
        return await self._db.read(batches.batch_items, batch_id)

    async def batch_runs(self, environment_id: str, batch_id: str) -> Sequence[Run]:
        return await self._db.read(batches.batch_runs, environment_id, batch_id)
