"""Runs in memory: making, moving, finishing and finding them, and their journals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from everturn.errors import Unprocessable
from everturn.protocol.records import InputCursor
from everturn.rules import limits
from everturn.rules.run_states import (
    FINAL,
    KEY_FREEING,
    RunEvent,
    RunState,
    next_state,
)
from everturn.storage.memory.state_tables import Tables, changed, page_of
from everturn.storage.ports.debouncing import expiry_ms, pushed
from everturn.storage.ports.rows import (
    NewRun,
    Page,
    Run,
    RunFilter,
    Wait,
    check_streams,
    is_delayed,
)
from everturn.storage.ports.texts import check_texts

#: The scope of keys of one HTTP call; an idempotency key has its task for a scope.
REQUEST = "request"


def run_keys(environment_id: str, new: NewRun) -> list[tuple[tuple[str, str, str], int | None]]:
    """The keys that would find this run again, each with the time it is free from."""
    keys: list[tuple[tuple[str, str, str], int | None]] = []
    if new.request_key is not None:
        keys.append(((environment_id, REQUEST, new.request_key), new.request_expires_ms))
    if new.idempotency_key is not None:
        scope = f"task:{new.task_id}"
        keys.append(((environment_id, scope, new.idempotency_key), new.idempotency_expires_ms))
    return keys


class Runs(Tables):
    """One run's life, apart from being claimed (state_claims.py)."""

    async def create_run(
        self, environment_id: str, new: NewRun, *, now_ms: int
    ) -> tuple[Run, bool]:
        self._check_open()
        keys = run_keys(environment_id, new)
        for place, (key, _) in enumerate(keys):
            found = self._run_of_key(key, now_ms=now_ms)
            if found is not None:
                for before, expires_ms in keys[:place]:
                    self._run_keys[before] = (found.id, expires_ms)
                return found, False
        moved = self._debounced(environment_id, new, now_ms=now_ms)
        run = moved or self._insert_run(environment_id, new, now_ms=now_ms)
        for key, expires_ms in keys:
            self._run_keys[key] = (run.id, expires_ms)
        return run, moved is None

    def _debounced(self, environment_id: str, new: NewRun, *, now_ms: int) -> Run | None:
        """The delayed run of the call's key, moved; else the key is the new run's, and None."""
        if new.debounce is None:
            return None
        key = (environment_id, f"debounce:{new.task_id}", new.debounce.key)
        run = self._runs.get(self._run_keys.get(key, ("", None))[0])
        changes = None if run is None else pushed(run, new, now_ms=now_ms)
        if run is None or changes is None:
            self._run_keys[key] = (new.id, None)
            return None
        run = changed(run, updated_at_ms=now_ms, **changes)
        self._put_run(run, now_ms=now_ms)
        return run

    def _run_of_key(self, key: tuple[str, str, str], *, now_ms: int) -> Run | None:
        run_id, expires_ms = self._run_keys.get(key, ("", None))
        run = self._runs.get(run_id)
        if run is None or (expires_ms is not None and expires_ms <= now_ms):
            return None
        # A request key belongs to one HTTP call over its retries, however its run ended.
        freed = key[1] != REQUEST and run.state in KEY_FREEING
        return None if freed else run

    async def run_by_request(
        self, environment_id: str, request_key: str, *, now_ms: int
    ) -> Run | None:
        self._check_open()
        return self._run_of_key((environment_id, REQUEST, request_key), now_ms=now_ms)

    async def release_key(self, environment_id: str, task_id: str, key: str) -> bool:
        self._check_open()
        return self._run_keys.pop((environment_id, f"task:{task_id}", key), None) is not None

    async def reschedule_run(
        self, environment_id: str, run_id: str, *, not_before_ms: int, now_ms: int
    ) -> Run | None:
        run = await self.run(environment_id, run_id)
        if run is None or run.state is not RunState.QUEUED or run.attempt > 0:
            return None
        if run.not_before_ms is None or run.not_before_ms <= now_ms:
            return None
        run = changed(
            run,
            not_before_ms=not_before_ms,
            expire_at_ms=expiry_ms(run.ttl_ms, not_before_ms),
            updated_at_ms=now_ms,
        )
        self._put_run(run, now_ms=now_ms)
        return run

    async def run(self, environment_id: str | None, run_id: str) -> Run | None:
        self._check_open()
        run = self._runs.get(run_id)
        if run is None or (environment_id is not None and run.environment_id != environment_id):
            return None
        return run

    async def runs(
        self,
        environment_id: str,
        where: RunFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Run]:
        self._check_open()

        def matches(run: Run) -> bool:
            return (
                (not where.states or run.state in where.states)
                and (
                    where.delayed is None
                    or run.state is not RunState.QUEUED
                    or is_delayed(run, where.delayed_at_ms) is where.delayed
                )
                and (not where.task_ids or run.task_id in where.task_ids)
                and (not where.tags or bool(set(where.tags) & set(run.tags)))
                and (not where.versions or run.version in where.versions)
                and (not where.queues or run.queue in where.queues)
                and (not where.machines or run.machine in where.machines)
                and (where.batch_id is None or run.batch_id == where.batch_id)
                and (where.session_id is None or run.session_id == where.session_id)
                and (where.is_test is None or run.is_test == where.is_test)
                and (where.created_from_ms is None or run.created_at_ms >= where.created_from_ms)
                and (where.created_to_ms is None or run.created_at_ms <= where.created_to_ms)
            )

        mine = [run for run in self._runs.values() if run.environment_id == environment_id]
        return page_of(mine, matches, limit=limit, after=after, before=before)

    async def children(self, run_id: str, *, limit: int, alive: bool = False) -> Sequence[Run]:
        self._check_open()
        started = (self._runs[child] for child in self._children.get(run_id, ()))
        wanted = [run for run in started if not (alive and run.state in FINAL)]
        return tuple(
            changed(run, payload=b"", boot_input=None, output=None) for run in wanted[:limit]
        )

    # --- moves -------------------------------------------------------------------------------

    async def start_run(self, run_id: str, *, fence: int, now_ms: int) -> bool:
        self._check_open()
        run = self._guarded(run_id, RunEvent.START, fence=fence)
        if run is None:
            return False
        executed = now_ms if run.executed_at_ms is None else run.executed_at_ms
        run = changed(
            run,
            state=next_state(run.state, RunEvent.START),
            executed_at_ms=executed,
            updated_at_ms=now_ms,
        )
        self._put_run(run, now_ms=now_ms)
        return True

    async def suspend_run(self, run_id: str, wait: Wait, *, fence: int, now_ms: int) -> Run | None:
        self._check_open()
        run = self._guarded(run_id, RunEvent.SUSPEND, fence=fence)
        if run is None:
            return None
        state = next_state(run.state, RunEvent.SUSPEND)
        run = changed(run, state=state, wait=wait, updated_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        return run

    async def wake_run(self, run_id: str, *, now_ms: int, take_slot: bool = True) -> Run | None:
        self._check_open()
        run = self._guarded(run_id, RunEvent.WAKE)
        if run is None:
            return None
        if run.worker_id is None:
            # Evicted or orphaned: nobody holds its coroutine, so it starts again from its journal.
            return self._queue_again(run, RunEvent.INTERRUPT, now_ms=now_ms)
        state = next_state(run.state, RunEvent.WAKE)
        if take_slot and self._slot_free(run):
            state = next_state(state, RunEvent.RESUME)
        run = changed(run, state=state, updated_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        return run

    def _queue_again(self, run: Run, event: RunEvent, *, now_ms: int) -> Run:
        """To QUEUED; or COMPLETED when its session has gone on without it (rulings §1.11)."""
        if self._superseded(run):
            return self._finish(run, next_state(run.state, RunEvent.COMPLETE), now_ms=now_ms)
        run = changed(
            run,
            state=next_state(run.state, event),
            worker_id=None,
            wait=None,
            updated_at_ms=now_ms,
        )
        self._put_run(run, now_ms=now_ms)
        return run

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
        self._check_open()
        run = self._guarded(run_id, event, fence=fence, only_from=only_from)
        if run is None:
            return None
        run = changed(
            run,
            failures=run.failures + (event is RunEvent.RETRY),
            interruptions=run.interruptions if interruptions is None else interruptions,
            not_before_ms=not_before_ms,
            machine=run.machine if machine is None else machine,
            version=None if unpin else run.version,
        )
        if event is RunEvent.RETRY:
            self._journals.pop(run_id, None)
        still_waits = run.state is RunState.SUSPENDED and run.wait is not None
        if still_waits and not self._superseded(run):
            run = changed(run, worker_id=None, updated_at_ms=now_ms)
            self._put_run(run, now_ms=now_ms)
            return run
        return self._queue_again(run, event, now_ms=now_ms)

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
        self._check_open()
        check_texts(output_type=output_type)
        run = self._guarded(run_id, event, fence=fence, only_from=only_from)
        if run is None:
            return None
        run = changed(
            run,
            output=output,
            output_type=output_type,
            error=error,
            metadata=run.metadata if metadata is None else metadata,
        )
        if cursor is not None and run.session_id is not None:
            self._advance_cursor(run.session_id, cursor)
        return self._finish(run, next_state(run.state, event), now_ms=now_ms)

    async def clear_boot_input(self, run_id: str) -> None:
        self._check_open()
        run = self._runs.get(run_id)
        if run is not None:
            self._runs[run_id] = changed(run, boot_input=None)

    async def set_metadata(
        self,
        environment_id: str,
        run_id: str,
        change: Callable[[bytes | None], bytes],
        *,
        now_ms: int,
    ) -> Run | None:
        run = await self.run(environment_id, run_id)
        if run is None:
            return None
        run = changed(run, metadata=change(run.metadata), updated_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        return run

    async def add_tags(
        self, environment_id: str, run_id: str, tags: Sequence[str], *, now_ms: int
    ) -> Run | None:
        check_texts(tags=tags)
        run = await self.run(environment_id, run_id)
        if run is None:
            return None
        union = tuple(dict.fromkeys((*run.tags, *tags)))
        if len(union) > limits.RUN_TAGS_MAX:
            raise Unprocessable(
                f"a run has at most {limits.RUN_TAGS_MAX} tags, these would be {len(union)}",
                tags=len(union),
                tags_max=limits.RUN_TAGS_MAX,
            )
        run = changed(run, tags=union, updated_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        return run

    async def note_stream(
        self, environment_id: str, run_id: str, stream: str, *, now_ms: int
    ) -> Run | None:
        check_texts(stream=stream)
        run = await self.run(environment_id, run_id)
        if run is None or stream in run.streams:
            return run
        check_streams(run)
        run = changed(run, streams=(*run.streams, stream), updated_at_ms=now_ms)
        self._put_run(run, now_ms=now_ms)
        return run

    # --- the journal -------------------------------------------------------------------------

    async def journal(self, run_id: str) -> Sequence[tuple[int, str, bytes]]:
        self._check_open()
        steps = self._journals.get(run_id, {})
        return tuple((position, *steps[position]) for position in sorted(steps))

    async def journal_put(
        self, run_id: str, position: int, key: str, result: bytes, *, fence: int
    ) -> bool:
        self._check_open()
        check_texts(key=key)
        run = self._runs.get(run_id)
        if run is None or run.fence != fence or run.state in FINAL:
            return False
        self._journals.setdefault(run_id, {}).setdefault(position, (key, result))
        return True
