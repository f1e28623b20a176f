"""Calls of the state port drawn by a seed, for engines to be compared by."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from everturn.errors import EverturnError
from everturn.protocol.records import InputCursor
from everturn.rules.run_states import RunEvent, RunState
from everturn.storage.ports.rows import Run, RunFilter, SessionFilter, Wait
from everturn.storage.ports.state import StateStore
from everturn.testing.contracts.state_scene import NOW, makes, new_run, new_session, register

FINISHES = [e for e in RunEvent if e not in (RunEvent.CLAIM, RunEvent.START, RunEvent.SUSPEND)]

Call = Callable[[StateStore], Awaitable[Any]]


class RandomCalls:
    """Draws calls whose arguments are likely to meet: few ids, few keys, all kinds of moves."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._made = 0
        self._now = NOW

    def _run(self) -> str:
        return f"run_c{self._random.randrange(max(1, self._made))}"

    def _new_id(self) -> str:
        self._made += 1
        return f"run_c{self._made - 1}"

    def _fence(self) -> int:
        return self._random.randrange(1, 4)

    def _wrong(self) -> int:
        """What a caller's fence is off by: nothing, for most."""
        return self._random.choice([0, 0, 0, 0, -1, 1])

    def _one_in(self, run_state: RunState) -> Callable[[StateStore], Awaitable[Run | None]]:
        """Finds a run in a state, for a move that leads on from there; any run now and then.

        Drawn blindly, hardly any run would ever get as far as being suspended.
        """
        place, any_run = self._random.randrange(5), self._run()
        blindly = self._random.random() < 0.2

        async def pick(state: StateStore) -> Run | None:
            page = await state.runs("env", RunFilter(states=(run_state,)), limit=5)
            if blindly or not page.items:
                return await state.run("env", any_run)
            return page.items[place % len(page.items)]

        return pick

    def draw(self) -> tuple[str, Call]:
        """The name of a call, and the call."""
        self._now += self._random.randrange(50)
        name = self._random.choice([name for name in dir(self) if name.startswith("call_")])
        call: Call = getattr(self, name)()
        return name, call

    def call_open(self) -> Call:
        n, run_id, now = self._random.randrange(5), self._new_id(), self._now
        new = new_session(f"session_{run_id}", external_id=f"chat-{n}", tags=(f"t{n}",))
        return lambda s: s.open_session("env", new, makes(run_id), now_ms=now)

    def call_continue(self) -> Call:
        key, run_id, now = f"chat-{self._random.randrange(5)}", self._new_id(), self._now
        reason: Any = self._random.choice(["continuation", "upgrade"])

        async def call(state: StateStore) -> Any:
            session = await state.session("env", key)
            if session is None:
                return None
            return await state.continue_session(
                session.id,
                replacing=session.current_run_id,
                make_run=makes(run_id),
                reason=reason,
                now_ms=now,
            )

        return call

    def call_create(self) -> Call:
        pick, now = self._random.choice, self._now
        new = new_run(
            self._new_id(),
            queue=pick(["wide", "narrow", "paused"]),
            concurrency_key=pick([None, "a"]),
            idempotency_key=pick([None, None, "k1", "k2"]),
            idempotency_expires_ms=now + 500,
            priority_ms=pick([0, 1000]),
            not_before_ms=pick([None, now + 100]),
            lock_version=pick([None, None, "v1"]),
            tags=pick([(), ("x",)]),
        )
        return lambda s: s.create_run("env", new, now_ms=now)

    def call_claim(self) -> Call:
        worker, limit, now = (
            f"w{self._random.randrange(3)}",
            self._random.randrange(1, 4),
            self._now,
        )
        return lambda s: s.claim_runs(worker, limit=limit, now_ms=now)

    def call_start(self) -> Call:
        pick, wrong, now = self._one_in(RunState.CLAIMED), self._wrong(), self._now

        async def call(state: StateStore) -> Any:
            run = await pick(state)
            return run and await state.start_run(run.id, fence=run.fence + wrong, now_ms=now)

        return call

    def call_suspend(self) -> Call:
        pick, wrong, now = self._one_in(RunState.RUNNING), self._wrong(), self._now
        wait = Wait(kind="run", ref=self._run(), until_ms=now + self._random.randrange(300))

        async def call(state: StateStore) -> Any:
            run = await pick(state)
            fence = 0 if run is None else run.fence + wrong
            return run and await state.suspend_run(run.id, wait, fence=fence, now_ms=now)

        return call

    def call_wake(self) -> Call:
        pick = self._one_in(RunState.SUSPENDED)
        now, slot = self._now, self._random.random() < 0.7

        async def call(state: StateStore) -> Any:
            run = await pick(state)
            return run and await state.wake_run(run.id, now_ms=now, take_slot=slot)

        return call

    def call_requeue(self) -> Call:
        run, now, pick = self._run(), self._now, self._random.choice
        event, unpin = pick([RunEvent.RETRY, RunEvent.INTERRUPT]), pick([True, False])
        return lambda s: s.requeue_run(run, event, now_ms=now, unpin=unpin, interruptions=1)

    def call_finish(self) -> Call:
        run, now, event = self._run(), self._now, self._random.choice(FINISHES)
        if event in (RunEvent.WAKE, RunEvent.RESUME, RunEvent.RETRY, RunEvent.INTERRUPT):
            event = RunEvent.COMPLETE
        cursor = InputCursor(self._random.randrange(9))
        return lambda s: s.finish_run(run, event, now_ms=now, output=b"1", cursor=cursor)

    def call_journal(self) -> Call:
        pick, wrong, position = (
            self._one_in(RunState.RUNNING),
            self._wrong(),
            self._random.randrange(3),
        )

        async def call(state: StateStore) -> Any:
            run = await pick(state)
            fence = 0 if run is None else run.fence + wrong
            return run and await state.journal_put(run.id, position, "k", b"1", fence=fence)

        return call

    def call_register(self) -> Call:
        n, version = self._random.randrange(3), self._random.choice(["v1", "v2"])
        queues = {"narrow": self._random.randrange(1, 3), "paused": 0}
        until = self._now + 4000
        return lambda s: register(
            s, "env", f"w{n}", version=version, queues=queues, lease_until_ms=until
        )

    def call_remove(self) -> Call:
        worker = f"w{self._random.randrange(3)}"

        async def call(state: StateStore) -> Any:
            return sorted(run.id for run in await state.remove_worker(worker))

        return call

    def call_look(self) -> Call:
        now, run = self._now, self._run()
        limit = self._random.randrange(1, 30)

        async def call(state: StateStore) -> Any:
            sweeps = [
                await state.orphaned_runs(),
                await state.stranded_runs(queued_before_ms=now, now_ms=now),
                await state.due_runs(now_ms=now, limit=10**6),
                await state.waiting_on_run(run),
                await state.unstarted_runs(claimed_before_ms=now - 500, now_ms=now),
                await state.unchecked_sessions(limit=10**6),
                await state.live_workers("env", now_ms=now),
            ]
            return [
                *(sorted(row.id for row in found) for found in sweeps),
                await state.runs("env", RunFilter(states=(RunState.QUEUED,)), limit=limit),
                await state.runs("env", RunFilter(), limit=limit),
                await state.sessions("env", SessionFilter(), limit=limit, now_ms=now),
                await state.run("env", run),
                await state.journal(run),
                await state.next_due_ms(now_ms=now),
                await state.tasks("env"),
            ]

        return call


async def answer(call: Call, state: StateStore) -> Any:
    try:
        return await call(state)
    except EverturnError as error:
        return type(error)
