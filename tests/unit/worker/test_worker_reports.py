"""A run whose outcome the server does not take: it ends all the same, and holds up nobody."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.errors import InvalidRequest, TooLarge
from everturn.protocol import link as frames
from everturn.rules import limits
from everturn.tasks.definition import task
from everturn.worker import attempt

pytestmark = pytest.mark.anyio


async def test_a_refused_outcome_is_followed_by_a_plain_failure_that_says_why(
    server: Any, work: Any
) -> None:
    del server.answers["finish"]

    @task(id="t")
    async def t(payload: Any) -> str:
        return "done"

    async with work():
        await server.claim()
        first = await server.call("finish")
        await server.answer(first, InvalidRequest("output: not of this world"))
        second = await server.call("finish")
        await server.answer(second, {})

    assert first.params["outcome"]["kind"] == "completed"
    outcome = second.params["outcome"]
    assert (outcome["kind"], outcome["retryable"]) == ("failed", False)
    assert "output: not of this world" in outcome["error"]["message"]
    assert second.id != first.id
    assert server.connections == 1


async def test_a_run_that_cannot_be_reported_at_all_is_let_go_of_and_the_others_are_kept(
    server: Any, work: Any
) -> None:
    """Named by no Hello, it is recovered by the server: counted, bounded, visible."""
    del server.answers["finish"]
    go_on = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        return None

    @task(id="other")
    async def other(payload: Any) -> None:
        await go_on.wait()

    async with work():
        await server.next(frames.Hello)
        await server.claim(run_id="run_o", task_id="other")
        await server.claim()
        for _ in range(2):
            await server.answer(await server.call("finish"), TooLarge("never"))
        again = await server.next(frames.Hello)
        go_on.set()
        finished = await server.call("finish")
        await server.answer(finished, {})

    assert [held.run_id for held in again.held] == ["run_o"]
    assert finished.run_id == "run_o"


async def test_a_server_that_never_answers_a_report_is_connected_to_anew(
    server: Any, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server.answers["finish"]
    monkeypatch.setattr(attempt, "REPORT_S_MAX", 0.2)

    @task(id="t")
    async def t(payload: Any) -> None:
        return None

    async with work():
        await server.next(frames.Hello)
        await server.claim()
        await server.call("finish")
        assert (await server.next(frames.Hello)).held == []


async def test_an_output_over_the_limit_fails_the_run_and_names_the_sizes(
    server: Any, work: Any
) -> None:
    @task(id="t")
    async def t(payload: Any) -> str:
        return "x" * limits.OUTPUT_BYTES_MAX

    async with work():
        await server.claim()
        outcome = await server.outcome()

    assert outcome["kind"] == "failed"
    assert outcome["error"]["code"] == "TASK_OUTPUT_ERROR"
    assert outcome["error"]["message"] == (
        f"the output is {limits.OUTPUT_BYTES_MAX + 2} bytes, at most {limits.OUTPUT_BYTES_MAX}"
    )
