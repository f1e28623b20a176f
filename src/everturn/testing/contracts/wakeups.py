"""The contract of the wake-ups port, on any engine.

A test module imports the class and defines a fixture `wakeups`. Hints may be late, so the tests
wait for one with a generous time; that none comes is only tested where none can be on its way.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel

from everturn.storage.ports.wakeups import Wakeups

SOON_S = 10.0


class TestWakeups:
    async def test_a_hint_wakes_everybody_who_waits_on_its_topic(self, wakeups: Wakeups) -> None:
        waiters = [wakeups.waiter("queue/env") for _ in range(3)]
        woken: list[bool] = []

        async def wait(n: int) -> None:
            woken.append(await waiters[n].wait(SOON_S))

        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(wait, n)
            await anyio.lowlevel.checkpoint()
            wakeups.notify("queue/env")

        assert woken == [True] * 3

    async def test_a_hint_before_the_wait_is_not_lost(self, wakeups: Wakeups) -> None:
        waiter = wakeups.waiter("t")
        wakeups.notify("t")

        assert await waiter.wait(SOON_S)

    async def test_several_hints_between_two_waits_count_as_one(self, wakeups: Wakeups) -> None:
        waiter = wakeups.waiter("t")
        for _ in range(3):
            wakeups.notify("t")

        assert await waiter.wait(SOON_S)
        assert not await waiter.wait(0.01)

    async def test_without_a_hint_the_wait_ends_by_time(self, wakeups: Wakeups) -> None:
        waiter = wakeups.waiter("t")
        wakeups.notify("other")

        assert not await waiter.wait(0.01)
        assert not await waiter.wait(0)

    async def test_a_cancelled_wait_leaves_the_hint_for_the_next(self, wakeups: Wakeups) -> None:
        waiter = wakeups.waiter("t")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await waiter.wait(SOON_S)
        wakeups.notify("t")

        assert await waiter.wait(SOON_S)

    async def test_a_closed_waiter_collects_nothing_and_closing_repeats(
        self, wakeups: Wakeups
    ) -> None:
        waiter = wakeups.waiter("t")
        other = wakeups.waiter("t")
        waiter.close()
        waiter.close()
        wakeups.notify("t")
        wakeups.notify("nobody listens")

        assert await other.wait(SOON_S)
        assert not await waiter.wait(0)
