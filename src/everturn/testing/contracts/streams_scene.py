"""What the contract of streams sets its scenes with: an engine, its clock, two channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from everturn.protocol.records import (
    ChannelName,
    NewRecord,
    Record,
)
from everturn.storage.ports.streams import StreamStore

IN = ChannelName("env_a", "session_a", "in")
OUT = ChannelName("env_a", "session_a", "out")


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond the port's every-day promises."""

    #: Records, parts and fences are there again after `reopen`.
    survives_reopen: bool = True


class SteppedClock:
    """Time that moves when a test says so, also backwards."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


class StreamsEngine(Protocol):
    """One engine under test."""

    capabilities: Capabilities
    clock: SteppedClock
    streams: StreamStore

    async def reopen(self) -> StreamStore:
        """Close the store and open what it left behind; `streams` is the new one."""
        ...


def text(body: str, part_id: str | None = None) -> NewRecord:
    """A record whose body is this text."""
    return NewRecord(body.encode(), part_id=part_id)


def bodies(records: Sequence[Record]) -> list[str]:
    """What the records say."""
    return [record.body.decode() for record in records]


async def everything(streams: StreamStore, channel: ChannelName = OUT) -> list[Record]:
    """All visible records, read page by page."""
    found: list[Record] = []
    after: int | None = None
    while page := await streams.read(channel, after=after, records_max=100):
        found.extend(page)
        after = page[-1].seq_num
    return found


async def write(streams: StreamStore, *texts: str, channel: ChannelName = OUT) -> tuple[int, ...]:
    """Append texts as a guest, in one call."""
    return (await streams.append(channel, [text(t) for t in texts])).seq_nums
