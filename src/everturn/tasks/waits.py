"""Waiting inside a run: `wait.for_`, `wait.until`, and for a child run.

Up to five seconds a wait is a plain sleep that keeps its slot. A longer one suspends the run: it
frees its slot, its `max_duration` clock stands still, and it costs memory only. The deadline is
journalled before the run suspends, so a recovered run waits for what is left of it and not for
the whole again. Hooks `on_wait` and `on_resume` fire around suspensions only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from everturn.errors import InvalidRequest
from everturn.protocol.runs import RunResult
from everturn.rules import durations
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.bridge import either

#: Waits up to this long keep their slot (tasks-and-runs §12.1).
IN_PROCESS_S_MAX: Final = 5.0


@either
async def for_(
    duration: durations.Duration | None = None,
    *,
    seconds: float | None = None,
    minutes: float | None = None,
    hours: float | None = None,
    days: float | None = None,
    weeks: float | None = None,
    months: float | None = None,
    years: float | None = None,
) -> None:
    """Wait for a duration: `wait.for_(minutes=10)` or `wait.for_("1h30m")`.

    Raises:
        NotInRunError: called outside a run.
        InvalidRequest: not exactly one duration.
        ConcurrentWaitError: this run waits for something else already.
    """
    units = {
        "seconds": seconds,
        "minutes": minutes,
        "hours": hours,
        "days": days,
        "weeks": weeks,
        "months": months,
        "years": years,
    }
    if duration is not None:
        if any(count is not None for count in units.values()):
            raise InvalidRequest("give a duration or one unit, not both")
        wait_s = durations.parse(duration)
    else:
        wait_s = durations.of_units(**units)
    runtime = runtimes.current()
    if wait_s <= IN_PROCESS_S_MAX:
        await runtime.clock.sleep(wait_s)
        return
    await _until(runtime.clock.now_ms() + round(wait_s * 1000), "wait:for")


@either
async def until(date: datetime, *, raise_if_past: bool = False) -> None:
    """Wait until an instant. A naive datetime counts as UTC; a past one returns at once.

    Raises:
        InvalidRequest: the instant is past, and `raise_if_past`.
        NotInRunError: called outside a run.
        ConcurrentWaitError: this run waits for something else already.
    """
    runtime = runtimes.current()
    at = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    until_ms = round(at.timestamp() * 1000)
    left_s = (until_ms - runtime.clock.now_ms()) / 1000
    if left_s <= 0 and raise_if_past:
        raise InvalidRequest(f"{date.isoformat()} is in the past")
    await _until(until_ms, "wait:until")


for_duration = for_


@either
async def sleep(duration: timedelta) -> None:
    """`for_` with a timedelta."""
    await for_(duration)


async def _until(until_ms: int, key: str) -> None:
    """Wait for an instant, which an interrupted attempt may have settled already."""
    runtime = runtimes.current()
    scope = scopes.of(runtime)
    place, stored = scope.journal.take(key)
    if stored is not None:
        until_ms = int(stored)
    left_s = (until_ms - runtime.clock.now_ms()) / 1000
    if left_s > IN_PROCESS_S_MAX:
        if stored is None:
            await scope.journal.put(runtime, place, key, str(until_ms).encode())
        at = datetime.fromtimestamp(until_ms / 1000, UTC)
        async with suspending({"type": "duration", "date": at}):
            await runtime.suspend_until(until_ms)
        return
    if stored is None:
        await scope.journal.put(runtime, place, key, str(until_ms).encode())
    if left_s > 0:
        await runtime.clock.sleep(left_s)


async def for_run(run_id: str) -> RunResult:
    """Wait until a run is final; at once when it is. Child failure does not raise."""
    runtime = runtimes.current()
    result = await runtime.run_result(run_id)
    if result is not None:
        return result
    async with suspending({"type": "task", "run_id": run_id}):
        woken = await runtime.suspend_on_run(run_id)
    result = woken.result or await runtime.run_result(run_id)
    assert result is not None, "a wake for a run carries its result"
    return result


@asynccontextmanager
async def suspending(wait: dict[str, Any]) -> AsyncIterator[None]:
    """Around a suspension: one at a time, with the task's hooks before and after."""
    scope = scopes.of(runtimes.current())
    scope.begin_wait()
    try:
        if scope.on_wait is not None:
            await scope.on_wait(wait)
        yield
        if scope.on_resume is not None:
            await scope.on_resume(wait)
    finally:
        scope.end_wait()
