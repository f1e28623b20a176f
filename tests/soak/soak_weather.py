"""What happens to the processes of a soak: every few seconds one misfortune, drawn from a seed.

Workers and the server are killed, drained and stopped in their tracks, and started again as a
service manager would. Two things are left alone, so that their memory can be watched for long: the
first worker is stopped now and then but never ends, and the server lives through the middle of the
storm.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup

from everturn.testing.processes import EverturnProcess, NotReady, System

#: Seconds between two misfortunes.
PAUSE_S: Final = (2.0, 6.0)
#: Shares of the storm between which nothing happens to the server.
QUIET: Final = (0.35, 0.85)
#: Workers let go of suspended runs after this, so that those of people who left are not counted as
#: growth for a quarter of an hour; and boots from storage are part of the weather.
IDLE_TTL_S: Final = 60.0
#: A drained worker has 20 s for its turns.
DRAIN_S: Final = 30.0

Misfortune = Callable[[], Awaitable[None]]


class Weather:
    """Does things to a system for a while."""

    def __init__(self, system: System, *, workers: int, chance: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        #: Set when the server's quiet part begins.
        self.quiet = anyio.Event()
        self._system = system
        self._chance = chance
        self._workers: list[EverturnProcess] = []
        self._count = workers
        self._tasks: TaskGroup

    @property
    def elder(self) -> EverturnProcess:
        """The worker that never ends."""
        return self._workers[0]

    @property
    def server(self) -> EverturnProcess:
        assert self._system.server is not None
        return self._system.server

    @property
    def workers(self) -> list[EverturnProcess]:
        return list(self._workers)

    async def start(self) -> None:
        """Server and workers, before the storm."""
        await anyio.to_thread.run_sync(self._system.start_server)
        for _ in range(self._count):
            self._workers.append(await self._new_worker(wait=True))

    async def _new_worker(self, *, wait: bool = False) -> EverturnProcess:
        start = partial(self._system.start_worker, wait=wait, idle_ttl_s=IDLE_TTL_S)
        return await anyio.to_thread.run_sync(start)

    async def rage(self, seconds: float, over: anyio.Event) -> None:
        """One misfortune after another until the time or the soak is over. Then all is mended."""
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            while not over.is_set():
                with anyio.move_on_after(self._chance.uniform(*PAUSE_S)):
                    await over.wait()
                share = (anyio.current_time() - began) / seconds
                if share >= 1:
                    break
                if share > QUIET[0]:
                    self.quiet.set()
                name, strike = self._draw(spare_server=QUIET[0] < share < QUIET[1])
                self.happened[name] += 1
                await strike()
        await self._mend()

    def _draw(self, *, spare_server: bool) -> tuple[str, Misfortune]:
        of_workers: list[tuple[str, Misfortune]] = [
            ("worker killed", self._kill_worker),
            ("worker killed", self._kill_worker),
            ("worker drained", self._drain_worker),
            ("worker stopped for seconds", self._stall_worker),
        ]
        of_server: list[tuple[str, Misfortune]] = [
            ("server killed", self._kill_server),
            ("server killed", self._kill_server),
            ("server and worker killed", self._kill_both),
            ("server drained", self._drain_server),
            ("server stopped for seconds", self._stall_server),
        ]
        return self._chance.choice(of_workers if spare_server else of_workers + of_server)

    # --- misfortunes -----------------------------------------------------------------------------

    def _victim(self) -> int:
        return self._chance.randrange(1, self._count)

    async def _kill_worker(self) -> None:
        place = self._victim()
        await anyio.to_thread.run_sync(self._workers[place].kill)
        await anyio.sleep(self._chance.uniform(0, 2))
        self._workers[place] = await self._new_worker()

    async def _drain_worker(self) -> None:
        """The new one first, then the old one may finish: a rolling restart."""
        place = self._victim()
        old, self._workers[place] = self._workers[place], await self._new_worker()
        old.signal(signal.SIGCONT)
        self._tasks.start_soon(anyio.to_thread.run_sync, partial(old.stop, DRAIN_S))

    async def _stall_worker(self) -> None:
        """A few seconds, which a lease survives; now and then longer than one lasts."""
        place = self._chance.randrange(self._count)
        seconds = 34.0 if place and self._chance.random() < 0.2 else self._chance.uniform(1, 6)
        self._tasks.start_soon(self._stall, self._workers[place], seconds)

    async def _kill_server(self) -> None:
        self._system.kill_server()
        await anyio.sleep(self._chance.uniform(0, 1))
        await self._start_server()

    async def _kill_both(self) -> None:
        self._system.kill_server()
        await self._kill_worker()
        await self._start_server()

    async def _drain_server(self) -> None:
        await anyio.to_thread.run_sync(partial(self.server.stop, DRAIN_S))
        await self._start_server()

    async def _stall_server(self) -> None:
        await self._stall(self.server, self._chance.uniform(0.5, 3))

    async def _stall(self, process: EverturnProcess, seconds: float) -> None:
        if process.running:
            process.signal(signal.SIGSTOP)
            await anyio.sleep(seconds)
        if process.running:
            process.signal(signal.SIGCONT)

    # --- mending ---------------------------------------------------------------------------------

    async def _start_server(self) -> None:
        for _ in range(3):
            try:
                await anyio.to_thread.run_sync(self._system.start_server)
            except NotReady:
                self._system.kill_server()
            else:
                return
        await anyio.to_thread.run_sync(self._system.start_server)

    async def _mend(self) -> None:
        """Everything runs again, whatever ended it (Ctrl-C reaches all of them)."""
        if not self.server.running:
            await self._start_server()
        for place, worker in enumerate(self._workers):
            if not worker.running:
                self._workers[place] = await self._new_worker()
