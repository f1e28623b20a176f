"""Scenarios against real processes, one of which kills itself at a counted moment.

The scenarios of `fault_scenarios.py`, unchanged, with the official client over HTTP, against a
server and a worker process (`everturn.testing.doomed`) on the embedded engine. For each kind of
moment the first is tried, then the second, until the scenario outruns the process's death. A
process that died is started again at once, as its service manager would; the scenario has to come
out right all the same, and so has the log of its session.

Several systems run side by side, because most of a point is waiting: a worker that was killed is
given up after three seconds.
"""

from __future__ import annotations

import multiprocessing
import pkgutil
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import anyio
import httpx2
import msgspec
from fault_scenarios import APP, SCENARIOS, Expected

from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.errors import EverturnError
from everturn.ids import RandomIds
from everturn.server import services
from everturn.testing import doomed
from everturn.testing.checker import Turn, check_history
from everturn.testing.doomed import Doom, Kill, Tally
from everturn.testing.processes import free_port
from everturn.testing.stored import read_history, read_stored
from everturn.testing.verdicts import check_stored_history

START_S: Final = 30.0
#: A process that counts nothing for this long has done what the scenario made it do; sweeps and
#: heartbeats go on for ever, so there is an end to waiting for it.
REST_S: Final = 0.15
REST_S_MAX: Final = 1.5
#: A whole point; a hang is one, a machine that has other things to do is none.
POINT_S: Final = 180.0
#: Longer than any scenario makes moments of one kind: beyond it, the death is not outrun.
POINTS_MAX: Final = 3_000
#: Systems side by side. More than there are processors: most of a point is waiting.
LANES: Final = 5

#: What a process would import at its start, so that the fork server has it: a start costs
#: milliseconds then.
PRELOAD: Final = [
    "__main__",
    doomed.__name__,
    "anyio._backends._asyncio",
    "everturn.chat.definition",
    "everturn.chat.tools",
    "everturn.client.agent_chat",
    "everturn.storage.memory.wakeups",
    "genai_prices.data",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    *(f"{services.__name__}.{one.name}" for one in pkgutil.iter_modules(services.__path__)),
]

_context = multiprocessing.get_context("forkserver")


class Killed(msgspec.Struct, frozen=True):
    """One scenario under one kind of death, at all its moments."""

    scenario: str
    kill: str
    tried: int
    broken: tuple[str, ...]


class NotStarted(EverturnError):
    """A process did not come up. The message holds the end of its log."""

    code = "not_started"


class Processes:
    """A server and a worker over one data folder. What dies is started again."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        _context.set_forkserver_preload(PRELOAD)
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = "tr_dev_" + RandomIds().part(24).replace("-", "a").replace("_", "b")
        self._environment = {
            "EVERTURN_SECRET_KEY": self.key,
            "EVERTURN_API_URL": self.url,
            "EVERTURN_OFFLINE_DELAY_MS": "20",
            **(environment or {}),
        }
        self._tallies: list[Tally] = []
        self.server: Victim
        self.worker: Victim
        folder.mkdir(parents=True, exist_ok=True)

    async def __aenter__(self) -> Self:
        self.server = await self.start(Kill.SERVER_BEFORE_CALL, 0)
        self.worker = await self.start(Kill.WORKER_BEFORE_MESSAGE, 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.worker.kill()
        self.server.kill()
        for tally in self._tallies:
            tally.close()

    async def start(self, kill: Kill, nth: int) -> Victim:
        """A process that dies at that moment, once it is armed; returns when it serves."""
        doom = Doom(kill, nth, self.folder / f"tally-{len(self._tallies)}")
        self._tallies.append(Tally(doom.tally))
        if not kill.of_worker:
            place: Any = doomed.ServerPlace(
                self.folder,
                int(self.url.rpartition(":")[2]),
                self.folder / "server.log",
                self._environment,
            )
            process = _context.Process(target=doomed.run_server, args=(doom, place), daemon=True)
        else:
            place = doomed.WorkerPlace(
                APP, self.url, self.key, self.folder / "worker.log", self._environment
            )
            process = _context.Process(target=doomed.run_worker, args=(doom, place), daemon=True)
        process.start()
        victim = Victim(process, self._tallies[-1], doom)
        await self._until("/readyz" if kill.of_worker else "/healthz", victim)
        return victim

    async def _until(self, path: str, victim: Victim) -> None:
        async with httpx2.AsyncClient() as client:
            with anyio.move_on_after(START_S):
                while victim.alive:
                    try:
                        answer = await client.get(self.url + path, timeout=2)
                    except httpx2.TransportError:
                        answer = None
                    if answer is not None and answer.status_code == 200:
                        return
                    await anyio.sleep(0.02)
        if victim.alive or victim.doom.nth == 0:
            raise NotStarted(f"{path} never answered 200\n{self.logs()}")

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Start what dies again while the block runs."""
        async with anyio.create_task_group() as tasks:
            # Each by itself: a worker comes up only when there is a server.
            tasks.start_soon(self._keep_server)
            tasks.start_soon(self._keep_worker)
            yield
            tasks.cancel_scope.cancel()

    async def _keep_server(self) -> None:
        while True:
            await anyio.sleep(0.01)
            if not self.server.alive:
                self.server = await self._successor(self.server)

    async def _keep_worker(self) -> None:
        while True:
            await anyio.sleep(0.01)
            if not self.worker.alive:
                self.worker = await self._successor(self.worker)

    async def _successor(self, dead: Victim) -> Victim:
        # The next victim already, though it is not armed: one start for each point. Shielded,
        # because a process that nobody knows of would go on working.
        with anyio.CancelScope(shield=True):
            return await self.start(dead.doom.kill, dead.doom.nth + dead.step)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


