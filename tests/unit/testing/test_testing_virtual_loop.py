"""Virtual time: it passes when nothing can run, in one order, as far as it is allowed to."""

from __future__ import annotations

import time

import anyio
import pytest

from everturn.testing.virtual_loop import LoopClock, Stuck, run_virtual


def test_a_day_passes_at_once() -> None:
    async def main() -> tuple[float, int]:
        clock = LoopClock()
        began = clock.now_ms()
        await clock.sleep(86_400)
        return clock.monotonic(), clock.now_ms() - began

    began = time.monotonic()
    assert run_virtual(main, virtual_s_max=100_000) == (86_400.0, 86_400_000)
    assert time.monotonic() - began < 5


def test_timers_end_in_the_order_of_their_times_and_not_of_their_starts() -> None:
    ended: list[int] = []

    async def main() -> None:
        async def sleeper(seconds: int) -> None:
            await anyio.sleep(seconds)
            ended.append(seconds)

        async with anyio.create_task_group() as tasks:
            for seconds in (3, 1, 2):
                tasks.start_soon(sleeper, seconds)

    run_virtual(main)
    assert ended == [1, 2, 3]


def test_cancelling_many_tasks_has_the_same_order_each_time() -> None:
    def order() -> list[int]:
        ended: list[int] = []

        async def waits(number: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(number)

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(waits, number)
                await anyio.sleep(1)
                tasks.cancel_scope.cancel()

        run_virtual(main)
        return ended

    assert order() == order()


def test_a_held_clock_wakes_its_sleepers_late_and_shows_it() -> None:
    async def main() -> float:
        clock = LoopClock()
        clock.hold(20)
        await clock.sleep(1)
        return clock.monotonic()

    assert run_virtual(main) == 20.0


def test_what_takes_too_much_virtual_time_is_ended() -> None:
    with pytest.raises(TimeoutError):
        run_virtual(anyio.sleep_forever, virtual_s_max=10)


def test_a_program_that_waits_for_nothing_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everturn.testing.virtual_loop._THREAD_S", 0.01)
    with pytest.raises(Stuck):
        run_virtual(lambda: anyio.Event().wait(), virtual_s_max=float("inf"))
