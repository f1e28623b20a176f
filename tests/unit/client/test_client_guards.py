"""A follower trusts no server to say each thing once (P-2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest

from everturn.client.api import Api
from everturn.client.config import Target
from everturn.client.follow import Follower
from everturn.clock import SystemClock
from everturn.ids import RandomIds
from everturn.protocol import sse
from everturn.protocol.records import Record, data_body

pytestmark = pytest.mark.anyio


def record(seq_num: int, part_id: str) -> Record:
    return Record(seq_num, 1, (), data_body(b'"%d"' % seq_num, part_id))


class Repeating(httpx2.AsyncBaseTransport):
    """Answers each subscription with the next of some batches, and then breaks the connection."""

    def __init__(self, *connections: Sequence[Record]) -> None:
        self._connections = list(connections)
        self.cursors: list[str | None] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.cursors.append(request.headers.get("last-event-id"))
        records = self._connections.pop(0)
        last = not self._connections

        async def body() -> AsyncIterator[bytes]:
            yield sse.encode_batch(records, sent_records=1, sent_bytes=1, tail=None)
            if not last:
                raise httpx2.ReadError("the connection broke")

        headers = {"content-type": "text/event-stream", "x-stream-version": "v2"}
        return httpx2.Response(200, headers=headers, content=body())


class Hurried(SystemClock):
    async def sleep(self, seconds: float) -> None:
        pass


async def followed(transport: Repeating) -> list[Any]:
    api = Api(
        Target("http://server", "tr_dev_x", None, transport), clock=Hurried(), ids=RandomIds()
    )
    async with Follower(api, "s") as follower:
        return [arrived.data async for arrived in arrivals(follower)]


async def arrivals(follower: Follower) -> AsyncIterator[Any]:
    while (arrived := await follower.next()) is not None:
        yield arrived


async def test_a_record_that_comes_again_after_a_broken_connection_is_handed_out_once() -> None:
    """The server was asked to go on behind it, and began one too early."""
    transport = Repeating(
        [record(0, "a"), record(1, "b")], [record(1, "c"), record(2, "d")], [record(3, "e")]
    )
    assert await followed(transport) == ["0", "1", "2", "3"]
    assert transport.cursors == [None, "1", "2"]


async def test_a_part_that_was_stored_twice_is_handed_out_once() -> None:
    """A writer that repeats itself, against a store that forgot."""
    transport = Repeating([record(0, "a"), record(1, "a")], [record(2, "a"), record(3, "b")])
    assert await followed(transport) == ["0", "3"]
