"""Our own client: tokens, batches, subscriptions and packets, on a real server and worker."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn import NotFound, batch, runs, streams, wait
from everturn.client import config
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "tasks.py"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("python"), APP) as running:
        yield running


@pytest.fixture(autouse=True)
async def target(system: System) -> AsyncIterator[None]:
    config.configure(url=system.url, secret_key=system.key)
    try:
        with anyio.fail_after(60):
            yield
    finally:
        config.configure()


async def until(run: str, found: Callable[[runs.Run], bool]) -> runs.Run:
    """Follow a run until it is as wanted."""
    async for now in runs.subscribe_to_run(run, stop_on_completion=False):
        if found(now):
            return now
    raise AssertionError("a subscription never ends")


async def test_a_run_waits_for_its_children_of_a_batch() -> None:
    run = await runs.trigger("family", {"numbers": [1, 2, 3, 4]})
    ended = await runs.poll(run, interval=0.05)
    found = await batch.retrieve(ended.output["batch"])

    assert ended.output["doubled"] == [2, 4, 6, 8]
    assert (found.status, found.run_count, len(found.runs)) == ("COMPLETED", 4, 4)


async def test_a_batch_from_outside_is_followed_to_its_end() -> None:
    items: list[batch.BatchItem] = [{"task": "double", "payload": {"n": n}} for n in range(3)]
    handle = await batch.trigger(items, idempotency_key=uuid.uuid4().hex)
    outputs = {}
    async for run in runs.subscribe_to_batch(handle.id):
        if run.is_success:
            outputs[run.id] = run.output["doubled"]
        if len(outputs) == 3:
            break

    assert sorted(outputs.values()) == [0, 2, 4]


async def test_a_subscription_ends_with_its_run_and_shows_every_kind_of_change() -> None:
    tag = uuid.uuid4().hex
    run = await runs.trigger("steps", tags=[tag, 'quo"ted, comma'])
    seen = [now async for now in runs.subscribe_to_run(run, skip=["payload"])]

    assert seen[-1].status == "COMPLETED"
    assert seen[-1].output == {"steps": 3}
    assert seen[-1].tags == (tag, 'quo"ted, comma')
    assert {now.metadata["step"] for now in seen if now.metadata} == {0, 1, 2}
    async for tagged in runs.subscribe_to_runs_with_tag(tag):
        assert tagged.id == run.id
        break


async def test_a_large_payload_travels_as_a_packet_both_ways() -> None:
    text = "ä" * 300_000
    run = await runs.trigger("measure", {"text": text})
    ended = await runs.poll(run, interval=0.05)

    assert ended.output == {"length": len(text)}
    assert ended.payload == {"text": text}
    assert "payloadPresignedUrl" in ended.raw


async def test_tokens_are_made_found_completed_and_listed() -> None:
    tag = uuid.uuid4().hex
    token = await wait.create_token(tags=tag, idempotency_key=tag, timeout="1h")
    again = await wait.create_token(idempotency_key=tag)
    before = await wait.retrieve_token(token)
    await wait.complete_token(token, {"n": 1})
    await wait.complete_token(token, {"n": 2})
    after = await wait.retrieve_token(token)
    listed = [found.id async for found in wait.list_tokens(tags=tag, limit=1)]

    assert (again.id, again.is_cached) == (token.id, True)
    assert (before.status, before.output) == ("WAITING", None)
    assert before.timeout_at is not None
    assert (after.status, after.output, after.error) == ("COMPLETED", {"n": 1}, None)
    assert listed == [token.id]
    with pytest.raises(NotFound):
        await wait.complete_token("waitpoint_none")


async def test_a_run_that_waits_for_an_unknown_token_fails() -> None:
    run = await runs.trigger("waiting", {"token": "waitpoint_none"}, max_attempts=1)
    ended = await runs.poll(run, interval=0.05)

    assert ended.status == "FAILED"
    assert ended.error is not None
    assert "Waitpoint not found" in ended.error["message"]


async def test_a_task_without_a_loop_makes_completes_and_waits_for_a_token() -> None:
    ended = await runs.poll(await runs.trigger("sync-approval", {"n": 1}), interval=0.05)

    assert ended.output == {"n": 1}


async def test_runs_are_replayed_and_moved_and_their_keys_reset() -> None:
    key = uuid.uuid4().hex
    run = await runs.trigger("double", {"n": 4}, idempotency_key=key, delay="1h")
    moved = await runs.reschedule(run, "2h")
    replayed = await runs.poll(await runs.replay(run), interval=0.05)
    await runs.reset_idempotency_key("double", key)
    fresh = await runs.trigger("double", {"n": 4}, idempotency_key=key)

    assert moved.status == "DELAYED"
    assert replayed.output == {"doubled": 8}
    assert fresh.id != run.id


async def test_a_worker_that_dies_while_its_run_waits_costs_neither_token_nor_answer(
    system: System,
) -> None:
    """The next attempt finds the token it had handed out in its journal (tasks-and-runs §29)."""
    run = await runs.trigger("approval", {})
    waiting = await until(run.id, lambda now: now.is_waiting)
    assert waiting.metadata is not None
    token = waiting.metadata["token"]

    await anyio.to_thread.run_sync(system.kill_worker)
    await wait.complete_token(token, {"approved": True})
    await anyio.to_thread.run_sync(system.start_worker)
    ended = await runs.poll(run, interval=0.05)

    assert ended.output == {"ok": True, "output": {"approved": True}, "error": ""}
    assert ended.metadata is not None
    assert ended.metadata["token"] == token
    assert ended.attempt_count == 2


async def test_a_server_that_restarts_while_a_run_waits_completes_it_all_the_same(
    system: System,
) -> None:
    run = await runs.trigger("approval", {})
    waiting = await until(run.id, lambda now: now.is_waiting)
    assert waiting.metadata is not None
    seen: list[Any] = []

    async def follow() -> None:
        seen.extend([now async for now in runs.subscribe_to_run(run)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.to_thread.run_sync(system.kill_server)
        await anyio.to_thread.run_sync(system.start_server)
        await wait.complete_token(waiting.metadata["token"], "yes")

    assert seen[-1].status == "COMPLETED", "the subscription outlived the server"
    assert seen[-1].output["output"] == "yes"


async def test_a_runs_streams_are_read_while_it_writes_and_afterwards() -> None:
    run = await runs.trigger("narrator", {"count": 5})
    lines = []
    async for value in streams.read(run.id, "story"):
        lines.append(value["line"])
        if len(lines) == 5:
            break
    await runs.poll(run, interval=0.05)
    letters = [value async for value in streams.read(run.id, "letters", timeout_s=1)]
    rest = [value async for value in streams.read(run.id, "letters", start_index=2, timeout_s=1)]

    assert lines == [0, 1, 2, 3, 4]
    assert letters == ["a", "b", "c"]
    assert rest == ["c"]


async def test_a_run_reads_what_is_sent_to_it_in_order() -> None:
    run = await runs.trigger("listener", {})
    for word in ("hello", {"deep": [1, None]}, "bye"):
        await streams.send(run.id, "words", word)
    ended = await runs.poll(run.id, interval=0.05)
    echo = [value async for value in streams.read(run.id, "echo", timeout_s=1)]

    assert ended.output == {"heard": ["hello", {"deep": [1, None]}, "bye"]}
    assert echo[0] == "heard hello"


async def test_debounced_calls_make_one_run_with_the_last_payload() -> None:
    how: Any = {"key": uuid.uuid4().hex, "delay": 1, "mode": "trailing", "max_delay": "1m"}
    first, second = [await runs.trigger("double", {"n": n}, debounce=how) for n in (1, 2)]

    assert second.id == first.id
    assert (await runs.poll(first.id, interval=0.1)).output == {"doubled": 4}
