"""Sync tasks run in processes that can be stopped (rulings §5.6)."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from everturn.protocol import link as frames
from everturn.worker.loading import load_app

pytestmark = pytest.mark.anyio

APP = """
import os, time
from everturn.tasks import waits as wait
from everturn.tasks.definition import task
from everturn.tasks.metadata import metadata
from everturn.tasks.steps import step

@task(id="double")
def double(payload):
    return {"n": payload["n"] * 2, "pid": os.getpid()}

@task(id="fails")
def fails(payload):
    raise KeyError("gone")

@task(id="exits")
def exits(payload):
    os._exit(3)

@task(id="blocks")
def blocks(payload):
    open(payload, "w").write(str(os.getpid()))
    while True:
        time.sleep(60)

@task(id="talks")
def talks(payload, ctx):
    metadata.set("half", True)
    first = step("first", lambda: 20)
    wait.for_(seconds=60)
    result = double.trigger_and_wait({"n": first}).unwrap()
    return {"run": ctx.run.id, "first": first, "child": result}
"""


@pytest.fixture
def app(tmp_path: Path) -> Any:
    file = tmp_path / "pool_app.py"
    file.write_text(textwrap.dedent(APP))
    return load_app(str(file))


async def test_a_sync_task_runs_in_another_process(server: Any, work: Any, app: Any) -> None:
    async with work(app=app):
        await server.claim(task_id="double", payload=b'{"n": 4}')
        outcome = await server.outcome()

    output = msgspec.json.decode(outcome["output"])
    assert output["n"] == 8
    assert output["pid"] != os.getpid()


async def test_its_exception_keeps_its_type_and_stack(server: Any, work: Any, app: Any) -> None:
    async with work(app=app):
        await server.claim(task_id="fails")
        outcome = await server.outcome()

    assert outcome["kind"] == "failed"
    assert outcome["error"]["name"] == "KeyError"
    assert "pool_app.py" in outcome["error"]["stackTrace"]


async def test_a_process_that_exits_is_a_crash_with_its_code(
    server: Any, work: Any, app: Any
) -> None:
    async with work(app=app):
        await server.claim(task_id="exits")
        outcome = await server.outcome()

    assert outcome["kind"] == "crashed"
    assert outcome["error"]["code"] == "TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE"
    assert "3" in outcome["error"]["message"]


async def test_cancelling_kills_a_process_that_never_returns(
    server: Any, work: Any, app: Any, tmp_path: Path
) -> None:
    mark = tmp_path / "pid"
    async with work(app=app):
        info = await server.claim(task_id="blocks", payload=b'"%s"' % os.fsencode(mark))
        await server.until(lambda: mark.exists() and mark.read_text())
        await server.send(frames.Cancel(info.run_id, "enough"))
        outcome = await server.outcome()

    assert outcome["kind"] == "canceled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


async def test_waits_steps_metadata_and_children_block_in_a_sync_task(
    server: Any, work: Any, app: Any
) -> None:
    server.answers["trigger"] = lambda params: {"runId": "run_child", "isCached": False}
    server.answers["run.result"] = lambda params: {
        "run_id": "run_child",
        "task_id": "double",
        "ok": True,
        "status": "COMPLETED",
        "output": b'{"n": 40}',
    }
    async with work(app=app) as worker:
        info = await server.claim(task_id="talks")
        suspend = await server.call("suspend")
        assert suspend.params["wait"]["kind"] == "until"
        await server.until(lambda: len(worker.parking))
        await server.send(frames.Wake(info.run_id, info.fence, False, []))
        trigger = await server.call("trigger")
        outcome = await server.outcome()
        metadata = await server.call("metadata")

    assert trigger.params["payload"] == b'{"n":20}'
    assert trigger.params["wait"] is True
    assert metadata.params["operations"] == [{"type": "set", "key": "half", "value": True}]
    assert outcome["output"] == b'{"run":"run_c1","first":20,"child":{"n":40}}'
