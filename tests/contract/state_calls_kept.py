"""More calls drawn by a seed: wait tokens, batches, debouncing, keys, metadata, and forgetting."""

from __future__ import annotations

from typing import Any

from state_calls import Call, RandomCalls

from everturn.protocol.records import InputCursor
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.batches import NewBatch
from everturn.storage.ports.debouncing import Debounce
from everturn.storage.ports.rows import RunFilter, SessionFilter, Wait
from everturn.storage.ports.state import StateStore
from everturn.storage.ports.waitpoints import NewWaitpoint, WaitpointFilter
from everturn.testing.contracts.state_scene import new_run

#: Time moves fast here, so that keys, times to live and delays run out while they are looked at.
STEP_MS = 200


class KeptCalls(RandomCalls):
    """The calls of `RandomCalls` too, since what is kept depends on what is alive."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._batches = ["batch_none"]

    def draw(self) -> tuple[str, Call]:
        self._now += self._random.randrange(STEP_MS)
        return super().draw()

    def _key(self) -> str:
        return f"chat-{self._random.randrange(5)}"

    # --- wait tokens -----------------------------------------------------------------------------

    def call_make_token(self) -> Call:
        pick, now = self._random.choice, self._now
        new = NewWaitpoint(
            id=f"waitpoint_n{self._random.randrange(10**9)}",
            tags=pick([(), ("a",), ("a", "b")]),
            timeout_at_ms=pick([None, now + 300]),
            idempotency_key=pick([None, "k"]),
            idempotency_expires_ms=pick([None, now + 400]),
            request_key=pick([None, "r"]),
        )
        return lambda s: s.create_waitpoint("env", new, now_ms=now)

    def call_complete_token(self) -> Call:
        now, timed_out = self._now, self._random.random() < 0.3
        place = self._random.randrange(5)

        async def call(state: StateStore) -> Any:
            page = await state.waitpoints("env", WaitpointFilter(), limit=20)
            if len(page.items) <= place:
                return None
            return await state.complete_waitpoint(
                "env", page.items[place].id, now_ms=now, output=b"1", timed_out=timed_out
            )

        return call

    def call_suspend_on_token(self) -> Call:
        pick, now, place = self._one_in(RunState.RUNNING), self._now, self._random.randrange(5)

        async def call(state: StateStore) -> Any:
            run = await pick(state)
            page = await state.waitpoints("env", WaitpointFilter(), limit=20)
            if run is None or len(page.items) <= place:
                return None
            token = page.items[place].id
            held = await state.suspend_run(
                run.id, Wait(kind="token", ref=token), fence=run.fence, now_ms=now
            )
            return held, sorted(r.id for r in await state.waiting_on_token(token))

        return call

    # --- batches ---------------------------------------------------------------------------------

    def call_make_batch(self) -> Call:
        pick, now = self._random.choice, self._now
        new = NewBatch(
            id=f"batch_n{self._random.randrange(10**9)}",
            run_count=pick([1, 2, 3]),
            idempotency_key=pick([None, "k"]),
            idempotency_expires_ms=pick([None, now + 400]),
            request_key=pick([None, "r"]),
        )
        self._batches.append(new.id)
        return lambda s: s.create_batch("env", new, now_ms=now)

    def call_fill_batch(self) -> Call:
        batch = self._random.choice(self._batches)
        index, run, now = self._random.randrange(3), self._run(), self._now

        async def call(state: StateStore) -> Any:
            found = await state.batch("env", batch)
            if found is None or index >= found.run_count:
                return found
            added = await state.add_batch_item("env", batch, index, run, now_ms=now)
            return [
                added,
                await state.batch("env", batch),
                await state.batch_items(batch),
                await state.batch_runs("env", batch),
            ]

        return call

    # --- runs that are put off, and found again --------------------------------------------------

    def call_debounce(self) -> Call:
        pick, now = self._random.choice, self._now
        debounce = Debounce(
            key=pick(["d1", "d2"]),
            delay_ms=pick([1000, 3000]),
            trailing=pick([True, False]),
            delay_ms_max=pick([None, 4000]),
        )
        new = new_run(
            self._new_id(),
            debounce=debounce,
            not_before_ms=now + debounce.delay_ms,
            ttl_ms=pick([None, 2000]),
            payload=b"%d" % now,
        )
        return lambda s: s.create_run("env", new, now_ms=now)

    def call_request(self) -> Call:
        now = self._now
        key = self._random.choice(["q1", "q2", "q3"])
        new = new_run(self._new_id(), request_key=key, request_expires_ms=now + 900)

        async def call(state: StateStore) -> Any:
            made = await state.create_run("env", new, now_ms=now)
            return made, await state.run_by_request("env", key, now_ms=now)

        return call

    def call_release(self) -> Call:
        key = self._random.choice(["k1", "k2"])
        return lambda s: s.release_key("env", "chat", key)

    def call_reschedule(self) -> Call:
        pick, now = self._one_in(RunState.QUEUED), self._now

        async def call(state: StateStore) -> Any:
            run = await pick(state)
            return run and await state.reschedule_run(
                "env", run.id, not_before_ms=now + 500, now_ms=now
            )

        return call

    def call_expire(self) -> Call:
        now = self._now

        async def call(state: StateStore) -> Any:
            found = await state.expired_runs(now_ms=now, limit=10**6)
            return [await state.finish_run(r.id, RunEvent.EXPIRE, now_ms=now) for r in found]

        return call

    # --- what rows carry -------------------------------------------------------------------------

    def call_metadata(self) -> Call:
        run, now, more = self._run(), self._now, b"%d" % self._random.randrange(9)
        return lambda s: s.set_metadata(
            "env", run, lambda old: (old or b"")[-9:] + more, now_ms=now
        )

    def call_tags(self) -> Call:
        run, now, tag = self._run(), self._now, f"t{self._random.randrange(12)}"
        return lambda s: s.add_tags("env", run, [tag, "x"], now_ms=now)

    def call_stream(self) -> Call:
        run, now, name = self._run(), self._now, f"s{self._random.randrange(3)}"
        return lambda s: s.note_stream("env", run, name, now_ms=now)

    def call_update_session(self) -> Call:
        key, now, clear = self._key(), self._now, self._random.random() < 0.3
        tags = [f"u{self._random.randrange(3)}"]
        return lambda s: s.update_session(
            "env", key, now_ms=now, tags=tags, metadata={"n": now}, clear_metadata=clear
        )

    def call_close(self) -> Call:
        key, now = self._key(), self._now
        if self._random.random() < 0.8:
            return lambda s: s.session("env", key)
        return lambda s: s.close_session("env", key, reason="over", now_ms=now)

    def call_cursor(self) -> Call:
        key, task = self._key(), self._random.choice([None, "raw"])
        cursor = InputCursor(self._random.randrange(20), frozenset({self._random.randrange(30)}))

        async def call(state: StateStore) -> Any:
            session = await state.session("env", key)
            if session is None:
                return None
            await state.set_cursor(session.id, cursor, task_id=task)
            return await state.session("env", key), await state.consumed(session.id, "raw")

        return call

    # --- forgetting ------------------------------------------------------------------------------

    def call_chore(self) -> Call:
        now = self._now
        return lambda s: s.take_chore("sweep", now_ms=now, every_ms=1500)

    def call_forget(self) -> Call:
        now, limit = self._now, self._random.randrange(1, 6)
        before = now - self._random.randrange(3000)

        async def call(state: StateStore) -> Any:
            runs = await state.forgettable_runs(finished_before_ms=before, now_ms=now, limit=limit)
            return [
                [run.id for run in runs],
                await state.forget_runs([run.id for run in runs]),
                await state.forget_keys(now_ms=now, limit=10**6),
                await state.forget_waitpoints(completed_before_ms=before, now_ms=now, limit=10**6),
                await state.forget_batches(created_before_ms=before, now_ms=now, limit=10**6),
            ]

        return call

    def call_packet(self) -> Call:
        now, name = self._now, f"p{self._random.randrange(3)}"
        before = now - self._random.randrange(1500)

        async def call(state: StateStore) -> Any:
            await state.note_packet("env", name, now_ms=now)
            found = await state.forgettable_packets(noted_before_ms=before, limit=9)
            for packet in found:
                await state.forget_packet(packet, noted_before_ms=before)
            return found, await state.forgettable_packets(noted_before_ms=before, limit=9)

        return call

    def call_carry_packet(self) -> Call:
        now = self._now
        name = b"p%d" % self._random.randrange(3)
        new = new_run(self._new_id(), payload=name, payload_type="application/store")
        return lambda s: s.create_run("env", new, now_ms=now)

    def call_look_kept(self) -> Call:
        now, run = self._now, self._run()
        limit = self._random.randrange(1, 9)
        tag = self._random.choice(["x", "t1", "u1", "a"])

        async def call(state: StateStore) -> Any:
            return [
                await state.waitpoints("env", WaitpointFilter(tags=(tag,)), limit=limit),
                await state.waitpoints("env", WaitpointFilter(statuses=("WAITING",)), limit=limit),
                await state.due_waitpoints(now_ms=now, limit=limit),
                await state.runs("env", RunFilter(tags=(tag,)), limit=limit),
                await state.sessions("env", SessionFilter(tags=(tag,)), limit=limit, now_ms=now),
                await state.children(run, limit=limit),
                await state.overdue_runs(now_ms=now),
                await state.next_due_ms(now_ms=now),
            ]

        return call
