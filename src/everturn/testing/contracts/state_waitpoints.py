"""Wait tokens, batches, and what runs gained with them: the contract of both ports."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.errors import InvalidRequest
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.batches import Batch, NewBatch
from everturn.storage.ports.rows import RunFilter, Wait
from everturn.storage.ports.state import StateStore
from everturn.storage.ports.waitpoints import NewWaitpoint, Waitpoint, WaitpointFilter
from everturn.testing.contracts.state_scene import (
    NOW,
    create,
    environment,
    register,
    start,
    suspend,
)


async def token(
    state: StateStore, environment_id: str, token_id: str = "waitpoint_c1", **fields: Any
) -> Waitpoint:
    now_ms = fields.pop("now_ms", NOW)
    new = NewWaitpoint(id=token_id, **fields)
    made, created = await state.create_waitpoint(environment_id, new, now_ms=now_ms)
    assert created
    return made


async def listed(state: StateStore, environment_id: str, **where: Any) -> list[str]:
    page = await state.waitpoints(environment_id, WaitpointFilter(**where), limit=10)
    return [row.id for row in page.items]


class TestWaitTokens:
    async def test_a_token_waits_until_it_is_completed_once(self, state: StateStore) -> None:
        env = await environment(state)
        made = await token(state, env, tags=("a", "b"), timeout_at_ms=NOW + 50)

        first = await state.complete_waitpoint(
            env, made.id, now_ms=NOW + 1, output=b'{"json":1}', output_type="application/json"
        )
        again = await state.complete_waitpoint(
            env, made.id, now_ms=NOW + 2, output=b"other", output_type="text/plain"
        )

        assert made.status == "WAITING"
        assert made.tags == ("a", "b")
        assert first is not None
        assert first[1] is True
        assert again == (first[0], False)
        stored = await state.waitpoint(env, made.id)
        assert stored == first[0]
        assert stored is not None
        assert stored.status == "COMPLETED"
        assert (stored.output, stored.completed_at_ms) == (b'{"json":1}', NOW + 1)

    async def test_completing_a_token_that_timed_out_changes_nothing(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        made = await token(state, env)
        late = await state.complete_waitpoint(env, made.id, now_ms=NOW, timed_out=True)
        again = await state.complete_waitpoint(env, made.id, now_ms=NOW, output=b"1")

        assert late is not None
        assert late[0].status == "TIMED_OUT"
        assert again == (late[0], False)

    async def test_a_token_of_another_environment_does_not_exist(self, state: StateStore) -> None:
        env, other = await environment(state), await environment(state, "prod")
        made = await token(state, env)

        assert await state.waitpoint(other, made.id) is None
        assert await state.waitpoint(None, made.id) == made
        assert await state.complete_waitpoint(other, made.id, now_ms=NOW) is None
        assert await listed(state, other) == []

    async def test_an_idempotency_key_finds_its_token_until_its_time_is_over(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        keyed: dict[str, Any] = {"idempotency_key": "k", "idempotency_expires_ms": NOW + 10}
        made = await token(state, env, **keyed)
        await state.complete_waitpoint(env, made.id, now_ms=NOW)

        new = NewWaitpoint(id="waitpoint_c2", idempotency_key="k")
        found, created = await state.create_waitpoint(env, new, now_ms=NOW + 9)
        later, created_later = await state.create_waitpoint(env, new, now_ms=NOW + 10)

        assert (found.id, created) == (made.id, False)
        assert found.status == "COMPLETED"
        assert (later.id, created_later) == ("waitpoint_c2", True)
        assert await listed(state, env, idempotency_key="k") == ["waitpoint_c2", made.id]

    async def test_a_repeated_request_finds_its_token(self, state: StateStore) -> None:
        env = await environment(state)
        made = await token(state, env, request_key="r")
        again = NewWaitpoint(id="waitpoint_c2", request_key="r")

        assert await state.create_waitpoint(env, again, now_ms=NOW) == (made, False)

    async def test_of_many_creates_with_one_key_one_makes_the_token(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        found: list[tuple[str, bool]] = []

        async def make(number: int) -> None:
            new = NewWaitpoint(id=f"waitpoint_c{number}", idempotency_key="k")
            made, created = await state.create_waitpoint(env, new, now_ms=NOW)
            found.append((made.id, created))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(make, number)

        assert len({one for one, _ in found}) == 1
        assert sum(created for _, created in found) == 1

    async def test_lists_are_filtered_and_paged_newest_first(self, state: StateStore) -> None:
        env = await environment(state)
        for number in range(4):
            tags = ("even",) if number % 2 == 0 else ("odd", "x")
            await token(state, env, f"waitpoint_c{number}", tags=tags, now_ms=NOW + number)
        await state.complete_waitpoint(env, "waitpoint_c1", now_ms=NOW)
        await state.complete_waitpoint(env, "waitpoint_c2", now_ms=NOW, timed_out=True)
        page = await state.waitpoints(env, WaitpointFilter(), limit=2)
        rest = await state.waitpoints(env, WaitpointFilter(), limit=2, after=page.next)

        assert [row.id for row in page.items] == ["waitpoint_c3", "waitpoint_c2"]
        assert [row.id for row in rest.items] == ["waitpoint_c1", "waitpoint_c0"]
        assert rest.next is None
        assert await listed(state, env, statuses=("COMPLETED",)) == ["waitpoint_c1"]
        assert await listed(state, env, statuses=("TIMED_OUT", "COMPLETED")) == [
            "waitpoint_c2",
            "waitpoint_c1",
        ]
        assert await listed(state, env, statuses=("WAITING",), tags=("odd", "even")) == [
            "waitpoint_c3",
            "waitpoint_c0",
        ]
        assert await listed(state, env, created_from_ms=NOW + 1, created_to_ms=NOW + 2) == [
            "waitpoint_c2",
            "waitpoint_c1",
        ]
        with pytest.raises(InvalidRequest):
            await state.waitpoints(env, WaitpointFilter(), limit=2, after="waitpoint_none")

    async def test_due_tokens_are_those_whose_time_has_passed(self, state: StateStore) -> None:
        env = await environment(state)
        await token(state, env, "waitpoint_c1", timeout_at_ms=NOW + 20)
        await token(state, env, "waitpoint_c2", timeout_at_ms=NOW + 10)
        await token(state, env, "waitpoint_c3")

        due = await state.due_waitpoints(now_ms=NOW + 20, limit=10)

        assert [row.id for row in due] == ["waitpoint_c2", "waitpoint_c1"]
        assert await state.due_waitpoints(now_ms=NOW + 9, limit=10) == ()
        assert await state.next_due_ms(now_ms=NOW) == NOW + 10
        await state.complete_waitpoint(env, "waitpoint_c2", now_ms=NOW, timed_out=True)
        assert await state.next_due_ms(now_ms=NOW) == NOW + 20
        assert len(await state.due_waitpoints(now_ms=NOW + 20, limit=10)) == 1

    async def test_runs_waiting_on_a_token_are_found(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        await create(state, env, "run_c2")
        one = await suspend(state, await start(state), Wait(kind="token", ref="waitpoint_c1"))
        await suspend(state, await start(state), Wait(kind="run", ref="waitpoint_c1"))

        assert [run.id for run in await state.waiting_on_token("waitpoint_c1")] == [one.id]
        await state.wake_run(one.id, now_ms=NOW)
        assert await state.waiting_on_token("waitpoint_c1") == ()


async def batch(
    state: StateStore, environment_id: str, batch_id: str = "batch_c1", **fields: Any
) -> Batch:
    new = NewBatch(id=batch_id, **{"run_count": 2, **fields})
    made, created = await state.create_batch(environment_id, new, now_ms=NOW)
    assert created
    return made


class TestBatches:
    async def test_a_batch_is_sealed_by_its_last_item(self, state: StateStore) -> None:
        env = await environment(state)
        made = await batch(state, env)
        await create(state, env, "run_c1", batch_id=made.id)
        await create(state, env, "run_c2", batch_id=made.id)

        assert await state.add_batch_item(env, made.id, 1, "run_c2", now_ms=NOW + 1)
        half = await state.batch(env, made.id)
        assert await state.add_batch_item(env, made.id, 0, "run_c1", now_ms=NOW + 2)
        whole = await state.batch(env, made.id)

        assert half is not None
        assert half.sealed_at_ms is None
        assert half.updated_at_ms == NOW + 1
        assert whole is not None
        assert whole.sealed_at_ms == NOW + 2
        assert await state.batch_items(made.id) == ((0, "run_c1"), (1, "run_c2"))
        assert [run.id for run in await state.batch_runs(env, made.id)] == ["run_c1", "run_c2"]

    async def test_an_index_is_taken_once(self, state: StateStore) -> None:
        env = await environment(state)
        made = await batch(state, env)
        await state.add_batch_item(env, made.id, 0, "run_c1", now_ms=NOW)

        assert not await state.add_batch_item(env, made.id, 0, "run_c2", now_ms=NOW)
        assert await state.batch_items(made.id) == ((0, "run_c1"),)
        assert not await state.add_batch_item(env, "batch_none", 0, "run_c2", now_ms=NOW)

    async def test_last_items_added_at_once_seal_the_batch(self, state: StateStore) -> None:
        env = await environment(state)
        made = await batch(state, env, run_count=6)

        async def add(index: int) -> None:
            await state.add_batch_item(env, made.id, index, f"run_c{index}", now_ms=NOW + 5)

        async with anyio.create_task_group() as tasks:
            for index in range(6):
                tasks.start_soon(add, index)

        whole = await state.batch(env, made.id)
        assert whole is not None
        assert whole.sealed_at_ms == NOW + 5

    async def test_a_run_that_two_items_found_is_listed_for_both(self, state: StateStore) -> None:
        env = await environment(state)
        made = await batch(state, env)
        await create(state, env, "run_c1")
        for index in range(2):
            await state.add_batch_item(env, made.id, index, "run_c1", now_ms=NOW)

        assert [run.id for run in await state.batch_runs(env, made.id)] == ["run_c1", "run_c1"]

    async def test_a_batch_of_another_environment_does_not_exist(self, state: StateStore) -> None:
        env, other = await environment(state), await environment(state, "prod")
        made = await batch(state, env)
        await state.add_batch_item(env, made.id, 0, "run_c1", now_ms=NOW)

        assert await state.batch(other, made.id) is None
        assert not await state.add_batch_item(other, made.id, 1, "run_c2", now_ms=NOW)
        assert await state.batch_runs(other, made.id) == ()

    @pytest.mark.parametrize("key", ["idempotency_key", "request_key", "token_otu"])
    async def test_a_key_finds_its_batch(self, state: StateStore, key: str) -> None:
        env = await environment(state)
        made = await batch(state, env, **{key: "k"})
        named: dict[str, Any] = {key: "k"}
        again = NewBatch(id="batch_c2", run_count=2, **named)

        assert await state.create_batch(env, again, now_ms=NOW) == (made, False)

    async def test_a_key_whose_time_is_over_makes_a_new_batch(self, state: StateStore) -> None:
        env = await environment(state)
        await batch(state, env, idempotency_key="k", idempotency_expires_ms=NOW + 10)
        again = NewBatch(id="batch_c2", run_count=2, idempotency_key="k")

        made, created = await state.create_batch(env, again, now_ms=NOW + 10)

        assert (made.id, created) == ("batch_c2", True)


class TestRunsByRequest:
    async def test_runs_are_listed_by_batch_and_by_machine(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", batch_id="batch_c1", machine="micro")
        await create(state, env, "run_c2", machine="large-1x")

        async def ids(**where: Any) -> list[str]:
            page = await state.runs(env, RunFilter(**where), limit=10)
            return [run.id for run in page.items]

        assert await ids(batch_id="batch_c1") == ["run_c1"]
        assert await ids(machines=("large-1x", "other")) == ["run_c2"]
        run = await state.run(env, "run_c1")
        assert run is not None
        assert run.batch_id == "batch_c1"

    async def test_delayed_runs_are_told_from_those_that_only_wait_their_turn(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", not_before_ms=NOW + 100)
        await create(state, env, "run_c2")
        await create(state, env, "run_c3", not_before_ms=NOW + 50)
        await state.finish_run("run_c3", RunEvent.CANCEL, now_ms=NOW)

        async def ids(delayed: bool, at_ms: int, *states: RunState) -> list[str]:
            where = RunFilter(states=states, delayed=delayed, delayed_at_ms=at_ms)
            return [run.id for run in (await state.runs(env, where, limit=10)).items]

        assert await ids(True, NOW, RunState.QUEUED) == ["run_c1"]
        assert await ids(False, NOW, RunState.QUEUED) == ["run_c2"]
        assert await ids(False, NOW + 100, RunState.QUEUED) == ["run_c2", "run_c1"]
        assert await ids(True, NOW, RunState.QUEUED, RunState.CANCELED) == ["run_c3", "run_c1"]

    async def test_a_released_key_starts_a_new_run(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", idempotency_key="k")

        assert await state.release_key(env, "chat", "k") is True
        assert await state.release_key(env, "chat", "k") is False
        assert await state.release_key(env, "other", "k") is False
        assert (await create(state, env, "run_c2", idempotency_key="k")).id == "run_c2"

    async def test_a_delayed_run_can_be_moved_and_no_other(self, state: StateStore) -> None:
        env, other = await environment(state), await environment(state, "prod")
        await register(state, env)
        await create(state, env, "run_c1", not_before_ms=NOW + 100)
        await create(state, env, "run_c2")

        async def move(env_id: str, run_id: str, now_ms: int = NOW) -> object:
            return await state.reschedule_run(
                env_id, run_id, not_before_ms=NOW + 500, now_ms=now_ms
            )

        assert await move(env, "run_c2") is None, "it is not delayed"
        assert await move(other, "run_c1") is None
        assert await move(env, "run_c1", NOW + 100) is None, "its time has come"
        moved = await state.reschedule_run(env, "run_c1", not_before_ms=NOW + 500, now_ms=NOW + 1)
        assert moved is not None
        assert (moved.not_before_ms, moved.updated_at_ms) == (NOW + 500, NOW + 1)
        assert moved.state is RunState.QUEUED
        assert await state.run(env, "run_c1") == moved
