"""What the state port promises of environments, keys, workers, claims and slots."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from everturn.errors import Conflict, Unavailable
from everturn.rules.run_states import SLOTTED, RunEvent, RunState
from everturn.storage.ports.rows import ApiKey, Environment, Run, RunFilter, TaskVersion, Worker
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import (
    LEASE,
    NOW,
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


class TestEnvironments:
    async def test_a_slug_names_one_environment(self, state: StateStore) -> None:
        made = await state.ensure_environment("preview/x", now_ms=NOW, id="cfixed")
        again = await state.ensure_environment("preview/x", now_ms=NOW + 1, id="cother")

        assert made == again == Environment(id="cfixed", slug="preview/x", created_at_ms=NOW)
        assert made.type == "preview"
        assert await state.environment("cfixed") == made
        assert await state.environment("cother") is None
        assert await state.environments() == (made,)

    async def test_callers_at_once_converge(self, state: StateStore) -> None:
        found: set[str] = set()

        async def ensure() -> None:
            found.add(await environment(state))

        async with anyio.create_task_group() as callers:
            for _ in range(10):
                callers.start_soon(ensure)

        assert len(found) == 1


class TestKeys:
    def _key(self, environment_id: str, n: int = 1, **fields: object) -> ApiKey:
        key = ApiKey(
            id=f"key_{n}",
            environment_id=environment_id,
            sha256=f"sha{n}",
            ciphertext=bytes([0, 255, n]),
            hint="tr_dev_ab…",
            created_at_ms=NOW + n,
        )
        return msgspec.structs.replace(key, **fields)

    async def test_a_key_is_found_by_its_hash_and_listed_newest_first(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        one, two = self._key(env, 1), self._key(env, 2)
        await state.add_key(one)
        await state.add_key(two)

        assert await state.key_by_sha256("sha1") == one
        assert await state.key_by_sha256("sha3") is None
        assert await state.keys(env) == (two, one)

    async def test_a_known_key_is_left_as_it_is(self, state: StateStore) -> None:
        env = await environment(state)
        other = await environment(state, "prod")
        await state.add_key(self._key(env))

        await state.add_key(self._key(env, id="key_other", hint="other"))

        assert await state.keys(env) == (self._key(env),)
        with pytest.raises(Conflict):
            await state.add_key(self._key(other))

    async def test_a_key_is_revoked_once_and_in_its_own_environment(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        other = await environment(state, "prod")
        await state.add_key(self._key(env))

        assert not await state.revoke_key(other, "key_1", now_ms=NOW)
        assert await state.revoke_key(env, "key_1", now_ms=NOW + 9)
        assert not await state.revoke_key(env, "key_1", now_ms=NOW + 10)
        assert await state.keys(env) == (self._key(env, revoked_at_ms=NOW + 9),)

    async def test_a_revoked_key_can_be_revoked_as_of_an_earlier_time(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await state.add_key(self._key(env))

        assert await state.revoke_key(env, "key_1", now_ms=NOW + 9)
        assert await state.revoke_key(env, "key_1", now_ms=NOW + 5)
        assert await state.keys(env) == (self._key(env, revoked_at_ms=NOW + 5),)


class TestWorkers:
    async def test_a_lease_is_renewed_until_the_worker_is_removed(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)

        assert await state.renew_worker("w1", lease_until_ms=LEASE + 5)
        worker = await state.worker("w1")
        assert worker is not None
        assert worker.lease_until_ms == LEASE + 5
        await state.remove_worker("w1")
        assert not await state.renew_worker("w1", lease_until_ms=LEASE + 9)
        assert await state.worker("w1") is None

    async def test_workers_are_live_until_their_lease_ends(self, state: StateStore) -> None:
        env = await environment(state)
        other = await environment(state, "prod")
        await register(state, env, "w1", lease_until_ms=NOW + 10)
        await register(state, other, "w2", lease_until_ms=NOW + 20)

        assert [w.id for w in await state.live_workers(env, now_ms=NOW + 9)] == ["w1"]
        assert await state.live_workers(env, now_ms=NOW + 10) == ()
        assert [w.id for w in await state.expired_workers(now_ms=NOW + 10)] == ["w1"]

    async def test_a_removed_worker_answers_the_runs_it_holds(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        for n in range(3):
            await create(state, env, f"run_c{n}")
        parked = await suspend(state, await start(state))
        running = await start(state)
        done = await start(state)
        await finish(state, done.id)

        assert {run.id for run in await state.held_runs("w1")} == {parked.id, running.id}
        assert await state.held_runs("w2") == ()
        named = {(h.run_id, h.fence, h.state) for h in await state.holdings("w1")}
        assert named == {(run.id, run.fence, run.state) for run in (parked, running)}
        held = await state.remove_worker("w1")

        assert {run.id: run for run in held} == {parked.id: parked, running.id: running}
        assert await get(state, running.id) == running

    async def test_tasks_are_as_their_newest_version_declares_them(self, state: StateStore) -> None:
        env = await environment(state)

        async def declare(worker_id: str, version: str, *tasks: TaskVersion) -> None:
            worker = Worker(
                id=worker_id,
                environment_id=env,
                version=version,
                server_id="s",
                lease_until_ms=LEASE,
                registered_at_ms=NOW,
            )
            await state.register_worker(worker, tasks, {}, now_ms=NOW)

        old = TaskVersion(task_id="a", config={"n": 1})
        kept = TaskVersion(task_id="b", kind="agent", queue="q", queue_limit=3)
        new = TaskVersion(task_id="a", config={"n": 2})
        await declare("w1", "v1", old, kept)
        await declare("w2", "v2", new)
        # A worker that only connects again does not make its version the newest.
        await declare("w1", "v1", old, kept)

        assert await state.task(env, "a") == new
        assert await state.tasks(env) == (new, kept)
        assert await state.task(env, "c") is None
        assert await state.tasks(await environment(state, "prod")) == ()


class TestClaims:
    async def test_a_claim_pins_fences_and_counts(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")

        run = await claim(state, now_ms=NOW + 3)

        assert run == await get(state, "run_c1")
        assert (run.state, run.fence, run.attempt) == (RunState.CLAIMED, 1, 1)
        assert (run.version, run.worker_id, run.started_at_ms) == ("v1", "w1", NOW + 3)
        assert await state.claim_runs("w1", limit=5, now_ms=NOW) == ()

    async def test_fences_of_a_session_rise_over_its_runs(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await open_chat(state, env)
        first = await start(state)
        await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW)
        second = await start(state)
        await finish(state, "run_c1")
        await open_chat(state, env, "run_c2")
        third = await start(state)

        assert [run.fence for run in (first, second, third)] == [1, 2, 3]
        assert (await get_session(state, env)).fence == 3

    async def test_the_oldest_place_goes_first_and_priority_moves_it(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_late", queued_at_ms=NOW + 5)
        await create(state, env, "run_soon", queued_at_ms=NOW + 1)
        await create(state, env, "run_urgent", queued_at_ms=NOW + 9, priority_ms=20)

        claimed = await state.claim_runs("w1", limit=2, now_ms=NOW)

        assert [run.id for run in claimed] == ["run_urgent", "run_soon"]

    async def test_a_delayed_run_waits_for_its_time(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1", not_before_ms=NOW + 10)

        assert await state.claim_runs("w1", limit=1, now_ms=NOW + 9) == ()
        assert (await claim(state, now_ms=NOW + 10)).id == "run_c1"

    async def test_a_worker_gets_its_own_tasks_and_environment_only(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        other = await environment(state, "prod")
        await register(state, env, tasks=("chat",))
        await create(state, env, "run_c1", task_id="else")
        await create(state, other, "run_c2")

        assert await state.claim_runs("w1", limit=5, now_ms=NOW) == ()

    async def test_a_superseded_run_is_never_claimed(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await open_chat(state, env)
        await state.continue_session(
            "session_c1",
            replacing="run_c1",
            make_run=makes("run_c2"),
            reason="manual",
            now_ms=NOW,
        )

        claimed = await state.claim_runs("w1", limit=5, now_ms=NOW)

        assert [run.id for run in claimed] == ["run_c2"]

    @pytest.mark.parametrize("why", ["unknown", "expired", "draining"])
    async def test_nothing_for_a_worker_that_may_not(self, state: StateStore, why: str) -> None:
        env = await environment(state)
        await register(state, env, lease_until_ms=NOW if why == "expired" else LEASE)
        await create(state, env, "run_c1")
        if why == "draining":
            await state.set_draining("w1")

        worker_id = "w9" if why == "unknown" else "w1"
        assert await state.claim_runs(worker_id, limit=5, now_ms=NOW) == ()

    async def test_a_draining_worker_gets_its_resuming_runs(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, "w1")
        await register(state, env, "w2")
        await create(state, env, "run_c1")
        await suspend(state, await start(state, "w1"))
        await state.wake_run("run_c1", now_ms=NOW, take_slot=False)
        await state.set_draining("w1")

        assert await state.claim_runs("w2", limit=5, now_ms=NOW) == ()
        [run] = await state.claim_runs("w1", limit=5, now_ms=NOW)
        assert (run.id, run.state) == ("run_c1", RunState.RUNNING)

    async def test_two_claimers_never_get_the_same_run(self, state: StateStore) -> None:
        env = await environment(state)
        for n in range(4):
            await register(state, env, f"w{n}")
        for n in range(40):
            await create(state, env, f"run_c{n}")
        claimed: list[Run] = []

        async def claim_some(n: int) -> None:
            while got := await state.claim_runs(f"w{n % 4}", limit=3, now_ms=NOW):
                claimed.extend(got)

        async with anyio.create_task_group() as callers:
            for n in range(8):
                callers.start_soon(claim_some, n)
        claimed.extend(await state.claim_runs("w0", limit=40, now_ms=NOW))

        assert sorted(run.id for run in claimed) == sorted(f"run_c{n}" for n in range(40))


class TestVersions:
    async def test_an_unpinned_run_goes_to_the_newest_live_version(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, "w1", version="v1")
        await register(state, env, "w2", version="v2", lease_until_ms=NOW + 10)
        await create(state, env, "run_c1")

        assert await state.claim_runs("w1", limit=1, now_ms=NOW) == ()
        assert (await claim(state, "w2")).version == "v2"

        await create(state, env, "run_c2")
        assert (await claim(state, "w1", now_ms=NOW + 10)).version == "v1"

    async def test_a_newer_version_that_drains_or_lacks_the_task_does_not_count(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env, "w1", version="v1")
        await register(state, env, "w2", version="v2", tasks=("else",))
        await create(state, env, "run_c1")
        assert (await claim(state, "w1")).id == "run_c1"

        await register(state, env, "w3", version="v3")
        await state.set_draining("w3")
        await create(state, env, "run_c2")
        assert (await claim(state, "w1")).id == "run_c2"

    async def test_a_pinned_run_stays_on_its_version(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, "w1", version="v1")
        await create(state, env, "run_c1")
        await start(state, "w1")
        await state.requeue_run("run_c1", RunEvent.INTERRUPT, now_ms=NOW)
        await create(state, env, "run_locked", lock_version="v1")
        await register(state, env, "w2", version="v2")

        assert await state.claim_runs("w2", limit=5, now_ms=NOW) == ()
        claimed = await state.claim_runs("w1", limit=5, now_ms=NOW)
        assert [run.id for run in claimed] == ["run_c1", "run_locked"]

    async def test_a_worker_that_connects_again_does_not_make_its_version_the_newest(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env, "w1", version="v1")
        await register(state, env, "w2", version="v2")
        await state.remove_worker("w1")
        await register(state, env, "w1", version="v1")
        await create(state, env, "run_c1")

        assert await state.claim_runs("w1", limit=1, now_ms=NOW) == ()
        assert (await claim(state, "w2")).id == "run_c1"


class TestSlots:
    async def test_a_queue_never_has_more_than_its_limit(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, queues={"task/chat": 2})
        for n in range(5):
            await create(state, env, f"run_c{n}")

        first = await state.claim_runs("w1", limit=5, now_ms=NOW)
        assert [run.id for run in first] == ["run_c0", "run_c1"]
        assert await state.claim_runs("w1", limit=5, now_ms=NOW) == ()

        await finish(state, "run_c0", RunEvent.CANCEL)
        assert (await claim(state)).id == "run_c2"

    async def test_each_concurrency_key_has_the_whole_limit(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, queues={"task/chat": 1})
        for n in range(6):
            await create(state, env, f"run_c{n}", concurrency_key=("a", "b", None)[n % 3])

        claimed = await state.claim_runs("w1", limit=6, now_ms=NOW)

        assert {run.id for run in claimed} == {"run_c0", "run_c1", "run_c2"}

    async def test_a_full_queue_does_not_hide_the_others(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, queues={"narrow": 1, "paused": 0})
        for n in range(20):
            await create(state, env, f"run_n{n}", queue="narrow")
            await create(state, env, f"run_p{n}", queue="paused")
        await create(state, env, "run_last", queue="wide")

        claimed = await state.claim_runs("w1", limit=3, now_ms=NOW)

        assert [run.id for run in claimed] == ["run_n0", "run_last"]

    async def test_a_suspended_run_gives_its_slot_to_the_next(self, state: StateStore) -> None:
        """P-10."""
        env = await environment(state)
        await register(state, env, queues={"task/chat": 1})
        await create(state, env, "run_c1")
        await create(state, env, "run_c2")
        await suspend(state, await start(state))
        assert (await start(state)).id == "run_c2"

        woken = await state.wake_run("run_c1", now_ms=NOW)

        assert woken is not None
        assert woken.state is RunState.RESUMING
        assert await state.claim_runs("w1", limit=1, now_ms=NOW) == ()
        await finish(state, "run_c2")
        assert (await claim(state)).id == "run_c1"

    async def test_a_task_may_limit_its_own_queue(self, state: StateStore) -> None:
        env = await environment(state)
        worker = Worker(
            id="w1",
            environment_id=env,
            version="v1",
            server_id="s1",
            lease_until_ms=LEASE,
            registered_at_ms=NOW,
        )
        await state.register_worker(
            worker, [TaskVersion(task_id="chat", queue_limit=1)], {}, now_ms=NOW
        )
        await create(state, env, "run_c1")
        await create(state, env, "run_c2")

        assert len(await state.claim_runs("w1", limit=5, now_ms=NOW)) == 1

    async def test_concurrent_claimers_and_wakes_never_exceed_the_limit(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        for n in range(4):
            await register(state, env, f"w{n}", queues={"task/chat": 3})
        for n in range(30):
            await create(state, env, f"run_c{n}")
        most: list[int] = []
        left = 30

        async def slots_held() -> int:
            states = tuple(SLOTTED)
            page = await state.runs(env, RunFilter(states=states), limit=100)
            return len(page.items)

        async def work(worker_id: str) -> None:
            nonlocal left
            while left:
                for run in await state.claim_runs(worker_id, limit=5, now_ms=NOW):
                    most.append(await slots_held())
                    if run.state is RunState.CLAIMED:
                        await state.start_run(run.id, fence=run.fence, now_ms=NOW)
                        await suspend(state, await get(state, run.id))
                        woken = await state.wake_run(run.id, now_ms=NOW)
                        assert woken is not None
                        most.append(await slots_held())
                        if woken.state is RunState.RESUMING:
                            continue
                    await finish(state, run.id)
                    left -= 1

        with anyio.fail_after(60):
            async with anyio.create_task_group() as workers:
                for n in range(4):
                    workers.start_soon(work, f"w{n}")

        assert max(most) == 3

    async def test_the_environment_has_a_limit_of_its_own(self, small_state: StateStore) -> None:
        state = small_state
        env = await environment(state)
        other = await environment(state, "prod")
        for n in range(4):
            await register(state, env, f"w{n}")
            await register(state, other, f"o{n}")
        for n in range(8):
            await create(state, env, f"run_c{n}", queue=f"q{n}")
            await create(state, other, f"run_o{n}", queue=f"q{n}")
        claimed: list[Run] = []

        async def claim_all(worker_id: str) -> None:
            claimed.extend(await state.claim_runs(worker_id, limit=8, now_ms=NOW))

        async with anyio.create_task_group() as callers:
            for n in range(4):
                callers.start_soon(claim_all, f"w{n}")
                callers.start_soon(claim_all, f"o{n}")
        for worker_id in ("w0", "o0"):
            await claim_all(worker_id)

        assert sum(run.environment_id == env for run in claimed) == 3
        assert sum(run.environment_id == other for run in claimed) == 3


class TestClosing:
    async def test_later_calls_say_that_it_is_unavailable(self, state: StateStore) -> None:
        await state.close()

        with pytest.raises(Unavailable):
            await state.environments()
        with pytest.raises(Unavailable):
            await state.ensure_environment("dev", now_ms=NOW)
