"""What expires, what is debounced and what is forgotten: the contract of these verbs."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.errors import Unprocessable
from everturn.rules import limits
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.batches import NewBatch
from everturn.storage.ports.debouncing import Debounce
from everturn.storage.ports.retention import PacketName
from everturn.storage.ports.rows import NewRun, Run, RunFilter, Wait
from everturn.storage.ports.state import StateStore
from everturn.storage.ports.waitpoints import NewWaitpoint
from everturn.testing.contracts.state_scene import (
    NOW,
    claim,
    create,
    environment,
    finish,
    get,
    new_run,
    open_chat,
    register,
    start,
    suspend,
)

DAY = 24 * 3600 * 1000


def debounced(run_id: str, **fields: Any) -> NewRun:
    how = Debounce(
        key=fields.pop("key", "k"),
        delay_ms=fields.pop("delay_ms", 5000),
        trailing=fields.pop("trailing", False),
        delay_ms_max=fields.pop("delay_ms_max", None),
    )
    now_ms = fields.pop("now_ms", NOW)
    return new_run(run_id, debounce=how, not_before_ms=now_ms + how.delay_ms, **fields)


async def call(state: StateStore, env: str, run_id: str, **fields: Any) -> tuple[Run, bool]:
    now_ms = fields.get("now_ms", NOW)
    return await state.create_run(env, debounced(run_id, **fields), now_ms=now_ms)


async def forgettable(state: StateStore, *, at_ms: int = NOW + DAY) -> list[str]:
    found = await state.forgettable_runs(finished_before_ms=at_ms, now_ms=at_ms, limit=10)
    return [run.id for run in found]


class TestExpiry:
    async def test_a_run_that_nobody_claimed_in_its_time_is_found(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", ttl_ms=20)
        await create(state, env, "run_c2", ttl_ms=10)
        await create(state, env, "run_c3")

        assert await state.expired_runs(now_ms=NOW + 9, limit=5) == ()
        expired = await state.expired_runs(now_ms=NOW + 20, limit=5)
        assert [run.id for run in expired] == ["run_c2", "run_c1"]
        assert len(await state.expired_runs(now_ms=NOW + 20, limit=1)) == 1

    async def test_its_time_counts_from_the_end_of_the_delay(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1", ttl_ms=10, not_before_ms=NOW + 100)
        assert await state.expired_runs(now_ms=NOW + 109, limit=5) == ()
        assert (await get(state, "run_c1")).expire_at_ms == NOW + 110

        moved = await state.reschedule_run(env, "run_c1", not_before_ms=NOW + 500, now_ms=NOW)

        assert moved is not None
        assert moved.expire_at_ms == NOW + 510
        assert await state.expired_runs(now_ms=NOW + 509, limit=5) == ()

    async def test_a_run_that_was_claimed_once_never_expires(self, state: StateStore) -> None:
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1", ttl_ms=10)
        run = await claim(state)
        assert await state.expired_runs(now_ms=NOW + 10, limit=5) == ()
        await state.requeue_run(run.id, RunEvent.INTERRUPT, now_ms=NOW)

        assert (await get(state, run.id)).state is RunState.QUEUED
        assert await state.expired_runs(now_ms=NOW + 10, limit=5) == ()


class TestDebouncing:
    async def test_calls_in_a_row_make_one_run_that_starts_when_they_pause(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        first = await call(state, env, "run_c1", payload=b"1", ttl_ms=7)
        second = await call(state, env, "run_c2", payload=b"2", now_ms=NOW + 4321)

        assert first[1] is True
        assert second[1] is False
        run = second[0]
        assert (run.id, run.payload) == ("run_c1", b"1")
        # Whole seconds.
        assert run.not_before_ms == NOW + 9000
        assert run.expire_at_ms == NOW + 9007
        assert run == await get(state, "run_c1")

    async def test_a_run_is_never_moved_to_an_earlier_time(self, state: StateStore) -> None:
        env = await environment(state)
        await call(state, env, "run_c1", delay_ms=60_000)

        moved, _ = await call(state, env, "run_c2", delay_ms=1000)

        assert moved.not_before_ms == NOW + 60_000

    async def test_trailing_calls_replace_payload_and_options(self, state: StateStore) -> None:
        env = await environment(state)
        await call(state, env, "run_c1", payload=b"1", tags=("a",), machine="small-1x")

        moved, _ = await call(
            state, env, "run_c2", payload=b"2", trailing=True, tags=("b",), metadata=b"{}"
        )

        assert (moved.payload, moved.tags, moved.metadata) == (b"2", ("b",), b"{}")
        assert moved.machine == "small-1x"
        by_tag = [await state.runs(env, RunFilter(tags=(tag,)), limit=5) for tag in "ab"]
        assert [len(page.items) for page in by_tag] == [0, 1]

    async def test_a_run_that_has_waited_long_enough_is_left_and_another_made(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await call(state, env, "run_c1", delay_ms_max=6000)

        again, created = await call(
            state, env, "run_c2", delay_ms_max=6000, now_ms=NOW + 2000, payload=b"2"
        )

        assert (again.id, created) == ("run_c2", True)
        assert (await get(state, "run_c1")).not_before_ms == NOW + 5000
        third, _ = await call(state, env, "run_c3", now_ms=NOW + 3000)
        assert third.id == "run_c2"

    @pytest.mark.parametrize("how", ["due", "claimed", "to be tried again"])
    async def test_a_call_after_the_start_begins_a_new_round(
        self, state: StateStore, how: str
    ) -> None:
        env = await environment(state)
        await register(state, env)
        await call(state, env, "run_c1")
        if how != "due":
            await claim(state, now_ms=NOW + 5000)
        if how == "to be tried again":
            later = NOW + 60_000
            await state.requeue_run(
                "run_c1", RunEvent.RETRY, now_ms=NOW + 5000, not_before_ms=later
            )

        run, created = await call(state, env, "run_c2", now_ms=NOW + 5000)

        assert (run.id, created) == ("run_c2", True)

    async def test_keys_belong_to_a_task_and_an_environment(self, state: StateStore) -> None:
        env, other = await environment(state), await environment(state, "prod")
        made = [
            await call(state, env, "run_c1"),
            await call(state, env, "run_c2", key="other"),
            await call(state, env, "run_c3", task_id="another"),
            await call(state, other, "run_c4"),
        ]
        assert [created for _, created in made] == [True] * 4

    async def test_an_idempotency_key_is_looked_at_first(self, state: StateStore) -> None:
        env = await environment(state)
        key = {"idempotency_key": "i1", "idempotency_expires_ms": NOW + DAY}
        await call(state, env, "run_c1")
        moved, _ = await call(state, env, "run_c2", now_ms=NOW + 1000, **key)
        again, _ = await call(state, env, "run_c3", now_ms=NOW + 2000, **key)

        assert moved.id == again.id == "run_c1"
        assert again.not_before_ms == moved.not_before_ms == NOW + 6000

    async def test_callers_that_race_make_one_run(self, state: StateStore) -> None:
        env = await environment(state)
        made: list[tuple[Run, bool]] = []

        async def one(n: int) -> None:
            made.append(await call(state, env, f"run_c{n}"))

        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(one, n)

        assert len({run.id for run, _ in made}) == 1
        assert sum(created for _, created in made) == 1


class TestStreamsOfRuns:
    async def test_names_of_streams_are_kept_in_order_and_once(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1")
        for name in ("b", "a", "b"):
            run = await state.note_stream(env, "run_c1", name, now_ms=NOW + 1)

        assert run is not None
        assert run == await get(state, "run_c1")
        assert run.streams == ("b", "a")
        assert await state.note_stream("other", "run_c1", "x", now_ms=NOW) is None

    async def test_a_run_has_so_many_streams_at_most(
        self, state: StateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "RUN_STREAMS_MAX", 1)
        env = await environment(state)
        await create(state, env, "run_c1")
        await state.note_stream(env, "run_c1", "a", now_ms=NOW)

        with pytest.raises(Unprocessable, match="at most 1 streams"):
            await state.note_stream(env, "run_c1", "b", now_ms=NOW)
        assert (await get(state, "run_c1")).streams == ("a",)


class TestForgetting:
    async def test_a_chore_is_done_by_one_and_not_again_for_a_while(
        self, state: StateStore
    ) -> None:
        taken: list[bool] = []

        async def one() -> None:
            taken.append(await state.take_chore("c", now_ms=NOW, every_ms=10))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(one)

        assert sorted(taken) == [False, False, False, True]
        assert await state.take_chore("other", now_ms=NOW, every_ms=10)
        assert not await state.take_chore("c", now_ms=NOW + 9, every_ms=10)
        assert await state.take_chore("c", now_ms=NOW + 10, every_ms=10)

    async def test_a_chore_is_done_although_the_clock_was_ahead_the_last_time(
        self, state: StateStore
    ) -> None:
        assert await state.take_chore("c", now_ms=NOW + DAY, every_ms=10)

        assert await state.take_chore("c", now_ms=NOW, every_ms=10)
        assert not await state.take_chore("c", now_ms=NOW + 9, every_ms=10)

    async def test_finished_runs_are_forgotten_with_all_they_had(self, state: StateStore) -> None:
        env = await environment(state)
        key = {"idempotency_key": "i1", "idempotency_expires_ms": NOW + 5}
        await create(state, env, "run_c1", tags=("a",), request_key="r1", **key)
        await create(state, env, "run_c2")
        await finish(state, "run_c1", RunEvent.CANCEL)

        assert await forgettable(state, at_ms=NOW - 1) == []
        assert await forgettable(state, at_ms=NOW + 5) == ["run_c1"]
        assert await state.forget_runs(["run_c1", "run_c2", "run_none"]) == 1

        assert await state.run(env, "run_c1") is None
        assert await state.run(env, "run_c2") is not None
        assert (await state.runs(env, RunFilter(tags=("a",)), limit=5)).items == ()
        assert await state.forget_runs(["run_c1"]) == 0
        again, created = await state.create_run(
            env, new_run("run_c3", request_key="r1"), now_ms=NOW
        )
        assert (again.id, created) == ("run_c3", True)

    async def test_a_run_is_kept_as_long_as_a_key_finds_it(self, state: StateStore) -> None:
        env = await environment(state)
        await create(
            state, env, "run_c1", idempotency_key="i", idempotency_expires_ms=NOW + 2 * DAY
        )
        await create(state, env, "run_c2", request_key="r", request_expires_ms=NOW + 2 * DAY)
        for run_id in ("run_c1", "run_c2"):
            await finish(state, run_id, RunEvent.CANCEL)

        assert await forgettable(state) == []
        assert await forgettable(state, at_ms=NOW + 2 * DAY) == ["run_c1", "run_c2"]

    async def test_a_run_is_kept_while_its_parent_may_ask_for_it(self, state: StateStore) -> None:
        env = await environment(state)
        await create(state, env, "run_c1")
        await create(state, env, "run_c2", parent_run_id="run_c1")
        await finish(state, "run_c2", RunEvent.CANCEL)
        assert await forgettable(state) == []

        await finish(state, "run_c1", RunEvent.CANCEL)

        assert sorted(await forgettable(state)) == ["run_c1", "run_c2"]
        await state.forget_runs(["run_c2"])
        assert await state.children("run_c1", limit=9) == ()

    async def test_a_run_is_kept_while_another_waits_for_it(self, state: StateStore) -> None:
        """One that a key found for it may be nobody's child by now."""
        env = await environment(state)
        await register(state, env)
        await create(state, env, "run_c1")
        waiting = await suspend(state, await start(state), Wait(kind="run", ref="run_c2"))
        await create(state, env, "run_c2")
        await finish(state, "run_c2", RunEvent.CANCEL)
        assert await forgettable(state) == []

        await state.wake_run(waiting.id, now_ms=NOW)

        assert await forgettable(state) == ["run_c2"]

    async def test_the_current_run_of_a_session_is_kept(self, state: StateStore) -> None:
        env = await environment(state)
        await open_chat(state, env, "run_c1")
        await finish(state, "run_c1", RunEvent.CANCEL)
        assert await forgettable(state) == []

        await open_chat(state, env, "run_c2")

        assert await forgettable(state) == ["run_c1"]

    @pytest.mark.parametrize("how", ["idempotency", "debounce"])
    async def test_a_repeated_call_is_answered_as_the_first_one_was(
        self, state: StateStore, how: str
    ) -> None:
        env = await environment(state)
        key: dict[str, Any] = {"idempotency_key": "i", "idempotency_expires_ms": NOW + 5}
        more = key if how == "idempotency" else {}
        await call(state, env, "run_c1", **more)
        found, created = await call(state, env, "run_c2", request_key="r", **more)
        assert (found.id, created) == ("run_c1", False)
        await state.finish_run("run_c1", RunEvent.CANCEL, now_ms=NOW)

        # The key's time is over, and nothing is delayed any more: only the request finds it.
        again, created = await call(state, env, "run_c3", request_key="r", now_ms=NOW + 10, **more)

        assert (again.id, created) == ("run_c1", False)
        by_request = await state.run_by_request(env, "r", now_ms=NOW + 10)
        assert by_request is not None
        assert by_request.id == "run_c1"
        assert await state.run_by_request("other", "r", now_ms=NOW) is None
        assert await state.run_by_request(env, "i", now_ms=NOW) is None
        await state.forget_runs(["run_c1"])
        assert await state.run_by_request(env, "r", now_ms=NOW) is None

    async def test_keys_whose_time_is_over_are_forgotten(self, state: StateStore) -> None:
        env = await environment(state)
        for n in range(3):
            await create(
                state, env, f"run_c{n}", idempotency_key=f"i{n}", idempotency_expires_ms=NOW + n
            )
        await create(state, env, "run_c3", request_key="r")

        assert await state.forget_keys(now_ms=NOW + 1, limit=1) == 1
        assert await state.forget_keys(now_ms=NOW + 1, limit=10) == 1
        assert await state.forget_keys(now_ms=NOW + 1, limit=10) == 0
        assert not await state.release_key(env, "chat", "i0")
        assert await state.release_key(env, "chat", "i2")

    async def test_completed_tokens_are_forgotten_and_open_ones_kept(
        self, state: StateStore
    ) -> None:
        env = await environment(state)
        await register(state, env)
        later = {"idempotency_key": "k", "idempotency_expires_ms": NOW + 2 * DAY}
        for name, fields in (("done", {"tags": ("a",)}), ("open", {}), ("keyed", later)):
            new = NewWaitpoint(id=f"waitpoint_{name}", **fields)
            await state.create_waitpoint(env, new, now_ms=NOW)
        await state.create_waitpoint(env, NewWaitpoint(id="waitpoint_awaited"), now_ms=NOW)
        await create(state, env, "run_c1")
        await suspend(state, await start(state), Wait(kind="token", ref="waitpoint_awaited"))
        for name in ("done", "keyed", "awaited"):
            await state.complete_waitpoint(env, f"waitpoint_{name}", now_ms=NOW)

        async def forget(at_ms: int) -> int:
            return await state.forget_waitpoints(completed_before_ms=at_ms, now_ms=at_ms, limit=5)

        assert await forget(NOW - 1) == 0
        assert await forget(NOW + DAY) == 1
        assert await state.waitpoint(env, "waitpoint_done") is None
        for name in ("open", "keyed", "awaited"):
            assert await state.waitpoint(env, f"waitpoint_{name}") is not None
        assert await forget(NOW + 2 * DAY) == 1
        assert await state.waitpoint(env, "waitpoint_keyed") is None

    async def test_a_batch_is_forgotten_after_its_runs(self, state: StateStore) -> None:
        env = await environment(state)
        await state.create_batch(env, NewBatch(id="batch_c1", run_count=1), now_ms=NOW)
        await state.create_batch(env, NewBatch(id="batch_c2", run_count=1), now_ms=NOW)
        kept = NewBatch(
            id="batch_c3", run_count=1, idempotency_key="k", idempotency_expires_ms=NOW + 2 * DAY
        )
        await state.create_batch(env, kept, now_ms=NOW)
        await create(state, env, "run_c1", batch_id="batch_c1")
        await state.add_batch_item(env, "batch_c1", 0, "run_c1", now_ms=NOW)

        async def forget(at_ms: int) -> int:
            return await state.forget_batches(created_before_ms=at_ms, now_ms=at_ms, limit=5)

        assert await forget(NOW - 1) == 0
        assert await forget(NOW + DAY) == 1
        assert await state.batch(env, "batch_c2") is None
        await finish(state, "run_c1", RunEvent.CANCEL)
        await state.forget_runs(["run_c1"])
        assert await state.batch_runs(env, "batch_c1") == ()
        assert await forget(NOW + DAY) == 1
        assert await state.batch(env, "batch_c1") is None
        assert await state.batch_items("batch_c1") == ()
        assert await forget(NOW + 2 * DAY) == 1

    async def test_a_packet_is_forgotten_when_no_run_has_it(self, state: StateStore) -> None:
        env = await environment(state)
        for n, name in enumerate(("a", "größe/payload.json", "c")):
            await state.note_packet(env, name, now_ms=NOW + n)
        payload = {"payload": "größe/payload.json".encode(), "payload_type": "application/store"}
        await create(state, env, "run_c1", **payload)
        await create(state, env, "run_c2", payload=b"c")

        old = await state.forgettable_packets(noted_before_ms=NOW + 2, limit=5)
        assert old == (PacketName(env, "a"), PacketName(env, "c"))
        assert len(await state.forgettable_packets(noted_before_ms=NOW + 1, limit=5)) == 1
        await state.note_packet(env, "c", now_ms=NOW + 9)
        for packet in old:
            await state.forget_packet(packet, noted_before_ms=NOW + 2)

        left = await state.forgettable_packets(noted_before_ms=NOW + 9, limit=5)
        assert left == (PacketName(env, "c"),)
