"""An event loop whose time is virtual: a day passes as soon as there is nothing else to do.

Everything that asks the loop for the time, and everything that waits on its timers, lives in
virtual time: `anyio.sleep`, `move_on_after`, deadlines of cancel scopes, and `LoopClock`, which is
what code of ours is handed. When no task can run, the time jumps to the next timer. So a lease
that runs out costs no waiting, and a run of the whole system has one order of events.

That order depends on nothing but the program: tasks are numbered as they are made and hash by
that number, and cancel scopes hash by the task they are open in, because anyio keeps both in sets,
and a set of objects that hash by their address would cancel them in another order each time.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import anyio
from anyio._backends._asyncio import CancelScope  # the class in use has no public name

from everturn.errors import EverturnError
from everturn.testing.clock import EPOCH_MS

T = TypeVar("T")
#: What a task may be made of.
_CoroutineLike: TypeAlias = Coroutine[Any, Any, T] | Generator[Any, None, T]

#: Real seconds to wait for a thread when no timer is set; nothing of ours needs one.
_THREAD_S: Final = 5.0


class Stuck(EverturnError):
    """No task can run, no timer is set: nothing would ever happen again."""

    code = "simulation_stuck"


class _Selector(selectors.DefaultSelector):
    """Looks at real descriptors without waiting, and lets virtual time pass instead."""

    elapsed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self.elapsed += timeout
            return []
        ready = super().select(_THREAD_S)
        if not ready:
            raise Stuck("no task can run and no timer is set")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._numbers = itertools.count(1)
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual.elapsed

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: _CoroutineLike[T], **options: Any
    ) -> asyncio.Task[T]:
        return _NumberedTask(next(self._numbers), coro, loop=loop, **options)


class _NumberedTask(asyncio.Task[T]):
    def __init__(self, number: int, coro: _CoroutineLike[T], **options: Any) -> None:
        self._number = number  # first: the base class puts the task into a set
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class LoopClock:
    """A process's clock on a virtual loop.

    Args:
        skew_ms: how far this process's wall clock is ahead of the others'.
    """

    def __init__(self, *, skew_ms: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self._skew_ms = skew_ms
        self._held_until = 0.0

    def now_ms(self) -> int:
        return EPOCH_MS + self._skew_ms + round(self._loop.time() * 1000)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        while (left_s := self._held_until - self._loop.time()) > 0:
            await anyio.sleep(left_s)

    def jump(self, by_ms: int) -> None:
        """Set the wall clock forward, or back with a negative number. The stopwatch goes on."""
        self._skew_ms += by_ms

    def hold(self, seconds: float) -> None:
        """Stall the process: its sleepers sleep on, while its clock shows how late it is."""
        self._held_until = max(self._held_until, self._loop.time() + seconds)


@contextmanager
def _ordered_scopes() -> Iterator[None]:
    """Let anyio's cancel scopes hash by their task's number instead of their address.

    A scope is in a set only while it is open, and its task stays the same for that long.
    """

    def number(scope: CancelScope) -> int:
        return hash(getattr(scope, "_host_task", None))

    before = CancelScope.__hash__
    # By name, because to a type checker a class's methods are not to be replaced. They are here,
    # for one loop that runs alone in its thread: anyio offers no order of its own.
    setattr(CancelScope, "__hash__", number)  # noqa: B010
    try:
        yield
    finally:
        setattr(CancelScope, "__hash__", before)  # noqa: B010


def run_virtual(main: Callable[[], Awaitable[T]], *, virtual_s_max: float = 3600.0) -> T:
    """Run `main` on a virtual loop of its own; what it returns.

    Raises TimeoutError when it takes longer than `virtual_s_max` of virtual time.
    """

    async def bounded() -> T:
        with anyio.fail_after(virtual_s_max):
            return await main()

    with _ordered_scopes(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(bounded())