class Victim:
    """A process that will die, or will not."""

    def __init__(self, process: Any, tally: Tally, doom: Doom) -> None:
        self._process = process
        self.tally = tally
        self.doom = doom
        self.step = 0

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def exit_status(self) -> int | None:
        """-9 for a process that was killed; None while it lives."""
        status: int | None = self._process.exitcode
        return status

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    async def at_rest(self) -> None:
        """Wait until what follows a scenario (snapshot, trim, suspending) is done, or it died."""
        with anyio.move_on_after(REST_S_MAX):
            before = -1
            while self.alive and self.tally.count != before:
                before = self.tally.count
                await anyio.sleep(REST_S)


class Played:
    """What a scenario takes for a cluster, on real processes."""

    def __init__(self, processes: Processes, number: str) -> None:
        self._processes = processes
        self._number = number
        self.lives = {0: processes.worker}

    def key(self, session: str) -> str:
        return f"{session}-{self._number}"

    def api(self) -> Api:
        return Api(Target(self._processes.url, self._processes.key, None, None), tries=8)

    def chat(self, agent: str, id: str, **options: Any) -> AgentChat:
        return AgentChat(agent, self.key(id), api=self.api(), **options)

    async def judged(self, session: str, *, settled: bool) -> list[Turn]:
        api, key = self.api(), self.key(session)
        inputs = await read_stored(api, key, "in")
        outputs = await read_stored(api, key, "out")
        turns = check_history(inputs, outputs, settled=settled)
        check_stored_history(inputs, outputs, await read_history(api, key))
        return turns

    async def settled(self, session: str) -> list[Turn]:
        """Wait until everything is answered. Raises PromiseBroken when something stays open."""
        with anyio.move_on_after(POINT_S / 2):
            while True:
                with suppress(EverturnError, httpx2.TransportError):  # open, or no server yet
                    return await self.judged(session, settled=True)
                await anyio.sleep(0.1)
        return await self.judged(session, settled=True)


async def try_deaths(
    processes: Processes, scenario: str, kill: Kill, *, first: int = 1, step: int = 1
) -> Killed:
    """The scenario at its first moment of that kind and every `step`th after, until outrun."""
    tried, broken = 0, []
    left: list[tuple[Played, Expected, int]] = []
    nth = first
    while nth < POINTS_MAX:
        victim = await _victim(processes, kill, nth, step)
        played = Played(processes, f"{scenario}-{kill.name.lower()}-{nth}")
        try:
            with anyio.fail_after(POINT_S):
                async with processes.kept_alive():
                    victim.tally.arm(processes.worker.pid if kill.of_both else None)
                    expected = await SCENARIOS[scenario](played)
                    await victim.at_rest()
                    victim.tally.disarm()
                    await _check(played, expected, wait=True)
                    left.append((played, expected, nth))
        except Exception as error:  # whatever it is, it is the finding
            broken.append(f"{scenario}, {kill.value} {nth} ({victim.tally.last}): {_line(error)}")
        victim.tally.disarm()
        if victim.tally.count < nth:
            break
        tried += 1
        nth += step
    # Once more at the end: nothing that was settled may have been answered again meanwhile.
    for played, expected, nth in left:
        try:
            await _check(played, expected, wait=False)
        except Exception as error:  # whatever it is, it is the finding
            broken.append(f"{scenario}, {kill.value} {nth}, afterwards: {_line(error)}")
    return Killed(scenario, kill.name, tried, tuple(broken))


async def _victim(processes: Processes, kill: Kill, nth: int, step: int) -> Victim:
    """The process that is to die at this point, running and unarmed."""
    role = "worker" if kill.of_worker else "server"
    current: Victim = getattr(processes, role)
    fits = (current.doom.kill, current.doom.nth) == (kill, nth) and current.alive
    if not fits:
        current.kill()
        current = await processes.start(kill, nth)
        setattr(processes, role, current)
    current.step = step
    return current


async def _check(played: Played, expected: Expected, *, wait: bool) -> None:
    for session, check in expected.items():
        judge = played.settled(session) if wait else played.judged(session, settled=True)
        check(await judge)


def _line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


async def try_all(
    folder: Path,
    jobs: Sequence[tuple[str, Kill]],
    done: Callable[[Killed], None],
    *,
    step: int = 1,
    lanes: int = LANES,
    environment: Callable[[], dict[str, str]] = dict,
) -> list[Killed]:
    """Every job, on several systems at once; `done` is told of each as it ends.

    With a `step`, each job begins at a moment of its own, so that not always the same ones are
    left out. `environment` is asked for the settings of each system.
    """
    results: list[Killed] = []
    waiting = list(reversed(jobs))

    async def lane(number: int) -> None:
        while waiting:
            scenario, kill = waiting.pop()
            place = folder / f"{number}-{scenario}-{kill.name.lower()}"
            first = 1 + zlib.crc32(f"{scenario}/{kill.name}".encode()) % step
            async with Processes(place, environment()) as processes:
                result = await try_deaths(processes, scenario, kill, first=first, step=step)
            results.append(result)
            done(result)

    async with anyio.create_task_group() as tasks:
        for number in range(lanes):
            tasks.start_soon(lane, number)
    return results
