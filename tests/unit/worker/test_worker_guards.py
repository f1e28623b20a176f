"""A worker and its lease, its calls and its parked runs, at the moments that are easy to miss."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.clock import SystemClock
from everturn.errors import Unavailable
from everturn.ids import RandomIds
from everturn.protocol import link as frames
from everturn.rules import limits
from everturn.tasks import runtime as runtimes
from everturn.tasks import waits
from everturn.tasks.definition import task
from everturn.worker.link import Link

pytestmark = pytest.mark.anyio


class StillClock(SystemClock):
    """Time that a test sets."""

    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at


async def test_a_lease_counts_from_when_the_answered_beat_was_sent() -> None:
    """P-4: the answer may have been long on its way, and the server counts from the beat."""
    clock = StillClock()
    peer: Any = None  # never asked: there is no connection
    link = Link("http://server", "key", peer, clock=clock, ids=RandomIds())
    lease_s, margin_s = limits.LEASE_MS / 1000, limits.LEASE_MARGIN_MS / 1000
    link._beats_sent[1] = clock.at = 100.0
    clock.at = 109.0
    link._receive(frames.Beat(1))
    clock.at = 100.0 + lease_s - margin_s - 0.1
    assert link.lease_trusted
    clock.at = 100.0 + lease_s - margin_s
    assert not link.lease_trusted


async def test_a_connection_that_answers_no_heartbeat_is_given_up_for_a_new_one(
    server: Any, work: Any
) -> None:
    """P-3: it may look alive for minutes, and a lease would end with it."""
    server.heartbeat_ms = 50
    server.answer_beats = False
    async with work():
        await server.next(frames.Hello)
        await server.next(frames.Hello)
    assert server.connections == 2


async def test_a_call_the_server_could_not_answer_is_made_again_under_its_own_name(
    server: Any, work: Any
) -> None:
    """P-5: it may have been carried out, and must not be a second time."""

    @task(id="t")
    async def t(payload: Any) -> None:
        await runtimes.current().add_tags(["a"])

    async with work():
        await server.claim()
        first = await server.call("tags")
        await server.answer(first, Unavailable("the store is away"))
        again = await server.call("tags")
        await server.answer(again, {})
        await server.outcome()
    assert again.id == first.id


async def test_an_author_who_catches_everything_does_not_keep_a_run_that_was_let_go_of(
    server: Any, work: Any
) -> None:
    """P-10: it belongs to nobody here any more, whatever its code does about errors."""
    server.answers["evict"] = lambda params: {"evicted": True}
    went_on: list[str] = []
    left = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            try:
                await waits.for_(seconds=60)
            except Exception:  # what an author may write
                went_on.append("went on")
        finally:
            left.set()

    async with work() as worker:
        await server.claim()
        await server.call("suspend")
        await server.until(lambda: len(worker.parking) == 1)
        [parked] = worker.parking
        assert await parked.evict()
        with anyio.fail_after(5):
            await left.wait()
    assert went_on == []
