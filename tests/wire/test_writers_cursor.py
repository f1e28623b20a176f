"""A reader that goes on where it stopped writing misses nothing (wire-protocol §5.3, §7.3, §21)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from http_harness import Http, server

from everturn.protocol.records import NewRecord, control_record, data_body
from everturn.server.routes.writers_cursor import RECENT_MS

pytestmark = pytest.mark.anyio

OUT = "/realtime/v1/sessions/chat-1/out"
OLD = {"trigger-version": "4.5.0"}


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as running:
        await running.create()
        yield running


def data(part: str) -> NewRecord:
    return NewRecord(data_body(b'{"type":"start-step"}', part), (), part)


async def head_start(http: Http) -> None:
    """Two records of a guest, then the turn-complete of the run: numbers 0, 1 and 2."""
    streams = http.system.services.streams
    await streams.append(http.channel(), [data("a"), data("b")])
    done = control_record("turn-complete", [("session-in-event-id", "0")])
    await streams.append(http.channel(), [done], fence=1, first_part=0)


async def seen(http: Http, headers: dict[str, str]) -> list[int]:
    """What a reader gets before it has to wait."""
    peek = {"X-Peek-Settled": "1"}
    async with http.follow(OUT, headers=peek | headers) as stream:
        await stream.wait(lambda: stream.ended)
        return [record.seq_num for record in stream.records]


async def test_an_answer_that_was_quicker_than_its_writers_read_is_not_missed(http: Http) -> None:
    await head_start(http)

    assert await seen(http, {"Last-Event-ID": "2", **OLD}) == [2]


@pytest.mark.parametrize("version", [{}, {"trigger-version": "4.8.3"}])
async def test_a_client_that_counts_right_gets_nothing_twice(
    http: Http, version: dict[str, str]
) -> None:
    await head_start(http)

    assert await seen(http, {"Last-Event-ID": "2", **version}) == []


async def test_a_cursor_elsewhere_means_what_it_says(http: Http) -> None:
    await head_start(http)

    assert await seen(http, {"Last-Event-ID": "1", **OLD}) == [2]
    assert await seen(http, {"Last-Event-ID": "0", **OLD}) == [1, 2]
    await http.system.services.streams.append(
        http.channel(), [control_record("turn-complete", [])], fence=1, first_part=1
    )
    assert await seen(http, {"Last-Event-ID": "3", **OLD}) == []


async def test_the_doubt_lasts_a_moment_only(http: Http) -> None:
    await head_start(http)
    await http.clock.advance(RECENT_MS / 1000)

    assert await seen(http, {"Last-Event-ID": "2", **OLD}) == []


async def test_a_reader_from_the_latest_gets_what_comes_after_it(http: Http) -> None:
    await head_start(http)
    async with http.follow(OUT, headers={"X-Trigger-Stream-Start": "latest"}) as stream:
        await http.system.services.streams.append(http.channel(), [data("c")])
        await stream.wait(lambda: stream.records)
        assert [record.seq_num for record in stream.records] == [3]


async def test_a_reader_with_a_cursor_goes_on_after_it_whatever_it_says_of_the_latest(
    http: Http,
) -> None:
    await head_start(http)
    cursor = {"Last-Event-ID": "0", "X-Trigger-Stream-Start": "latest"}

    assert await seen(http, cursor) == [1, 2]


async def test_the_latest_of_nothing_is_the_first_record(http: Http) -> None:
    async with http.follow(OUT, headers={"X-Trigger-Stream-Start": "latest"}) as stream:
        await http.system.services.streams.append(http.channel(), [data("a")])
        await stream.wait(lambda: stream.records)
        assert stream.records[0].seq_num == 0
