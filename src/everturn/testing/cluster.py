"""A whole system in one process and one virtual time: server, workers, network, stores.

Everything in it is the real thing: the server as `server/assembly.py` builds it, workers as
`everturn worker` runs them, the link protocol, the HTTP API, the client. Only what lies beneath is
not: engines in memory, a network without sockets, a loop without waiting. Processes are killed
without a goodbye: from that moment nothing they do reaches a store or the network, whatever their
remaining code tries while it is torn down. The stores outlive them, and a keeper starts each again
after a while.

    async with Cluster(app, seed=7).running() as cluster:
        async with cluster.chat("echo", "chat-1") as chat:
            assert await (await chat.send_message("hi")).text() == "echo: hi"
        turns = await cluster.settled("chat-1")

Use it on a virtual loop (`virtual_loop.run_virtual`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from everturn.chat import transcript
from everturn.chat.transcript import Snapshot
from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.clock import Clock
from everturn.errors import EverturnError
from everturn.ids import RandomIds
from everturn.protocol.records import ChannelName, Io, Record
from everturn.rules import limits
from everturn.server.assembly import build
from everturn.server.services.histories import Histories
from everturn.server.settings import Settings
from everturn.storage.memory.objects import MemoryObjects
from everturn.storage.memory.state import MemoryState
from everturn.storage.memory.streams import MemoryStreams
from everturn.storage.memory.wakeups import MemoryWakeups
from everturn.storage.ports.wakeups import Wakeups
from everturn.testing.asgi import AsgiApp, AsgiTransport
from everturn.testing.checker import PromiseBroken, Turn, check_history
from everturn.testing.faults import FaultyCalls, FaultyPort
from everturn.testing.network import URL, Network, Weather
from everturn.testing.verdicts import check_stored_history
from everturn.testing.virtual_loop import LoopClock
from everturn.worker.loading import App
from everturn.worker.worker import Worker

KEY: Final = "tr_dev_" + "simulated" * 3
#: Virtual time in which a system without further faults comes to rest: two leases, and the tries
#: of a client that was refused.
SETTLE_S: Final = 2 * limits.LEASE_MS / 1000 + 60
#: After that, time for somebody to do something twice.
QUIET_S: Final = 10.0
RESTART_S: Final = 0.3


class _Life:
    """One process: killed at most once, and gone when its tasks are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.scope = anyio.CancelScope()

    def kill(self) -> None:
        self.dead = True
        self.scope.cancel()


class ServerLife(_Life):
    """One server process, from its start to its death."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(f"server-{number}")
        self._cluster = cluster
        self.clock = cluster.clock_of(self.name)
        self._links: TaskGroup | None = None
        self.started = False
        self.app: AsgiApp
        self.http: AsgiTransport

    def start_soon(self, work: Callable[..., Any], *args: Any) -> None:
        assert self._links is not None
        self._links.start_soon(work, *args)

    def kill(self) -> None:
        self._unreachable()
        super().kill()

    def _unreachable(self) -> None:
        network = self._cluster.network
        if network.server is self:
            network.server = None
            self.http.cut()
            network.cut_links()

    async def run(self) -> None:
        """Live. A start that fails ends the process, as it does a real one; so does being dead."""
        try:
            await self._live()
        except (EverturnError, BaseExceptionGroup):
            if self.started and not self.dead:
                raise  # No fault of a store may end a server that is up.
        self.dead = True

    async def _live(self) -> None:
        cluster, faults = self._cluster, self._cluster.faults
        # Loosely typed: a wrapper of a port has its methods by forwarding.
        state: Any = FaultyPort(cluster.state, "state", faults, self)
        streams: Any = FaultyPort(cluster.streams, "streams", faults, self)
        objects: Any = FaultyPort(cluster.objects, "objects", faults, self)
        with self.scope:
            async with (
                build(
                    cluster.settings,
                    clock=self.clock,
                    ids=cluster.ids_of(self.name),
                    state=state,
                    streams=streams,
                    objects=objects,
                    wakeups=cluster.new_wakeups(),
                ) as system,
                AsgiTransport(system.app) as http,
                anyio.create_task_group() as links,
            ):
                self.app, self.http, self._links = system.app, http, links
                self.started = True
                cluster.environment_id = system.environment.id
                cluster.network.server = self
                cluster.changed()
                try:
                    await anyio.sleep_forever()
                finally:
                    self._unreachable()


class WorkerLife(_Life):
    """One worker process, from its start to its death."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(name)
        self._cluster = cluster
        self.clock = cluster.clock_of(name)
        self.worker = Worker(
            cluster.app,
            URL,
            KEY,
            version=cluster.version,
            clock=self.clock,
            ids=cluster.ids_of(name),
            dial=partial(cluster.network.dial, self),
            transport=cluster.network.http(self),
        )

    def kill(self) -> None:
        self._cluster.network.cut_links(self)
        super().kill()

    def stall(self, seconds: float) -> None:
        """Let nothing reach it for a while: no message, no timer of its clock."""
        self.clock.hold(seconds)
        until = asyncio.get_running_loop().time() + seconds
        for socket in self._cluster.network.sockets:
            if socket.owner is self:
                socket.held_until = max(socket.held_until, until)

    async def run(self) -> None:
        with self.scope:
            await self.worker.run()
        self.dead = True


