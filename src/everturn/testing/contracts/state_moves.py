"""What the state port promises of a run's moves: who wins, and what is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from everturn.protocol.records import InputCursor
from everturn.rules.run_states import FINAL, RunEvent, RunState
from everturn.storage.ports.rows import Run
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import (
    NOW,
    ON_INPUT,
    claim,
    create,
    environment,
    finish,
    get,
    get_session,
    makes,
    open_chat,
    register,
    start,
    suspend,
)

_PARKED = frozenset({RunState.SUSPENDED})


class TestMoves:
    async def test_start_confirms_a_claim_once_and_under_its_fence(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        claimed = await claim(state)

        assert not await state.start_run("run_c1", fence=claimed.fence + 1, now_ms=NOW)
        assert await state.start_run("run_c1", fence=claimed.fence, now_ms=NOW + 1)
        assert not await state.start_run("run_c1", fence=claimed.fence, now_ms=NOW + 2)

        run = await get(state, "run_c1")
        assert (run.state, run.executed_at_ms) == (RunState.RUNNING, NOW + 1)

    async def test_executed_at_is_that_of_the_first_attempt(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        await start(state)
        await state.requeue_run("run_c1", RunEvent.RETRY, now_ms=NOW)

        again = await start(state, now_ms=NOW + 5)

        assert (again.started_at_ms, again.executed_at_ms, again.attempt) == (NOW, NOW, 2)

    async def test_suspend_and_wake_keep_fence_attempt_and_worker(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        running = await start(state)

        suspended = await state.suspend_run("run_c1", ON_INPUT, fence=running.fence, now_ms=NOW + 1)
        woken = await state.wake_run("run_c1", now_ms=NOW + 2)

        assert suspended is not None
        assert (suspended.state, suspended.wait) == (RunState.SUSPENDED, ON_INPUT)
        assert woken is not None
        assert (woken.state, woken.wait) == (RunState.RUNNING, ON_INPUT)
        for name in ("fence", "attempt", "worker_id"):
            assert getattr(woken, name) == getattr(running, name)
        assert await get(state, "run_c1") == woken
        assert woken.updated_at_ms == NOW + 2
        assert await state.wake_run("run_c1", now_ms=NOW) is None

    async def test_a_fenced_worker_suspends_nothing(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        running = await start(state)

        answer = await state.suspend_run("run_c1", ON_INPUT, fence=running.fence - 1, now_ms=NOW)

        assert answer is None
        assert await get(state, "run_c1") == running

    async def test_a_wake_without_a_slot_waits_and_is_claimed_first(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1", queued_at_ms=NOW + 100)
        parked = await suspend(state, await start(state))
        await create(state, env, "run_c2", queued_at_ms=1)

        woken = await state.wake_run("run_c1", now_ms=NOW, take_slot=False)
        first, second = await state.claim_runs("w1", limit=2, now_ms=NOW)

        assert woken is not None
        assert woken.state is RunState.RESUMING
        assert (first.id, first.state) == ("run_c1", RunState.RUNNING)
        assert (first.fence, first.attempt, first.wait) == (parked.fence, parked.attempt, ON_INPUT)
        assert second.id == "run_c2"

    async def test_a_woken_run_nobody_holds_is_queued(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        await suspend(state, await start(state))
        await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW)

        woken = await state.wake_run("run_c1", now_ms=NOW)

        assert woken is not None
        assert (woken.state, woken.worker_id, woken.wait) == (RunState.QUEUED, None, None)
        assert (await claim(state)).attempt == 2


class TestQueueingAgain:
    async def test_a_retry_counts_a_failure_and_drops_the_journal(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        run = await start(state)
        await state.journal_put("run_c1", 0, "k", b"1", fence=run.fence)

        again = await state.requeue_run(
            "run_c1",
            RunEvent.RETRY,
            now_ms=NOW + 1,
            fence=run.fence,
            not_before_ms=NOW + 50,
            machine="large-1x",
            unpin=True,
        )

        assert again is not None
        assert again == await get(state, "run_c1")
        assert (again.state, again.failures, again.interruptions) == (RunState.QUEUED, 1, 0)
        assert (again.not_before_ms, again.machine) == (NOW + 50, "large-1x")
        assert (again.version, again.worker_id) == (None, None)
        assert await state.journal("run_c1") == ()
        assert await state.claim_runs("w1", limit=1, now_ms=NOW + 49) == ()
        assert (await claim(state, now_ms=NOW + 50)).attempt == 2

    async def test_an_interruption_keeps_the_journal_and_the_version(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        run = await start(state)
        await state.journal_put("run_c1", 0, "k", b"1", fence=run.fence)

        again = await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW, interruptions=2)

        assert again is not None
        assert (again.state, again.failures, again.interruptions) == (RunState.QUEUED, 0, 2)
        assert (again.version, again.worker_id) == ("v1", None)
        assert await state.journal("run_c1") == ((0, "k", b"1"),)

    async def test_nothing_happens_under_another_fence_or_from_a_final_state(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        run = await start(state)

        assert (
            await state.requeue_run("run_c1", RunEvent.RETRY, now_ms=NOW, fence=run.fence + 1)
            is None
        )
        await finish(state, "run_c1")
        assert await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW) is None

    async def test_an_interrupted_run_that_still_waits_goes_on_waiting(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        await suspend(state, await start(state))

        answer = await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW)

        assert answer is not None
        assert (answer.state, answer.worker_id) == (RunState.SUSPENDED, None)
        assert answer.wait == ON_INPUT

    async def test_a_superseded_session_run_ends_completed(self, state: StateStore) -> None:
        """Rulings §1.11."""
        env = await environment(state)
        await register(state, env)
        await open_chat(state, env)
        await start(state)
        await state.continue_session(
            "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason="upgrade",
            now_ms=NOW,
        )

        ended = await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW + 1)

        assert ended is not None
        assert (ended.state, ended.finished_at_ms) == (RunState.COMPLETED, NOW + 1)
        assert ended == await get(state, "run_c1")
        assert await state.unchecked_sessions(limit=5) == ()


class TestFinishing:
    async def test_everything_about_the_end_is_kept(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await open_chat(state, env)
        run = await start(state)
        await state.journal_put("run_c1", 0, "k", b"1", fence=run.fence)

        ended = await state.finish_run(
            "run_c1",
            RunEvent.FAIL,
            now_ms=NOW + 9,
            fence=run.fence,
            output=b"1",
            output_type="application/json",
            error={"message": "no"},
            metadata=b'{"m":1}',
            cursor=InputCursor(4, frozenset({6})),
        )

        assert ended is not None
        assert ended == await get(state, "run_c1")
        assert (ended.state, ended.finished_at_ms) == (RunState.FAILED, NOW + 9)
        assert (ended.output, ended.output_type) == (b"1", "application/json")
        assert (ended.error, ended.metadata) == ({"message": "no"}, b'{"m":1}')
        assert ended.wait is None
        assert (await get_session(state, env)).cursor == InputCursor(4, frozenset({6}))
        assert await state.journal("run_c1") == ()

    async def test_an_older_cursor_does_not_replace_a_newer_one(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env)
        await state.set_cursor("session_c1", InputCursor(5))

        await finish(state, "run_c1", cursor=InputCursor(3))

        assert (await get_session(state, env)).cursor == InputCursor(5)

    async def test_a_final_run_stays_as_it_is(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1")
        ended = await finish(state, "run_c1", RunEvent.CANCEL)

        for event in RunEvent:
            if event not in (RunEvent.RETRY, RunEvent.INTERRUPT):
                assert await state.finish_run("run_c1", event, now_ms=NOW + 1) is None
        assert await get(state, "run_c1") == ended

    async def test_another_fence_or_state_changes_nothing(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        run = await start(state)

        assert (
            await state.finish_run("run_c1", RunEvent.COMPLETE, now_ms=NOW, fence=run.fence + 1)
            is None
        )
        assert (
            await state.finish_run("run_c1", RunEvent.COMPLETE, now_ms=NOW, only_from=_PARKED)
            is None
        )
        again = await state.requeue_run(
            "run_c1", RunEvent.INTERRUPT, now_ms=NOW, fence=run.fence, only_from=_PARKED
        )
        assert again is None
        assert await state.finish_run("run_c1", RunEvent.EXPIRE, now_ms=NOW) is None
        assert await get(state, "run_c1") == run

    async def test_of_two_ends_that_race_one_wins(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        for n in range(10):
            await create(state, env, f"run_c{n}")
            run = await start(state)
            answers = await together(
                lambda run=run: state.finish_run(  # type: ignore[misc]
                    run.id, RunEvent.COMPLETE, now_ms=NOW, fence=run.fence
                ),
                lambda run=run: state.finish_run(run.id, RunEvent.CANCEL, now_ms=NOW),  # type: ignore[misc]
            )
            [winner] = [answer for answer in answers if answer is not None]
            assert await get(state, run.id) == winner

    async def test_an_eviction_and_a_wake_have_one_winner(self, state: StateStore) -> None:
        """Rulings §1.18."""
        env = await environment(state)
        await register(state, env)
        for n in range(10):
            await create(state, env, f"run_c{n}")
            run = await suspend(state, await start(state))
            evicted, woken = await together(
                lambda run=run: state.finish_run(  # type: ignore[misc]
                    run.id, RunEvent.COMPLETE, now_ms=NOW, only_from=_PARKED
                ),
                lambda run=run: state.wake_run(run.id, now_ms=NOW),  # type: ignore[misc]
            )
            assert (evicted is None) != (woken is None)
            assert (await get(state, run.id)).state in FINAL | {RunState.RUNNING}


async def together(*calls: Callable[[], Awaitable[Run | None]]) -> list[Run | None]:
    """The answers of calls made at the same time, in the order of the calls."""
    answers: list[Run | None] = [None] * len(calls)

    async def one(n: int) -> None:
        answers[n] = await calls[n]()

    async with anyio.create_task_group() as callers:
        for n in range(len(calls)):
            callers.start_soon(one, n)
    return answers
