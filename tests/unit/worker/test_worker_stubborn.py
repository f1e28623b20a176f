"""Author code that does not end when it is stopped: its run ends without it (P-3, P-10)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn.errors import LeaseLost
from everturn.protocol import link as frames
from everturn.tasks import runtime as runtimes
from everturn.tasks.definition import task
from everturn.worker import stubborn

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubborn, "_LOOK_S", 0.02)


async def goes_on_until(over: anyio.Event) -> None:
    """What an author may write: a loop in which everything is caught."""
    while not over.is_set():
        with suppress(BaseException):
            await over.wait()


@pytest.mark.parametrize("how", ["canceled", "timed_out"])
async def test_a_run_whose_code_catches_its_cancellation_ends_without_it(
    server: Any, work: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    over, wrote = anyio.Event(), []

    @task(id="t")
    async def t(payload: Any) -> str:
        await goes_on_until(over)
        with anyio.CancelScope(shield=True):
            try:
                await runtimes.current().add_tags(["late"])
            except LeaseLost as error:
                wrote.append(error.message)
        return "late"

    async with work() as worker:
        worker.stubborn._give_up_s = 0.1
        await server.claim(max_duration_s=1 if how == "timed_out" else None)
        await server.next(frames.Started)
        if how == "canceled":
            await server.send(frames.Cancel("run_c1", "enough"))
        outcome = await server.outcome()
        over.set()
        await server.until(lambda: worker._active == 0)
        finished = [one for one in server.frames if isinstance(one, frames.Call)]

    assert outcome["kind"] == how
    assert wrote == ["the run has ended without waiting for its code"]
    assert finished == []
    [line] = [line for line in caplog.messages if line.startswith("run.stubborn")]
    assert "t (run_c1)" in line
    assert how in line


async def test_a_run_that_takes_its_time_to_clean_up_is_not_given_up(
    server: Any, work: Any
) -> None:
    cleaned, clean = anyio.Event(), anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await clean.wait()
            cleaned.set()

    async with work():
        await server.claim()
        await server.next(frames.Started)
        await server.send(frames.Cancel("run_c1", "enough"))
        with anyio.move_on_after(0.2):
            await server.call("finish")
            pytest.fail("it was reported before it ended")
        clean.set()
        outcome = await server.outcome()

    assert cleaned.is_set()
    assert outcome["kind"] == "canceled"


APP = """
import anyio
from everturn import task

@task(id="t")
async def t(payload):
    while True:
        try:
            await anyio.sleep(3600)
        except BaseException:
            pass
"""


async def test_a_worker_that_is_told_to_leave_leaves_such_code_behind(
    server: Any, tmp_path: Path
) -> None:
    """Its run is handed over first, so that another worker goes on with it at once."""
    app = tmp_path / "app.py"
    app.write_text(textwrap.dedent(APP))
    command = [sys.executable, "-m", "everturn", "worker", str(app), "--url", server.url]
    environment = {**os.environ, "EVERTURN_SECRET_KEY": "tr_dev_test", "EVERTURN_VERSION": "v1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        await server.next(frames.Hello)
        await server.claim()
        await server.next(frames.Started)
        process.send_signal(signal.SIGTERM)
        await server.next(frames.Credit, lambda credit: credit.runs == 0)
        process.send_signal(signal.SIGTERM)  # does not wait for the grace
        outcome = await server.outcome()
        with anyio.fail_after(20):
            status = await anyio.to_thread.run_sync(process.wait)
    finally:
        process.kill()
        _, said = await anyio.to_thread.run_sync(process.communicate)

    assert outcome["kind"] == "interrupted"
    assert status == stubborn.LEFT_BEHIND
    assert "run.stubborn" in said
    assert "worker.left_behind" in said
