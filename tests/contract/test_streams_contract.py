"""The contract of streams, on every engine; on SQLite also with records moved at every chance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from everturn.storage.memory.streams import MemoryStreams
from everturn.storage.ports.streams import StreamStore
from everturn.storage.sqlite import SqliteStreams
from everturn.testing.contracts.streams import (
    Capabilities,
    SteppedClock,
    StreamsEngine,
    TestAfterReopening,
    TestAppend,
    TestClose,
    TestFences,
    TestForgetting,
    TestPartIds,
    TestParts,
    TestReads,
    TestSubscriptions,
    TestTrims,
)

__all__ = [
    "TestAfterReopening",
    "TestAppend",
    "TestClose",
    "TestFences",
    "TestForgetting",
    "TestPartIds",
    "TestParts",
    "TestReads",
    "TestSubscriptions",
    "TestTrims",
]


class MemoryEngine:
    capabilities = Capabilities(survives_reopen=False)

    def __init__(self, path: Path) -> None:
        self.clock = SteppedClock()
        self.streams: StreamStore

    async def open(self) -> None:
        self.streams = MemoryStreams(self.clock)

    async def reopen(self) -> StreamStore:
        raise NotImplementedError("memory does not survive")


class SqliteEngine:
    capabilities = Capabilities()
    options: dict[str, int] = {}

    def __init__(self, path: Path) -> None:
        self.clock = SteppedClock()
        self.path = path / "streams.db"
        self.streams: StreamStore

    async def open(self) -> None:
        self.streams = await SqliteStreams.open(self.path, self.clock, **self.options)

    async def reopen(self) -> StreamStore:
        await self.streams.close()
        await self.open()
        return self.streams


class RestlessSqliteEngine(SqliteEngine):
    """Compacts after every commit and keeps nothing in memory that a segment holds."""

    options = {"compact_records": 1, "tail_bytes_max": 0}


ENGINES = [MemoryEngine, SqliteEngine, RestlessSqliteEngine]


async def opened(
    kind: type[MemoryEngine | SqliteEngine], path: Path
) -> AsyncIterator[StreamsEngine]:
    engine = kind(path)
    await engine.open()
    yield engine
    await engine.streams.close()


@pytest.fixture(params=ENGINES, ids=lambda kind: kind.__name__)
async def engine(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[StreamsEngine]:
    async for it in opened(request.param, tmp_path):
        yield it


@pytest.fixture(
    params=[kind for kind in ENGINES if kind.capabilities.survives_reopen],
    ids=lambda kind: kind.__name__,
)
async def durable_engine(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[StreamsEngine]:
    async for it in opened(request.param, tmp_path):
        yield it
