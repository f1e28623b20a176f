"""What the state port promises of runs: making them, finding them, what they collect."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from everturn.errors import InvalidRequest, Unprocessable
from everturn.rules.run_states import KEY_FREEING, RunEvent, RunState
from everturn.storage.ports.rows import Run, RunFilter
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import (
    NOW,
    create,
    environment,
    finish,
    get,
    new_run,
    register,
    start,
    suspend,
)

#: How a fresh run gets to each final state.
ENDS = [
    (RunEvent.COMPLETE, RunState.COMPLETED),
    (RunEvent.FAIL, RunState.FAILED),
    (RunEvent.CANCEL, RunState.CANCELED),
    (RunEvent.CRASH, RunState.CRASHED),
    (RunEvent.BREAK, RunState.SYSTEM_FAILURE),
    (RunEvent.TIME_OUT, RunState.TIMED_OUT),
]


class TestCreatingARun:
    async def test_it_is_queued_with_everything_it_was_given(self, state: StateStore) -> None:
        env = await environment(state)
        new = new_run(
            "run_c1",
            payload=b'{"a":1}',
            queue="q",
            payload_type="application/super+json",
            concurrency_key="tenant",
            priority_ms=3000,
            not_before_ms=NOW + 5,
            queued_at_ms=NOW - 5,
            lock_version="v7",
            max_attempts=4,
            max_duration_s=60,
            machine="small-1x",
            tags=("a", "b"),
            metadata=b"{}",
            idempotency_key="k",
            idempotency_expires_ms=NOW + 100,
            idempotency_options={"key": "k", "scope": "run"},
            request_key="r",
            parent_run_id="run_p",
            root_run_id="run_r",
            depth=2,
            trigger_function="triggerAndWait",
            is_test=True,
        )

        run, made = await state.create_run(env, new, now_ms=NOW)

        assert made
        assert run == await state.run(env, "run_c1") == await get(state, "run_c1")
        for name in new.__struct_fields__:
            if hasattr(run, name):
                assert getattr(run, name) == getattr(new, name), name
        assert (run.state, run.version, run.fence, run.attempt) == (RunState.QUEUED, "v7", 0, 0)
        assert (run.created_at_ms, run.updated_at_ms) == (NOW, NOW)

    async def test_its_place_in_the_queue_is_its_creation_unless_inherited(
        self, state: StateStore
    ) -> None:
        env = await environment(state)

        assert (await create(state, env, "run_c1")).queued_at_ms == NOW
        assert (await create(state, env, "run_c2", queued_at_ms=1)).queued_at_ms == 1

    async def test_children_are_found_by_their_parent(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_p")
        await create(state, env, "run_a", parent_run_id="run_p")
        await create(state, env, "run_b", parent_run_id="run_p")

        assert [run.id for run in await state.children("run_p", limit=9)] == ["run_a", "run_b"]
        assert await state.children("run_a", limit=9) == ()
        assert [run.id for run in await state.children("run_p", limit=1)] == ["run_a"]

    async def test_children_are_read_without_what_they_carry(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        carried = {"payload": b"[1]", "boot_input": b"{}", "metadata": b'{"a":1}', "tags": ("t",)}
        await create(state, env, "run_a", parent_run_id="run_p", **carried)
        await start(state)
        ended = await finish(state, "run_a", output=b"2", output_type="application/json")

        left = {"payload": b"", "boot_input": None, "output": None}
        assert await state.children("run_p", limit=9) == (msgspec.structs.replace(ended, **left),)

    async def test_children_that_are_alive_are_found_behind_many_that_are_not(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        for name in "abc":
            await create(state, env, f"run_{name}", parent_run_id="run_p")
        await finish(state, (await start(state)).id)
        await suspend(state, await start(state))

        alive = await state.children("run_p", limit=2, alive=True)

        assert [run.id for run in alive] == ["run_b", "run_c"]


class TestIdempotencyKeys:
    async def test_a_second_create_finds_the_first_run(self, state: StateStore) -> None:
        env = await environment(state)
        first = await create(state, env, "run_c1", idempotency_key="k")

        again = await state.create_run(
            env, new_run("run_c2", idempotency_key="k", payload=b"other"), now_ms=NOW
        )

        assert again == (first, False)
        assert await state.run(env, "run_c2") is None

    async def test_keys_of_other_tasks_and_environments_are_others(self, state: StateStore) -> None:
        env = await environment(state)
        other = await environment(state, "prod")
        await create(state, env, "run_c1", idempotency_key="k", request_key="r")

        await create(state, env, "run_c2", idempotency_key="k", task_id="else")
        await create(state, other, "run_c3", idempotency_key="k", request_key="r")

    async def test_a_key_is_free_when_its_time_is_over(self, state: StateStore) -> None:
        env = await environment(state)
        until = NOW + 100
        await create(state, env, "run_c1", idempotency_key="k", idempotency_expires_ms=until)

        _, early = await state.create_run(
            env, new_run("run_c2", idempotency_key="k"), now_ms=until - 1
        )
        run, late = await state.create_run(
            env, new_run("run_c3", idempotency_key="k"), now_ms=until
        )
        found, _ = await state.create_run(env, new_run("run_c4", idempotency_key="k"), now_ms=until)

        assert (early, late) == (False, True)
        assert found == run

    @pytest.mark.parametrize(("event", "end"), ENDS)
    async def test_a_key_is_free_when_its_run_failed_and_kept_otherwise(
        self, state: StateStore, event: RunEvent, end: RunState
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1", idempotency_key="k")
        await start(state)
        assert (await finish(state, "run_c1", event)).state is end

        _, made = await state.create_run(env, new_run("run_c2", idempotency_key="k"), now_ms=NOW)

        assert made is (end in KEY_FREEING)

    async def test_an_expired_run_frees_its_key(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", idempotency_key="k")
        await finish(state, "run_c1", RunEvent.EXPIRE)

        await create(state, env, "run_c2", idempotency_key="k")

    async def test_a_request_key_answers_the_first_run_however_it_ended(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", request_key="r")
        ended = await finish(state, "run_c1", RunEvent.BREAK)

        again = await state.create_run(env, new_run("run_c2", request_key="r"), now_ms=NOW)

        assert again == (ended, False)

    async def test_of_many_at_once_one_makes_the_run(self, state: StateStore) -> None:
        env = await environment(state)
        answers: list[tuple[Run, bool]] = []

        async def create_one(n: int) -> None:
            new = new_run(f"run_c{n}", idempotency_key="k", request_key=f"r{n}")
            answers.append(await state.create_run(env, new, now_ms=NOW))

        async with anyio.create_task_group() as callers:
            for n in range(20):
                callers.start_soon(create_one, n)

        assert sum(made for _, made in answers) == 1
        assert len({run.id for run, _ in answers}) == 1


class TestWhatARunCollects:
    async def test_metadata_is_changed_from_what_it_was(self, state: StateStore) -> None:
        env = await environment(state)
        other = await environment(state, "prod")
        await create(state, env, "run_c1")

        async def add(_: int) -> None:
            await state.set_metadata(env, "run_c1", lambda old: (old or b"") + b"x", now_ms=NOW + 1)

        async with anyio.create_task_group() as callers:
            for n in range(10):
                callers.start_soon(add, n)

        run = await get(state, "run_c1")
        assert (run.metadata, run.updated_at_ms) == (b"x" * 10, NOW + 1)
        assert await state.set_metadata(other, "run_c1", lambda _: b"", now_ms=NOW) is None

    async def test_tags_are_a_union_in_order_up_to_ten(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", tags=("b",))

        run = await state.add_tags(env, "run_c1", ["a", "b", "a"], now_ms=NOW)

        assert run is not None
        assert run.tags == ("b", "a")
        with pytest.raises(Unprocessable):
            await state.add_tags(env, "run_c1", [f"t{n}" for n in range(9)], now_ms=NOW)
        assert await get(state, "run_c1") == run
        found = await state.runs(env, RunFilter(tags=("a",)), limit=5)
        assert found.items == (run,)
        other = await environment(state, "prod")
        assert await state.add_tags(other, "run_c1", ["z"], now_ms=NOW) is None

    async def test_the_journal_keeps_the_first_result_of_a_step(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        run = await start(state)

        assert await state.journal_put("run_c1", 1, "b", b"2", fence=run.fence)
        assert await state.journal_put("run_c1", 0, "a", b"1", fence=run.fence)
        assert await state.journal_put("run_c1", 0, "a", b"1", fence=run.fence)
        assert not await state.journal_put("run_c1", 2, "c", b"3", fence=run.fence - 1)

        assert await state.journal("run_c1") == ((0, "a", b"1"), (1, "b", b"2"))
        await finish(state, "run_c1")
        assert not await state.journal_put("run_c1", 3, "d", b"4", fence=run.fence)

    async def test_the_boot_input_is_cleared(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", boot_input=b"hi")

        await state.clear_boot_input("run_c1")

        assert (await get(state, "run_c1")).boot_input is None


class TestListingRuns:
    async def test_filters_narrow_the_list(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env, tasks=("even", "odd"))
        for n in range(4):
            await create(
                state,
                env,
                f"run_c{n}",
                task_id="even" if n % 2 == 0 else "odd",
                tags=(f"tag{n}",),
                lock_version=f"v{n}",
                queue=f"q{n}",
                session_id="session_c1" if n == 3 else None,
                is_test=n == 0,
                now_ms=NOW + n,
            )
        await finish(state, "run_c2", RunEvent.CANCEL)
        cases = {
            "3210": RunFilter(),
            "2": RunFilter(states=(RunState.CANCELED,)),
            "310": RunFilter(states=(RunState.QUEUED, RunState.RUNNING)),
            "20": RunFilter(task_ids=("even",)),
            "21": RunFilter(tags=("tag1", "tag2")),
            "1": RunFilter(versions=("v1",)),
            "30": RunFilter(queues=("q0", "q3")),
            "3": RunFilter(session_id="session_c1"),
            "0": RunFilter(is_test=True),
            "321": RunFilter(is_test=False),
            "32": RunFilter(created_from_ms=NOW + 2),
            "10": RunFilter(created_to_ms=NOW + 1),
        }
        for expected, where in cases.items():
            page = await state.runs(env, where, limit=10)
            assert "".join(run.id[-1] for run in page.items) == expected, where

    async def test_pages_run_newest_first(self, state: StateStore) -> None:
        env = await environment(state)
        for n in range(3):
            await create(state, env, f"run_c{n}")

        first = await state.runs(env, RunFilter(), limit=2)
        second = await state.runs(env, RunFilter(), limit=2, after=first.next)
        back = await state.runs(env, RunFilter(), limit=2, before=second.previous)

        assert [run.id for run in first.items] == ["run_c2", "run_c1"]
        assert [run.id for run in second.items] == ["run_c0"]
        assert (second.next, second.previous) == (None, "run_c0")
        assert back.items == first.items
        with pytest.raises(InvalidRequest):
            await state.runs(env, RunFilter(), limit=2, after="run_none")
        with pytest.raises(InvalidRequest):
            await state.runs(env, RunFilter(), limit=2, after="run_c0", before="run_c1")

    async def test_other_environments_see_none_of_it(self, state: StateStore) -> None:
        """P-12."""
        env = await environment(state)
        other = await environment(state, "prod")
        await create(state, env, "run_c1")

        assert await state.run(other, "run_c1") is None
        assert (await state.runs(other, RunFilter(), limit=5)).items == ()
        with pytest.raises(InvalidRequest):
            await state.runs(other, RunFilter(), limit=5, after="run_c1")
