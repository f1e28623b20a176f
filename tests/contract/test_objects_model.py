"""Random calls on objects and on wake-ups: what the simplest thing that could be right answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from everturn.storage.memory.objects import MemoryObjects
from everturn.storage.memory.wakeups import MemoryWakeups
from everturn.storage.objects.files import FileObjects
from everturn.storage.ports.wakeups import Waiter

# One name is no folder of another, as with all names we make.
NAMES = st.sampled_from(
    [
        "env/sessions/s1/history-1.json",
        "env/sessions/s1/history-2.json",
        "env/s2",
        "other/packets/p",
    ]
)
DATA = st.sampled_from([b"", b"a", b"b" * 10_000]) | st.binary(max_size=40)


class Machine(RuleBasedStateMachine):
    """A loop for calls that wait."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def run(self, call: Awaitable[Any]) -> Any:
        async def main() -> Any:
            return await call

        return self.runner.run(main())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


class ObjectsMachine(Machine):
    """Local files against the memory engine, over restarts and beside what a crash left behind."""

    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.memory = MemoryObjects()
        self.files = FileObjects(Path(self.folder.name))

    @rule(name=NAMES, data=DATA)
    def put(self, name: str, data: bytes) -> None:
        for store in (self.memory, self.files):
            self.run(store.put(name, data))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        for store in (self.memory, self.files):
            self.run(store.delete(name))

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        assert self.run(self.files.get(name)) == self.run(self.memory.get(name))

    @rule(leftover=st.binary(max_size=9))
    def reopen_after_a_crash(self, leftover: bytes) -> None:
        """A put that was cut off leaves a temporary file: the next start removes it."""
        self.files.close()
        writing = Path(self.folder.name) / ".writing"
        (writing / "tmpcutoff").write_bytes(leftover)
        self.files = FileObjects(Path(self.folder.name))
        assert [path.name for path in writing.iterdir()] == ["lock"]

    @rule()
    def everything_is_there_and_nothing_else(self) -> None:
        root = Path(self.folder.name)
        found = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and ".writing" not in path.parts
        }
        names = self.memory.names()
        assert found == {name: self.run(self.memory.get(name)) for name in names}

    def teardown(self) -> None:
        if hasattr(self, "files"):
            self.files.close()
            self.folder.cleanup()
        super().teardown()


TOPICS = st.sampled_from(["queue/a", "queue/b"])


class WakeupsMachine(Machine):
    """A hint counts once for everybody who waits on its topic then, and for nobody else."""

    def open(self) -> None:
        self.wakeups = MemoryWakeups()
        #: A waiter, its topic, and whether a hint came since its last wait.
        self.waiting: list[tuple[Waiter, str]] = []
        self.hinted: list[bool] = []

    @rule(topic=TOPICS)
    def begin(self, topic: str) -> None:
        if len(self.waiting) < 5:
            self.waiting.append((self.wakeups.waiter(topic), topic))
            self.hinted.append(False)

    @rule(topic=TOPICS)
    def notify(self, topic: str) -> None:
        self.wakeups.notify(topic)
        self.hinted = [
            seen or each == topic for seen, (_, each) in zip(self.hinted, self.waiting, strict=True)
        ]

    @rule(place=st.integers(0, 4))
    def wait(self, place: int) -> None:
        if place < len(self.waiting):
            assert self.run(self.waiting[place][0].wait(0.0)) is self.hinted[place]
            self.hinted[place] = False

    @rule(place=st.integers(0, 4), twice=st.booleans())
    def end(self, place: int, twice: bool) -> None:
        if place < len(self.waiting):
            waiter, _ = self.waiting.pop(place)
            self.hinted.pop(place)
            waiter.close()
            if twice:
                waiter.close()

    @rule()
    def topics_without_waiters_cost_nothing(self) -> None:
        assert set(self.wakeups._waiters) == {topic for _, topic in self.waiting}


TestObjectsMachine = ObjectsMachine.TestCase
TestObjectsMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestWakeupsMachine = WakeupsMachine.TestCase
TestWakeupsMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
