"""Whole systems in virtual time, and everything that can go wrong, drawn from one seed.

A simulation is people who talk to agents for a while, some in two tabs at once, with weather:
worker and server processes are killed, stalled, drained and replaced by newer versions; links
break, stand still, die in one direction without anybody hearing of it, or are accepted by a peer
that never says a word; HTTP requests and their answers are lost, cut short, never answered, and
overtake each other, as calls of the stores do; stores are away for seconds and carry out calls
without answering; wake-ups are lost, late or doubled; clocks disagree, and are set forward and back
by up to an hour. Then the weather clears, everything settles, and a judge looks at what is left:
the log of each session (`checker`), what clients were told was stored (P-1), what readers saw
(P-2), what people were shown as their answers and what the stored history holds (`verdicts`), and
that each id is one session with one run at most (P-11).

Everything is drawn from the seed, and nothing else decides the order of events (`virtual_loop`),
so the same seed gives the same records, byte for byte. A seed that fails can be run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import anyio

from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.follow import Follower
from everturn.errors import EverturnError
from everturn.protocol.records import Io, Record
from everturn.rules.run_states import FINAL
from everturn.storage.memory.wakeups import MemoryWakeups
from everturn.storage.ports.rows import RunFilter, SessionFilter
from everturn.storage.ports.wakeups import Waiter
from everturn.testing.checker import (
    Acknowledged,
    PromiseBroken,
    Turn,
    check_acknowledged,
    check_reader,
    check_stops,
)
from everturn.testing.cluster import Cluster
from everturn.testing.faults import Fault, FaultyCalls, Place
from everturn.testing.network import Weather
from everturn.testing.sockets import Pipe
from everturn.testing.verdicts import Shown, check_answers, check_shown
from everturn.testing.virtual_loop import run_virtual
from everturn.worker.loading import App

#: Virtual seconds of bad weather.
STORM_S: Final = 40.0
SESSIONS: Final = 3
MESSAGES: Final = 6
#: How many clients of its own a conversation has: often two, which know nothing of each other.
TABS: Final = (1, 1, 2)
WORKERS: Final = 2
#: Agents of `tests/apps/simulated.py`; a session talks to one of them.
AGENTS: Final = (
    *("echo", "slow", "eager", "moving", "forgetful", "looking"),
    *("strict", "asking"),
)
_WITH_TOOLS: Final = ("looking", "strict")
#: How far a clock is set forward or back, in seconds: around the leases, and far beyond them.
JUMPS_S: Final = (2, 20, 90, 3600)
_REQUEST_FATES: Final = (
    Fault.REQUEST_LOST,
    Fault.RESPONSE_LOST,
    Fault.REQUEST_TORN,
    Fault.RESPONSE_TORN,
    Fault.UNANSWERED,
)
_CATCH_UP_S: Final = 120.0


class History(NamedTuple):
    """What one simulation left behind."""

    seed: int
    #: Hash over every record of every channel, and over what clients saw.
    digest: str
    #: How often each kind of fault happened.
    faults: Counter[str]
    #: Turns by how they ended: `answered`, `failed`, and `restarted` among both.
    turns: Counter[str]


class SimulationFailed(EverturnError):
    """A promise was broken. The message begins with the seed."""

    code = "simulation_failed"


def simulate(app: App, seed: int, *, storm_s: float = STORM_S) -> History:
    """Run one simulation. Raises SimulationFailed, caused by what was found."""
    try:
        return run_virtual(lambda: _Simulation(app, seed, storm_s).run())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found: BaseException = error
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise SimulationFailed(f"seed {seed}: {type(found).__name__}: {found}") from error


class _Storm(Weather, FaultyCalls):
    """What the network and the stores do while the weather is bad."""

    def __init__(self, seed: int) -> None:
        FaultyCalls.__init__(self)
        self._random = random.Random(f"{seed}/weather")
        self.over = False
        #: How likely a store call fails right now.
        self.outage = 0.0
        self.happened: Counter[str] = Counter()

    def delay_s(self) -> float:
        slow = not self.over and self._random.random() < 0.02
        return self._random.uniform(0.2, 3.0) if slow else self._random.uniform(0.0001, 0.004)

    def request_fate(self) -> Fault | None:
        return self._draw(0.08, _REQUEST_FATES)

    def dial_fate(self) -> Fault | None:
        if self.over or self._random.random() >= 0.05:
            return None
        self.happened["link accepted, never answered"] += 1
        return Fault.UNANSWERED

    def pieces_before(self) -> int:
        return self._random.choice((0, 0, 1, 3, 10))

    def split_at(self, size: int) -> int:
        return size if self._random.random() < 0.8 else self._random.randrange(size + 1)

    def due(self, place: Place, name: str) -> Fault | None:
        self.counts[place] += 1
        if not self.armed or place is not Place.PORT:
            return None
        return self._draw(max(self.outage, 0.001), (Fault.REFUSED, Fault.ANSWER_LOST))

    def store_delay_s(self) -> float:
        if self.over or self._random.random() >= 0.2:
            return 0.0
        return self._random.uniform(0.0, 0.5 if self._random.random() < 0.05 else 0.02)

    def hint_fate(self) -> str:
        """`kept`, `lost`, `late` or `doubled`."""
        if self.over or self._random.random() < 0.7:
            return "kept"
        fate = self._random.choice(("lost", "late", "doubled"))
        self.happened[f"wake-up {fate}"] += 1
        return fate

    def _draw(self, likely: float, faults: Sequence[Fault]) -> Fault | None:
        if self.over or self._random.random() >= likely:
            return None
        fault = self._random.choice(faults)
        self.happened[fault.value] += 1
        return fault


class _Hints(MemoryWakeups):
    """Wake-ups that may be lost, late or doubled, handed out in the order of asking."""

    def __init__(self, storm: _Storm) -> None:
        super().__init__()
        self._storm = storm
        self._topics: dict[str, dict[Any, None]] = {}

    def notify(self, topic: str) -> None:
        fate = self._storm.hint_fate()
        if fate == "lost":
            return
        if fate == "late":
            asyncio.get_running_loop().call_later(1.0, self._hint, topic)
            return
        self._hint(topic)

    def _hint(self, topic: str) -> None:
        for waiter in list(self._topics.get(topic, ())):
            waiter.hint()

    def waiter(self, topic: str) -> Waiter:
        waiter = super().waiter(topic)
        self._topics.setdefault(topic, {})[waiter] = None
        return waiter

    def forget(self, topic: str, waiter: Any) -> None:
        super().forget(topic, waiter)
        self._topics.get(topic, {}).pop(waiter, None)


class _NotingApi(Api):
    """Notes every append that was acknowledged."""

    acknowledged: list[Acknowledged]

    async def append(
        self, session: str, io: Io, text: str, *, part_id: str, base_url: str | None = None
    ) -> int | None:
        seq = await super().append(session, io, text, part_id=part_id, base_url=base_url)
        assert seq is not None
        self.acknowledged.append(Acknowledged(session, io, part_id, seq, text))
        return seq


class _Simulation:
    def __init__(self, app: App, seed: int, storm_s: float) -> None:
        self.seed = seed
        self.storm_s = storm_s
        self.storm = _Storm(seed)
        #: By person.
        self.acknowledged: dict[str, list[Acknowledged]] = {}
        self.seen: dict[str, list[Record]] = {}
        self.shown: dict[str, list[Shown]] = {}
        self._random = random.Random(f"{seed}/plan")
        self.cluster = Cluster(
            app,
            seed=seed,
            workers=WORKERS,
            faults=self.storm,
            weather=self.storm,
            wakeups=lambda: _Hints(self.storm),
            skew_ms=self._skew_ms,
        )
        self.cluster.restart_s = lambda: self._random.uniform(0.05, 4.0)

    def _skew_ms(self, name: str) -> int:
        """Servers agree within a second or so, as their leases need; others may be far off."""
        far = 1_000 if name.startswith("server") else 600_000
        return random.Random(f"{self.seed}/{name}/skew").randrange(-far, far)

    async def run(self) -> History:
        agents = {f"chat-{n}": self._random.choice(AGENTS) for n in range(SESSIONS)}
        async with self.cluster.running() as cluster, anyio.create_task_group() as readers:
            for key in agents:
                readers.start_soon(self._read, key)
            async with anyio.create_task_group() as people:
                people.start_soon(self._rage)
                for key, agent in agents.items():
                    for tab in range(self._random.choice(TABS)):
                        people.start_soon(self._talk, key, agent, f"{key}-{tab}")
            turns: Counter[str] = Counter()
            for key, agent in agents.items():
                ended = await cluster.settled(key)
                for turn in ended:
                    turns["failed" if turn.error else "answered"] += 1
                    turns["restarted"] += turn.restarts > 0
                await self._judge_turns(key, agent, ended)
            await self._judge_sessions()
            digest = await self._judge(list(agents))
            readers.cancel_scope.cancel()
        return History(self.seed, digest, self.storm.happened, turns)

    # --- weather ---------------------------------------------------------------------------------

    async def _rage(self) -> None:
        """One misfortune after another, and then none."""
        with anyio.move_on_after(self.storm_s):
            while True:
                await anyio.sleep(self._random.expovariate(0.5))
                name, strike = self._random.choice(self._misfortunes())
                self.storm.happened[name] += 1
                await strike()
        self.storm.over = True
        self.storm.outage = 0.0

    def _misfortunes(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            ("worker killed", self._kill_worker),
            ("worker killed", self._kill_worker),
            ("server killed", self._kill_server),
            ("links cut", self._cut_links),
            ("link dead in one direction", self._half_dead),
            ("link stood still in one direction", self._hold_direction),
            ("clock set forward or back", self._jump_clock),
            ("worker stalled", self._stall_worker),
            ("store away", self._store_away),
            ("worker drained for a new version", self._deploy),
        ]

    async def _kill_worker(self) -> None:
        self._random.choice(list(self.cluster.lives.values())).kill()

    async def _kill_server(self) -> None:
        if self.cluster.server is not None:
            self.cluster.server.kill()

    async def _cut_links(self) -> None:
        self.cluster.network.cut_links()

    def _some_direction(self) -> Pipe | None:
        sockets = list(self.cluster.network.sockets)
        if not sockets:
            return None
        socket = self._random.choice(sockets)
        return self._random.choice((socket.to_server, socket.to_worker))

    async def _half_dead(self) -> None:
        direction = self._some_direction()
        if direction is not None:
            direction.dead = True

    async def _hold_direction(self) -> None:
        direction = self._some_direction()
        if direction is not None:
            until = asyncio.get_running_loop().time() + self._random.choice((1.0, 5.0, 25.0))
            direction.held_until = max(direction.held_until, until)

    async def _jump_clock(self) -> None:
        clocks = [life.clock for life in self.cluster.lives.values()]
        clocks.append(self.cluster.store_clock)
        if self.cluster.server is not None:
            # Twice as likely as the others: leases and waits are kept by its clock.
            clocks += [self.cluster.server.clock] * 2
        jump_s = self._random.choice(JUMPS_S) * self._random.choice((1, -1))
        self._random.choice(clocks).jump(jump_s * 1000)

    async def _stall_worker(self) -> None:
        life = self._random.choice(list(self.cluster.lives.values()))
        life.stall(self._random.choice((1.0, 5.0, 20.0, 45.0)))

    async def _store_away(self) -> None:
        self.storm.outage = self._random.choice((0.1, 0.5, 1.0))
        await anyio.sleep(self._random.uniform(0.1, 4.0))
        self.storm.outage = 0.0

    async def _deploy(self) -> None:
        self.cluster.version = str(int(self.cluster.version) + 1)
        self._random.choice(list(self.cluster.lives.values())).worker.stop()

    # --- people ----------------------------------------------------------------------------------

    async def _talk(self, key: str, agent: str, name: str) -> None:
        """A person: sends, reads, sometimes stops, steers, leaves, or comes back later."""
        chance = random.Random(f"{self.seed}/{name}")
        plain = self.cluster.api(f"person-{name}")
        api = _NotingApi(plain.target, clock=plain.clock, ids=plain.ids, tries=4)
        api.acknowledged = self.acknowledged[name] = []
        self.shown.setdefault(key, [])
        chat = AgentChat(agent, key, api=api)
        for n in range(MESSAGES):
            await anyio.sleep(chance.expovariate(0.3))
            try:
                with anyio.move_on_after(chance.uniform(2, 60)):
                    await self._say(chat, agent, f"m{n}", api, chance)
            except EverturnError:
                continue  # Not answered, or not even accepted: people try something else.
        with anyio.move_on_after(10, shield=True):
            await chat.__aexit__(None, None, None)

    async def _say(
        self, chat: AgentChat, agent: str, text: str, api: _NotingApi, chance: random.Random
    ) -> None:
        if agent == "forgetful" and chance.random() < 0.3:
            stream = await chat.send_action({"type": "forget"})
        else:
            text = "look" if agent in _WITH_TOOLS and chance.random() < 0.5 else text
            stream = await chat.send_message(text)
        sent = api.acknowledged[-1].seq_num
        mood = chance.choice(("patient", "patient", "patient", "stops", "steers", "leaves"))
        at = chance.randrange(1, 8)
        seen, said = 0, ""
        async for chunk in stream:
            seen += 1
            if chunk["type"] == stream.RESTARTED:
                said = ""
            said += str(chunk.get("delta", "")) if chunk["type"] == "text-delta" else ""
            if seen != at:
                continue
            if mood == "stops":
                await chat.stop()
            elif mood == "steers":
                await chat.steer(f"{text} too")
            elif mood == "leaves":
                await stream.aclose()
                return
        if stream.complete:
            self.shown[chat.id].append(Shown(sent, said, stream.error))

    async def _read(self, key: str) -> None:
        """A reader of the whole conversation, over as many connections as it takes."""
        seen = self.seen[key] = []
        while True:
            after = seen[-1].seq_num if seen else None
            api = self.cluster.api(f"reader-{key}")
            try:
                async with Follower(api, key, after=after, endless=True) as follower:
                    async for record in follower:
                        # One by one: the judge looks at the list while this waits.
                        seen.append(record)  # noqa: PERF401
            except EverturnError:
                await anyio.sleep(1)

    # --- the judge -------------------------------------------------------------------------------

    async def _judge_turns(self, key: str, agent: str, turns: Sequence[Turn]) -> None:
        """What was answered, stopped and shown. What is remembered, the cluster looks at."""
        inputs = await self.cluster.records(key, "in")
        check_stops(inputs, turns)
        check_answers(agent, inputs, turns)
        check_shown(self.shown[key], turns)

    async def _judge_sessions(self) -> None:
        """One session for an id, and one live run for a session at most (P-11, P-4)."""
        state, environment = self.cluster.state, self.cluster.environment_id
        found = await state.sessions(environment, SessionFilter(), limit=100, now_ms=0)
        ids = [session.external_id for session in found.items]
        if len(ids) != len(set(ids)):
            raise PromiseBroken(f"P-11: there are sessions {sorted(map(str, ids))}")
        for session in found.items:
            runs = await state.runs(environment, RunFilter(session_id=session.id), limit=100)
            live = [run.id for run in runs.items if run.state not in FINAL]
            if len(live) > 1:
                raise PromiseBroken(f"P-11: session {session.external_id} has live runs {live}")

    async def _judge(self, keys: Sequence[str]) -> str:
        """Everything but the turns, which are judged already. The digest of all there is."""
        digest = hashlib.sha256()
        everything_told = [one for told in self.acknowledged.values() for one in told]
        for key in keys:
            for io in ("in", "out"):
                records = await self.cluster.records(key, "in" if io == "in" else "out")
                told = [a for a in everything_told if (a.session, a.io) == (key, io)]
                check_acknowledged(records, told)
                for record in records:
                    digest.update(record.wire + b"%d-%d" % (record.fence, record.part))
                if io == "out":
                    await self._caught_up(key, records)
                    check_reader(self.seen[key], records)
        for told_one in everything_told:
            digest.update(repr(told_one).encode())
        digest.update(repr(sorted(self.storm.happened.items())).encode())
        return digest.hexdigest()

    async def _caught_up(self, key: str, records: Sequence[Record]) -> None:
        if not records:
            return
        with anyio.move_on_after(_CATCH_UP_S):
            while not self.seen[key] or self.seen[key][-1].seq_num < records[-1].seq_num:
                await anyio.sleep(0.5)
