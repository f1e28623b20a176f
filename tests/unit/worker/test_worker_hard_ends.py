"""Attempts that end in the worst moment or the worst way: late, refused, crashed, unreadable."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn.errors import AbortTaskRunError
from everturn.protocol import link as frames
from everturn.protocol.records import NewRecord
from everturn.tasks import runtime as runtimes
from everturn.tasks.definition import task
from everturn.worker.loading import load_app

pytestmark = pytest.mark.anyio


async def test_an_attempt_that_ends_late_takes_no_answers_from_the_one_after_it(
    server: Any, work: Any
) -> None:
    """The same run, claimed again while the author's `finally` was still at work."""
    tidy, tidied = anyio.Event(), anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> str:
        runtime = runtimes.current()
        if runtime.info.fence == 1:
            try:
                await runtime.append([NewRecord(body=b"x")])
            finally:
                with anyio.CancelScope(shield=True):
                    await tidy.wait()
                tidied.set()
        await runtime.run_result("run_other")
        return "second"

    server.acknowledge = False
    async with work() as worker:
        await server.claim(session_id="session_c1", session_key="k", fence=1)
        await server.next(frames.Append)
        await server.claim(session_id="session_c1", session_key="k", fence=2)
        asked = await server.call("run.result")
        tidy.set()
        await tidied.wait()
        await server.until(lambda: worker._active == 1)
        await server.answer(asked, None)
        finished = await server.call("finish")

    assert (finished.fence, finished.params["outcome"]["kind"]) == (2, "completed")


async def test_a_run_whose_append_was_refused_is_given_back_and_not_forgotten(
    server: Any, work: Any
) -> None:
    """Fenced it belongs to somebody else; refused otherwise it is nobody's until we say so."""
    server.acknowledge = False

    @task(id="t")
    async def t(payload: Any) -> None:
        await runtimes.current().append([NewRecord(body=b"x")])

    async with work():
        await server.next(frames.Hello)
        await server.claim(session_id="session_c1", session_key="k")
        sent = await server.next(frames.Append)
        await server.send(frames.Refused(sent.run_id, 1, sent.first_part, "conflict", "no"))
        again = await server.next(frames.Hello)

    assert again.held == []


async def test_the_end_of_a_crashed_process_is_not_waited_for_twice(
    server: Any, work: Any, tmp_path: Path
) -> None:
    file = tmp_path / "crashing_app.py"
    file.write_text(
        textwrap.dedent(
            """
            import os
            from everturn.tasks.definition import task

            @task(id="exits")
            def exits(payload):
                os._exit(3)
            """
        )
    )
    async with work(app=load_app(str(file))) as worker:
        zygote = await worker._pool._running_zygote()
        ended: list[int] = []
        kill = zygote.kill

        async def counted(pid: int) -> int:
            ended.append(await kill(pid))
            return ended[-1]

        zygote.kill = counted  # type: ignore[method-assign]  # to see that it returned
        await server.claim(task_id="exits")
        outcome = await server.outcome()

    assert outcome["error"]["code"] == "TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE"
    assert ended == [3]


async def test_an_exception_whose_text_cannot_be_made_fails_its_run_under_its_own_name(
    server: Any, work: Any
) -> None:
    class Mute(BaseException):
        def __str__(self) -> str:
            raise ValueError("nothing to say")

    @task(id="t")
    async def t(payload: Any) -> None:
        raise Mute

    async with work():
        await server.claim()
        outcome = await server.outcome()

    assert (outcome["kind"], outcome["error"]["name"]) == ("failed", "Mute")


async def test_what_a_task_of_a_group_raised_decides_and_not_the_group(
    server: Any, work: Any
) -> None:
    """Wrapped, it would be tried again for nothing, and nobody could read why it failed."""

    async def refuse() -> None:
        raise AbortTaskRunError("no such order")

    @task(id="t")
    async def t(payload: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(refuse)

    async with work():
        await server.claim()
        outcome = await server.outcome()

    assert (outcome["kind"], outcome["retryable"]) == ("failed", False)
    assert outcome["error"]["message"] == "no such order"
    assert "in refuse" in outcome["error"]["stackTrace"]
