"""A soak: many live conversations on real processes, through faults every few seconds.

    python tests/soak/soak.py [--minutes 20] [--conversations 200] [--workers 3] [--seed N]

A server and some workers on the embedded engine, people who talk to agents through the official
Python client, and weather: kill -9, drains, stalls. At the end a judge reads both channels of
every session: nothing lost, nothing doubled, every message answered by one turn or visibly failed,
every stop for its own turn only, every reader each record once and in order; and the memory of the
processes stayed flat. Ctrl-C ends the storm early and judges what there is.

Exits 1 when anything was broken; the folder with the store and all logs is kept then.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
from soak_judge import Judge, Judged
from soak_memory import Memory
from soak_people import AGENTS, Conversation, Person, read_along
from soak_weather import Weather

from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.errors import EverturnError
from everturn.rules import limits
from everturn.testing.processes import System
from everturn.testing.stored import read_stored

ROOT: Final = Path(__file__).resolve().parents[2]
APP: Final = ROOT / "tests" / "apps" / "simulated.py"
RESULT: Final = ROOT / "docs" / "faults" / "soak.json"
PROGRESS_S: Final = 10.0
#: How many tabs a conversation has open.
TABS: Final = (1, 1, 1, 2)
SAMPLE_S: Final = 1.0
#: Sessions that are read again at the same time, at the end.
READERS: Final = 48
#: Shorter soaks say nothing about memory, and fill no cache.
FILL_FROM_S: Final = 300.0
#: Records that fill the server's cache (300 bytes and twice its body is what it counts for one),
#: in as many sessions, so many at a time.
FILL_RECORDS: Final = limits.STREAM_TAIL_BYTES_MAX // 400
FILL_SESSIONS: Final = 20
FILL_AT_ONCE: Final = 500
#: Open files of the soak itself: two streams and an append for each conversation.
FILES_MIN: Final = 8_192


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how many, and the seed that everything else is drawn from."""

    seconds: float
    conversations: int
    workers: int
    seed: int
    think_s: float


