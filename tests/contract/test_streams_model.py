"""Random calls on SQLite and on memory, the executable specification: the same answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from everturn.errors import EverturnError
from everturn.protocol.records import NewRecord, Record, trim_record
from everturn.storage.memory.streams import MemoryStreams
from everturn.storage.ports.streams import StreamStore, Subscription
from everturn.storage.sqlite import SqliteStreams
from everturn.testing.contracts.streams_scene import IN, OUT, SteppedClock

CHANNELS = st.sampled_from([IN, OUT])
CURSORS = st.none() | st.integers(0, 25)
RECORDS = st.lists(
    st.builds(
        NewRecord,
        body=st.binary(max_size=20),
        headers=st.sampled_from([(), (("a", "ü"),), (("trigger-control", "turn-complete"),)]),
        part_id=st.none() | st.sampled_from(["p", "q", "r", "s"]),
    ),
    min_size=1,
    max_size=4,
)


class StreamsMachine(RuleBasedStateMachine):
    """Both engines get every call; whatever is answered or refused must be alike."""

    @initialize(compact_records=st.sampled_from([1, 7, 100_000]), tail=st.sampled_from([0, 10**8]))
    def start(self, compact_records: int, tail: int) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.options = {"compact_records": compact_records, "tail_bytes_max": tail}
        self.clock = SteppedClock()
        self.memory = MemoryStreams(self.clock)
        self.open()

    def open(self) -> None:
        path = Path(self.folder.name) / "s.db"
        self.sqlite = self.run(SqliteStreams.open(path, self.clock, **self.options))
        self.places: list[tuple[Subscription, Subscription]] = []

    def run(self, call: Awaitable[Any]) -> Any:
        async def main() -> Any:
            return await call

        return self.runner.run(main())

    def both(self, call: Callable[[StreamStore], Awaitable[Any]]) -> None:
        async def answer(streams: StreamStore) -> Any:
            try:
                found = await call(streams)
            except EverturnError as error:
                return type(error), error.details
            if isinstance(found, list) and found and isinstance(found[0], Record):
                return [(r, r.fence, r.part) for r in found]
            return found

        assert self.run(answer(self.sqlite)) == self.run(answer(self.memory))

    @rule(channel=CHANNELS, records=RECORDS)
    def append_as_guest(self, channel: Any, records: Any) -> None:
        self.both(lambda streams: streams.append(channel, records))

    @rule(channel=CHANNELS, records=RECORDS, fence=st.integers(1, 4), first_part=st.integers(0, 6))
    def append_under_a_lease(self, channel: Any, records: Any, fence: int, first_part: int) -> None:
        self.both(
            lambda streams: streams.append(channel, records, fence=fence, first_part=first_part)
        )

    @rule(channel=CHANNELS, fence=st.integers(1, 4))
    def raise_fence(self, channel: Any, fence: int) -> None:
        self.both(lambda streams: streams.raise_fence(channel, fence))

    @rule(channel=CHANNELS, before=st.integers(0, 30))
    def trim(self, channel: Any, before: int) -> None:
        self.both(lambda streams: streams.append(channel, [trim_record(before)]))

    @rule(ms=st.integers(-500, 500))
    def time_moves(self, ms: int) -> None:
        self.clock.ms += ms

    @rule(channel=CHANNELS, fence=st.integers(1, 4), first=st.integers(0, 6))
    def part_seqs(self, channel: Any, fence: int, first: int) -> None:
        self.both(lambda streams: streams.part_seqs(channel, fence, first, 8))

    @rule(
        channel=CHANNELS,
        after=CURSORS,
        records_max=st.integers(1, 9),
        bytes_max=st.integers(1, 200),
        include_trimmed=st.booleans(),
    )
    def read(self, channel: Any, **bounds: Any) -> None:
        self.both(lambda streams: streams.read(channel, **bounds))

    @rule(channel=CHANNELS, before=CURSORS, records_max=st.integers(1, 9))
    def read_back(self, channel: Any, **bounds: Any) -> None:
        self.both(lambda streams: streams.read_back(channel, **bounds))

    @rule(channel=CHANNELS)
    def bounds(self, channel: Any) -> None:
        self.both(lambda streams: streams.bounds(channel))

    @precondition(lambda self: len(self.places) < 4)
    @rule(channel=CHANNELS, after=CURSORS)
    def subscribe(self, channel: Any, after: int | None) -> None:
        pair = (self.sqlite.subscribe(channel, after), self.memory.subscribe(channel, after))
        self.places.append(pair)

    @rule(records_max=st.integers(1, 9))
    def follow(self, records_max: int) -> None:
        for ours, theirs in self.places:
            assert (ours.cursor, ours.caught_up) == (theirs.cursor, theirs.caught_up)
            if not ours.caught_up:
                found = self.run(ours.next(records_max=records_max))
                assert found == self.run(theirs.next(records_max=records_max))

    @rule()
    def reopen(self) -> None:
        self.run(self.sqlite.close())
        self.open()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.sqlite.close())
            self.runner.close()
            self.folder.cleanup()


TestStreamsMachine = StreamsMachine.TestCase
TestStreamsMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
