"""What the state port promises to sweeps: that they find what is due or was left."""

from __future__ import annotations

from everturn.rules import limits
from everturn.rules.run_states import RunEvent
from everturn.storage.ports.rows import Wait
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import (
    LEASE,
    NOW,
    claim,
    create,
    environment,
    finish,
    makes,
    open_chat,
    register,
    start,
    suspend,
)


class TestSweeps:
    async def test_runs_that_wait_for_a_run_are_found(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        on_run = Wait(kind="run", ref="run_child")
        parked = await suspend(state, await start(state), on_run)

        assert await state.waiting_on_run("run_child") == (parked,)
        assert await state.waiting_on_run("run_other") == ()
        await state.wake_run("run_c1", now_ms=NOW)
        assert await state.waiting_on_run("run_child") == ()

    async def test_runs_are_due_when_their_wait_is_over(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        for n, until in enumerate((NOW + 20, NOW + 10, None)):
            await create(state, env, f"run_c{n}")
            await suspend(state, await start(state), Wait(kind="until", until_ms=until))

        assert await state.due_runs(now_ms=NOW + 9, limit=5) == ()
        due = await state.due_runs(now_ms=NOW + 20, limit=5)
        assert [run.id for run in due] == ["run_c1", "run_c0"]
        assert len(await state.due_runs(now_ms=NOW + 20, limit=1)) == 1

    async def test_the_next_due_time_counts_waits_and_delayed_runs(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        assert await state.next_due_ms(now_ms=NOW) is None
        await create(state, env, "run_c1")
        await suspend(state, await start(state), Wait(kind="until", until_ms=NOW + 20))
        assert await state.next_due_ms(now_ms=NOW) == NOW + 20

        await create(state, env, "run_c2", not_before_ms=NOW + 10)

        assert await state.next_due_ms(now_ms=NOW) == NOW + 10
        # From then on it waits for a worker, and must not hide what is due next.
        assert await state.next_due_ms(now_ms=NOW + 10) == NOW + 20

    async def test_claims_that_nobody_confirmed_are_found(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        await create(state, env, "run_c2", not_before_ms=NOW + 5)
        late = await claim(state)
        await claim(state, now_ms=NOW + 5)

        assert await state.unstarted_runs(claimed_before_ms=NOW - 1, now_ms=NOW) == ()
        assert await state.unstarted_runs(claimed_before_ms=NOW, now_ms=NOW) == (late,)
        await state.start_run("run_c1", fence=late.fence, now_ms=NOW)
        assert await state.unstarted_runs(claimed_before_ms=NOW, now_ms=NOW) == ()

    async def test_what_was_claimed_or_queued_before_the_clock_was_set_back_counts_as_old(
        self, state: StateStore
    ) -> None:
        """An hour's jump must not hide a run from its sweep for an hour."""
        env = await environment(state)
        await register(state, env, "w1", version="v1", lease_until_ms=LEASE + 10**9)
        await open_chat(state, env)
        run = await claim(state)
        ahead = NOW - limits.CLOCK_AHEAD_MS

        assert await state.unstarted_runs(claimed_before_ms=0, now_ms=ahead) == ()
        assert await state.unstarted_runs(claimed_before_ms=0, now_ms=ahead - 1) == (run,)
        await state.remove_worker("w1")
        await state.requeue_run(run.id, RunEvent.INTERRUPT, now_ms=NOW)
        await register(state, env, "w2", version="v2", lease_until_ms=LEASE + 10**9)
        assert await state.stranded_runs(queued_before_ms=0, now_ms=ahead) == ()
        stranded = await state.stranded_runs(queued_before_ms=0, now_ms=ahead - 1)
        assert [one.id for one in stranded] == [run.id]

    async def test_runs_of_workers_that_are_gone_are_orphans(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, "w1")
        await register(state, env, "w2")
        for n in range(3):
            await create(state, env, f"run_c{n}")
        await suspend(state, await start(state, "w1"))
        running = await start(state, "w1")
        await start(state, "w2")
        assert await state.orphaned_runs() == ()

        await state.remove_worker("w1")

        orphans = await state.orphaned_runs()
        assert {run.id for run in orphans} == {"run_c0", "run_c1"}
        await finish(state, running.id)
        await state.requeue_run("run_c0", RunEvent.INTERRUPT, now_ms=NOW)
        assert await state.orphaned_runs() == ()

    async def test_a_run_pinned_to_a_version_nobody_serves_is_stranded(
        self, state: StateStore
    ) -> None:
        """Rulings §1.19."""
        env = await environment(state)
        await register(state, env, "w1", version="v1")
        await open_chat(state, env)
        await create(state, env, "run_plain")
        for _ in range(2):
            await start(state)
        await state.remove_worker("w1")
        for run_id in ("run_c1", "run_plain"):
            await state.requeue_run(run_id, RunEvent.INTERRUPT, now_ms=NOW)

        assert await state.stranded_runs(queued_before_ms=NOW, now_ms=NOW) == ()
        await register(state, env, "w2", version="v2")
        stranded = await state.stranded_runs(queued_before_ms=NOW, now_ms=NOW)
        assert [run.id for run in stranded] == ["run_c1"]
        assert await state.stranded_runs(queued_before_ms=NOW - 1, now_ms=NOW) == ()
        await register(state, env, "w3", version="v1")
        assert await state.stranded_runs(queued_before_ms=NOW, now_ms=NOW) == ()

    async def test_runs_far_past_their_duration_are_overdue(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, lease_until_ms=LEASE + 10**9)
        await create(state, env, "run_c1", max_duration_s=10)
        await create(state, env, "run_c2")
        await start(state)
        await start(state)

        assert await state.overdue_runs(now_ms=NOW + 70_000) == ()
        assert [r.id for r in await state.overdue_runs(now_ms=NOW + 70_001)] == ["run_c1"]

    async def test_runs_that_their_session_has_left_behind_are_superseded(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        for n in range(4):
            external_id = f"chat-{n}"
            await open_chat(
                state, env, f"run_c{n}", session_id=f"session_c{n}", external_id=external_id
            )
        parked = await suspend(state, await start(state))
        until = await suspend(state, await start(state), Wait(kind="until", until_ms=NOW + 9))
        running = await start(state)
        assert await state.superseded_runs(limit=9) == ()

        for n in range(4):
            swapped = await state.continue_session(
                f"session_c{n}",
                replacing=f"run_c{n}",
                make_run=makes(f"run_d{n}"),
                reason="manual",
                now_ms=NOW,
            )
            assert swapped is not None

        found = [run.id for run in await state.superseded_runs(limit=9)]
        assert found == [parked.id, "run_c3"]
        assert not {until.id, running.id} & set(found)
        assert [run.id for run in await state.superseded_runs(limit=1)] == [parked.id]