@dataclass
class Soak:
    """One soak, from its start to its figures."""

    plan: Plan
    folder: Path
    say: Callable[[str], None]
    memory: Memory = field(default_factory=Memory)
    happened: Counter[str] = field(default_factory=Counter)
    judged: list[Judged] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    async def run(self) -> dict[str, Any]:
        """Everything; the figures."""
        self._over = anyio.Event()
        self._live = 0
        plan = self.plan
        with closing(System(self.folder, APP)) as system:
            self._target = Target(system.url, system.key, None, None)
            self._judge = Judge(self._target)
            self._weather = Weather(
                system, workers=plan.workers, chance=random.Random(f"{plan.seed}/weather")
            )
            await self._weather.start()
            self._began = anyio.current_time()
            async with anyio.create_task_group() as watchers:
                watchers.start_soon(self._watch)
                watchers.start_soon(self._obey_interrupt)
                if plan.seconds >= FILL_FROM_S:
                    watchers.start_soon(self._fill)
                async with anyio.create_task_group() as people:
                    people.start_soon(self._storm)
                    for number in range(plan.conversations):
                        people.start_soon(self._person, number)
                self._stormed_s = anyio.current_time() - self._began
                await self._judge_again()
                watchers.cancel_scope.cancel()
        self.broken += self.memory.complaints()
        return self.figures()

    async def _storm(self) -> None:
        await self._weather.rage(self.plan.seconds, self._over)
        self._over.set()

    async def _fill(self) -> None:
        """Fill the server's cache of records, so that its filling does not look like a leak."""
        await self._weather.quiet.wait()
        try:
            await self._fill_cache(Api(self._target))
        except EverturnError as error:
            self.say(f"the server's cache could not be filled, its growth will count: {error}")

    async def _fill_cache(self, api: Api) -> None:
        record = {"data": {"type": "text-delta", "id": "fill", "delta": "a word or two"}}
        for number in range(FILL_SESSIONS):
            chat = AgentChat("echo", f"filler-{number}", api=api)
            await chat.preload()
            for _ in range(FILL_RECORDS // FILL_SESSIONS // FILL_AT_ONCE):
                await api.write_records(chat.id, [record] * FILL_AT_ONCE)
            # A record that was read is kept as readers got it, too.
            await read_stored(api, chat.id, "out")
        self.memory.is_warm(self._weather.server.pid, anyio.current_time())
        self.say("the server's cache of records is full; from here on, growth counts")

    async def _person(self, number: int) -> None:
        """One conversation after another, until the storm is over."""
        chance = random.Random(f"{self.plan.seed}/{number}")
        talked = 0
        # Not all at once: people come one by one.
        with anyio.move_on_after(chance.uniform(0, min(self.plan.think_s, 10))):
            await self._over.wait()
        while not self._over.is_set():
            agent = chance.choice(AGENTS)
            conversation = Conversation(f"{agent}-{number}-{talked}", agent)
            talked += 1
            async with anyio.create_task_group() as readers:
                readers.start_soon(read_along, conversation, self._target)
                self._live += 1
                async with anyio.create_task_group() as people:
                    for tab in ("", "other tab ")[: chance.choice(TABS)]:
                        person = Person(
                            conversation,
                            self._target,
                            random.Random(chance.random()),
                            self.happened,
                            self.plan.think_s,
                            tab,
                        )
                        people.start_soon(person.talk, self._over)
                self._live -= 1
                await self._hear(conversation)
                readers.cancel_scope.cancel()

    async def _hear(self, conversation: Conversation) -> None:
        try:
            self.judged.append(await self._judge.settled(conversation))
        except EverturnError as error:
            self._is_broken(f"{conversation.key}: {error}")

    async def _judge_again(self) -> None:
        """Every session once more, now that all is quiet."""
        self.say(f"reading {len(self.judged)} sessions again")
        gate = anyio.CapacityLimiter(READERS)

        async def again(one: Judged) -> None:
            async with gate:
                try:
                    await self._judge.again(one)
                except EverturnError as error:
                    self._is_broken(f"{one.key}, read again: {error}")

        async with anyio.create_task_group() as tasks:
            for one in self.judged:
                tasks.start_soon(again, one)

    def _is_broken(self, line: str) -> None:
        self.broken.append(line)
        self.say(f"    BROKEN {line}")

    # --- watching --------------------------------------------------------------------------------

    async def _obey_interrupt(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as received:
            async for _ in received:
                self.say("ending the storm; what there is gets judged")
                self._over.set()

    async def _watch(self) -> None:
        """Sample memory; say how it goes."""
        told = anyio.current_time()
        while True:
            await anyio.sleep(SAMPLE_S)
            now, weather = anyio.current_time(), self._weather
            if not self._over.is_set():
                # Without its people a system empties, which is not the slope that is meant.
                self.memory.sample("server", weather.server.pid, now)
                self.memory.sample("worker", weather.elder.pid, now)
            if now - told >= PROGRESS_S:
                told = now
                self.say(self._progress())

    def _progress(self) -> str:
        counts = self._counts()
        return (
            f"{anyio.current_time() - self._began:6.0f} s  live {self._live}  "
            f"messages {self.happened['messages']}  faults {self._weather.happened.total()}  "
            f"judged: {counts['sessions']} sessions, {counts['answered']} answered, "
            f"{counts['failed visibly']} failed visibly, "
            f"{counts['interrupted and answered again']} answered again  "
            f"MiB: server {self.memory.newest('server'):.0f}, "
            f"worker {self.memory.newest('worker'):.0f}  broken {len(self.broken)}"
        )

    def _counts(self) -> Counter[str]:
        return sum((one.counts for one in self.judged), Counter())

    def figures(self) -> dict[str, Any]:
        """What `docs/faults.md` shows. No dates: a run is named by its seed."""
        return {
            "seed": self.plan.seed,
            "seconds": round(self._stormed_s),
            "conversations": self.plan.conversations,
            "workers": self.plan.workers,
            "faults": dict(sorted(self._weather.happened.items())),
            "people": dict(sorted(self.happened.items())),
            "judged": dict(sorted(self._counts().items())),
            "memory": self.memory.report(),
            "broken": self.broken,
        }


def soak(plan: Plan, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run one soak in a folder; its figures. `broken` is empty when everything held."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_MIN:
        limit = FILES_MIN if hard == resource.RLIM_INFINITY else min(FILES_MIN, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return anyio.run(Soak(plan, folder, say).run)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of storm (default 20)")
    parser.add_argument("--conversations", type=int, default=200, help="at any time (default 200)")
    parser.add_argument("--workers", type=int, default=3, help="at least 2 (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="of people and weather (default 1)")
    parser.add_argument("--think", type=float, default=15.0, help="mean seconds between messages")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args()
    if options.workers < 2:
        parser.error("--workers is at least 2: one of them is never killed")
    plan = Plan(
        seconds=options.minutes * 60,
        conversations=options.conversations,
        workers=options.workers,
        seed=options.seed,
        think_s=options.think,
    )
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="everturn-soak-"))
    figures = soak(plan, folder, lambda line: print(line, flush=True))
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if not figures["broken"]:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"{len(figures['broken'])} broken. {how_to_look(folder)}")
    return 1


def how_to_look(folder: Path) -> str:
    """What to do with the folder of a soak that failed."""
    return (
        f"Store and logs are in {folder}: read server.log and worker-*.log, or serve it with "
        f"`everturn server --data-dir {folder}` and look with `everturn sessions show KEY`."
    )


if __name__ == "__main__":
    sys.exit(main())