class Cluster:
    """One server and some workers over the same stores, kept running."""

    def __init__(
        self,
        app: App,
        *,
        seed: int = 0,
        workers: int = 1,
        faults: FaultyCalls | None = None,
        weather: Weather | None = None,
        wakeups: Callable[[], Wakeups] = MemoryWakeups,
        skew_ms: Callable[[str], int] = lambda name: 0,
    ) -> None:
        """Make the stores; nothing runs yet.

        Args:
            skew_ms: by how much the wall clock of a process, named by it, is ahead.
        """
        self.app = app
        self.faults = faults or FaultyCalls()
        # Keys at rest outlive the process, and so must the key that encrypts them.
        self.settings = Settings(secret_key=KEY, master_key="5e" * 32)
        self.version = "1"
        self.new_wakeups = wakeups
        self.state = MemoryState()
        self.objects = MemoryObjects()
        #: Of the streams' timestamps.
        self.store_clock = LoopClock()
        self.streams = MemoryStreams(self.store_clock)
        self.network = Network(KEY, weather or Weather(), self.faults)
        self.environment_id = ""
        self.restart_s: Callable[[], float] = lambda: RESTART_S
        self.servers_started = 0
        self.lives: dict[int, WorkerLife] = {}
        self._seed = seed
        self._workers = workers
        self._skew_ms = skew_ms
        self._change = anyio.Event()
        self._started: dict[str, int] = {}

    # --- what processes are made of --------------------------------------------------------------

    def clock_of(self, name: str) -> LoopClock:
        return LoopClock(skew_ms=self._skew_ms(name))

    def ids_of(self, name: str) -> RandomIds:
        """Ids that depend on the seed, the process and its number of starts, and on nothing else."""
        self._started[name] = self._started.get(name, 0) + 1
        source = random.Random(f"{self._seed}/{name}/{self._started[name]}")
        return RandomIds(source.randrange(2**63))

    def changed(self) -> None:
        self._change.set()
        self._change = anyio.Event()

    # --- life ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        """Start everything, wait until a worker is connected, arm the faults; end it all."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_server)
            for number in range(self._workers):
                tasks.start_soon(self._keep_worker, number)
            while self.network.server is None or not self._connected():
                await anyio.sleep(0.01)
            self.faults.armed = True
            yield self
            self.faults.armed = False
            tasks.cancel_scope.cancel()

    @property
    def server(self) -> ServerLife | None:
        server = self.network.server
        return server if isinstance(server, ServerLife) else None

    def _connected(self) -> bool:
        return all(life.worker.link.connected for life in self.lives.values()) and bool(self.lives)

    async def _keep_server(self) -> None:
        while True:
            self.servers_started += 1
            await ServerLife(self, self.servers_started).run()
            await anyio.sleep(self.restart_s())

    async def _keep_worker(self, number: int) -> None:
        while True:
            life = self.lives[number] = WorkerLife(self, f"worker-{number}")
            await life.run()
            await anyio.sleep(self.restart_s())

    # --- clients ---------------------------------------------------------------------------------

    def api(self, name: str = "client", *, clock: Clock | None = None) -> Api:
        """A client's calls, over the network."""
        target = Target(URL, KEY, None, self.network.http())
        return Api(target, clock=clock or self.clock_of(name), ids=self.ids_of(name), tries=8)

    def chat(self, agent: str, id: str, **options: Any) -> AgentChat:
        return AgentChat(agent, id, api=self.api(f"client-{id}"), **options)

    # --- the record of what happened -------------------------------------------------------------

    async def records(self, session_key: str, io: Io) -> list[Record]:
        """Every record ever stored on a channel, from the engine itself."""
        found: list[Record] = []
        channel = ChannelName(self.environment_id, session_key, io)
        while page := await self.streams.read(
            channel, after=found[-1].seq_num if found else None, include_trimmed=True
        ):
            found.extend(page)
        return found

    async def history(self, session_key: str) -> Snapshot | None:
        """The stored history of a chat, from the engines themselves; None when there is none."""
        session = await self.state.session(self.environment_id, session_key)
        if session is None:
            return None
        engines: Any = SimpleNamespace(streams=self.streams, objects=self.objects)
        return transcript.decode((await Histories(engines).read(session)).data)

    async def judged(self, session_key: str, *, settled: bool) -> list[Turn]:
        """The turns of a session. Raises PromiseBroken."""
        inputs = await self.records(session_key, "in")
        outputs = await self.records(session_key, "out")
        return check_history(inputs, outputs, settled=settled)

    async def settled(self, session_key: str) -> list[Turn]:
        """Wait until everything is answered, and a while longer; the turns.

        Raises PromiseBroken, also when something stays unanswered.
        """
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while asyncio.get_running_loop().time() < deadline:
            await self.judged(session_key, settled=False)
            try:
                await self.judged(session_key, settled=True)
            except PromiseBroken:
                await anyio.sleep(1)
            else:
                break
        await anyio.sleep(QUIET_S)
        check_stored_history(
            await self.records(session_key, "in"),
            await self.records(session_key, "out"),
            await self.history(session_key),
        )
        return await self.judged(session_key, settled=True)
