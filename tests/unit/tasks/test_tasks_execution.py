"""One attempt of a task: hooks, journal, metadata. Spec: tasks-and-runs §3.4, §13, §29.4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import pytest

from everturn.client.problems import error_for
from everturn.clock import SystemClock
from everturn.errors import (
    AbortTaskRunError,
    ConcurrentWaitError,
    NonDeterminismError,
    SubtaskError,
)
from everturn.ids import RandomIds
from everturn.protocol.runs import RunInfo, RunResult
from everturn.tasks import registry as registries
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks import tags, waits
from everturn.tasks.definition import Task, task
from everturn.tasks.failures import AttemptFailed, CompleteTask, outcome_of
from everturn.tasks.hooks import MOMENTS, hooks
from everturn.tasks.metadata import metadata
from everturn.tasks.registry import Registry
from everturn.tasks.retries import CatchErrorResult, RetryPolicy
from everturn.tasks.runtime import Woken
from everturn.tasks.signals import Signal
from everturn.tasks.steps import step

pytestmark = pytest.mark.anyio


class Runtime:
    """What a plain task asks of the world, remembered."""

    def __init__(self, payload: Any = None, **members: Any) -> None:
        values: dict[str, Any] = {
            "run_id": "run_c1",
            "task_id": "t",
            "environment_id": "env",
            "environment_slug": "preview/feature",
            "fence": 3,
            "attempt": 1,
            "payload": msgspec.json.encode(payload),
            "version": "v1",
            "queue": "task/t",
            "max_attempts": 3,
            "created_at_ms": 1,
            "started_at_ms": 2,
        }
        self.info = RunInfo(**(values | members))
        self.clock = SystemClock()
        self.ids = RandomIds(seed=1)
        self.cancelled = Signal()
        self.journal: list[tuple[int, str, bytes]] = []
        self.operations: list[Any] = []
        self.tags: list[str] = []
        self.suspended: list[Any] = []
        self.triggered: list[tuple[str, Any]] = []
        self.child = RunResult(run_id="run_c9", task_id="t", ok=True, status="COMPLETED")

    async def journal_put(self, position: int, key: str, result: bytes) -> None:
        self.journal.append((position, key, result))

    async def change_metadata(self, operations: Any, key: str | None = None) -> None:
        self.operations.extend(operations)

    async def add_tags(self, tags: Any) -> None:
        self.tags.extend(tags)

    async def suspend_until(self, until_ms: int) -> Woken:
        self.suspended.append(until_ms)
        await anyio.lowlevel.checkpoint()
        return Woken(timed_out=True)

    async def suspend_on_run(self, run_id: str, *, until_ms: int | None = None) -> Woken:
        self.suspended.append(run_id)
        return Woken(result=self.child)

    async def run_result(self, run_id: str) -> None:
        return None

    async def trigger(
        self, task_id: str, payload: bytes, payload_type: str, options: Any
    ) -> tuple[str, bool]:
        self.triggered.append((task_id, dict(options)))
        return "run_c9", False

    def again(self) -> Runtime:
        """The next attempt after an interruption: the journal in its hands."""
        return Runtime(
            msgspec.json.decode(self.info.payload),
            attempt=2,
            fence=4,
            recovered=True,
            journal=tuple(self.journal),
        )


async def attempt(what: Task[Any], runtime: Any) -> Any:
    """Run one attempt; the output, or the outcome of a failure."""
    with runtimes.running(runtime):
        try:
            output = await what.run(runtime)
        except AttemptFailed as failed:
            return failed.outcome
    return None if output is None else msgspec.json.decode(output)


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    before = dict(hooks._hooks)
    with registries.collecting(Registry()):
        yield
    hooks._hooks.clear()
    hooks._hooks.update(before)


async def test_hooks_run_in_the_order_of_the_clause() -> None:
    """Conformance 10 and 11."""
    order: list[str] = []

    @task(id="t")
    async def t(payload: Any, init: Any) -> str:
        order.append(f"run {init}")
        return "out"

    @hooks.on_start_attempt
    def everywhere() -> None:
        order.append("global on_start_attempt")

    @t.middleware
    async def around(next: Any) -> None:
        order.append("in")
        await next()
        order.append("out")

    @t.init
    def init() -> dict[str, int]:
        order.append("init")
        return {"db": 1}

    for moment in ("on_start", "on_start_attempt", "on_success", "on_complete", "cleanup"):
        t.add(moment, lambda moment=moment: order.append(moment))

    assert await attempt(t, Runtime()) == "out"
    assert order == [
        "in",
        "init",
        "on_start",
        "global on_start_attempt",
        "on_start_attempt",
        "run {'db': 1}",
        "on_success",
        "on_complete",
        "cleanup",
        "out",
    ]


async def test_code_after_next_also_runs_when_the_run_failed() -> None:
    after: list[bool] = []

    @task(id="t")
    async def t(payload: Any) -> None:
        raise ValueError("no")

    @t.middleware
    async def around(next: Any) -> None:
        await next()
        after.append(True)

    outcome = await attempt(t, Runtime())

    assert outcome.kind == "failed"
    assert after == [True]


async def test_a_middleware_that_raises_is_an_error_of_its_own_without_catch_error() -> None:
    """Conformance 15."""
    caught: list[Any] = []

    @task(id="t")
    async def t(payload: Any) -> str:
        return "fine"

    @t.middleware
    async def around(next: Any) -> None:
        await next()
        raise RuntimeError("middleware")

    t.catch_error(lambda error: caught.append(error))
    outcome = await attempt(t, Runtime())

    assert outcome.error["code"] == "TASK_MIDDLEWARE_ERROR"
    assert outcome.retryable
    assert caught == []


async def test_on_failure_waits_for_the_last_attempt() -> None:
    """Conformance 16."""
    told: list[str] = []

    @task(id="t")
    async def t(payload: Any) -> None:
        raise ValueError("no")

    t.on_failure(lambda error: told.append(str(error)))
    await attempt(t, Runtime(failures=1, attempt=2))
    assert told == []
    await attempt(t, Runtime(failures=2, attempt=3))
    assert told == ["no"]


@pytest.mark.parametrize(
    ("said", "retryable", "name"),
    [
        (CatchErrorResult(skip_retrying=True), False, "ValueError"),
        (CatchErrorResult(retry_delay=5), True, "ValueError"),
        (CatchErrorResult(error=KeyError("other")), True, "KeyError"),
    ],
)
async def test_catch_error_overrules(said: CatchErrorResult, retryable: bool, name: str) -> None:
    """Conformance 17."""

    @task(id="t")
    async def t(payload: Any) -> None:
        raise ValueError("no")

    t.catch_error(lambda: said)
    outcome = await attempt(t, Runtime())

    assert outcome.retryable is retryable
    assert outcome.error["name"] == name
    assert (outcome.retry_at_ms is not None) is (said.retry_delay is not None)


async def test_an_exception_in_catch_error_is_a_crash() -> None:
    """Conformance 18."""

    @task(id="t")
    async def t(payload: Any) -> None:
        raise ValueError("no")

    @t.catch_error
    def broken() -> None:
        raise KeyError("worse")

    outcome = await attempt(t, Runtime())

    assert (outcome.kind, outcome.error["code"]) == ("crashed", "HANDLE_ERROR_ERROR")


async def test_abort_fails_without_asking_catch_error() -> None:
    """Conformance 59."""
    asked: list[Any] = []

    @task(id="t")
    async def t(payload: Any) -> None:
        raise AbortTaskRunError("enough")

    t.catch_error(lambda error: asked.append(error))
    outcome = await attempt(t, Runtime())

    assert not outcome.retryable
    assert asked == []


async def test_complete_task_ends_the_run_from_deep_inside() -> None:
    """Conformance 19."""

    @task(id="t")
    async def t(payload: Any) -> None:
        def deep() -> None:
            raise CompleteTask({"early": True})

        deep()

    assert await attempt(t, Runtime()) == {"early": True}


async def test_output_that_is_no_json_runs_cleanup_and_not_on_failure() -> None:
    """Conformance 21."""
    ran: list[str] = []

    @task(id="t")
    async def t(payload: Any) -> Any:
        return object()

    t.on_failure(lambda: ran.append("on_failure"))
    t.cleanup(lambda: ran.append("cleanup"))
    outcome = await attempt(t, Runtime(failures=2))

    assert outcome.error["code"] == "TASK_OUTPUT_ERROR"
    assert ran == ["cleanup"]


async def test_a_step_runs_once_over_an_interruption() -> None:
    """Conformance 139."""
    ran: list[str] = []

    async def fetch(name: str) -> dict[str, str]:
        ran.append(name)
        return {"name": name}

    @task(id="t")
    async def t(payload: Any) -> Any:
        return [await step("a", fetch, "a"), await step.run("b", fetch, "b")]

    first = Runtime()
    before = await attempt(t, first)
    after = await attempt(t, first.again())

    assert before == after == [{"name": "a"}, {"name": "b"}]
    assert ran == ["a", "b"]


async def test_reordered_steps_are_refused() -> None:
    """Conformance 140."""
    names = ["a", "b"]

    @task(id="t")
    async def t(payload: Any) -> None:
        for name in names:
            await step(name, lambda: 1)

    first = Runtime()
    await attempt(t, first)
    names.reverse()
    outcome = await attempt(t, first.again())

    assert outcome.error["name"] == NonDeterminismError.__name__
    assert not outcome.retryable


async def test_branches_may_finish_their_steps_in_another_order() -> None:
    gates = {"x": anyio.Event(), "y": anyio.Event()}
    ran: list[str] = []

    async def work(name: str) -> str:
        ran.append(name)
        return name

    @task(id="t")
    async def t(payload: Any) -> None:
        async def branch(name: str, other: str | None) -> None:
            await step(f"{name}1", work, f"{name}1")
            if other is not None:
                await gates[other].wait()
            await step(f"{name}2", work, f"{name}2")
            gates[name].set()

        async with anyio.create_task_group() as group:
            group.start_soon(branch, "x", payload and "y")
            group.start_soon(branch, "y", None)

    first = Runtime(True)
    await attempt(t, first)
    again = first.again()
    again.info = msgspec.structs.replace(again.info, payload=b"null")
    assert await attempt(t, again) is None
    assert sorted(ran) == ["x1", "x2", "y1", "y2"]


async def test_a_recovered_wait_keeps_its_deadline() -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        await waits.for_(seconds=60)

    first = Runtime()
    await attempt(t, first)
    again = first.again()
    await attempt(t, again)

    assert again.suspended == first.suspended
    assert again.journal == []


async def test_a_recovered_run_finds_the_child_it_started() -> None:
    @task(id="t")
    async def t(payload: Any) -> Any:
        return (await t.trigger_and_wait({"n": 1})).id

    first = Runtime()
    assert await attempt(t, first) == "run_c9"
    again = first.again()
    assert await attempt(t, again) == "run_c9"

    options = first.triggered[0][1]
    assert options["wait"] is True
    assert options["requestKey"].startswith("run_c1:3:")
    assert again.triggered == []


async def test_a_child_asked_for_twice_has_the_same_request_key() -> None:
    """Interrupted after the child was made and before its id was noted."""

    @task(id="t")
    async def t(payload: Any) -> None:
        await t.trigger(None)

    first = Runtime()
    await attempt(t, first)
    first.journal = [entry for entry in first.journal if entry[1].startswith("journal")]
    again = first.again()
    await attempt(t, again)

    assert again.triggered == first.triggered


async def test_tasks_are_started_by_their_id_and_hooks_added_for_the_whole_app() -> None:
    from everturn import tasks

    told: list[str] = []
    tasks.on_success(lambda: told.append("global"))

    @task(id="t")
    async def t(payload: Any) -> Any:
        handle = await tasks.trigger("other", {"n": 1}, tags="a")
        return [handle.id, (await tasks.trigger_and_wait("other")).ok]

    runtime = Runtime()

    assert await attempt(t, runtime) == ["run_c9", True]
    assert [name for name, _ in runtime.triggered] == ["other", "other"]
    assert told == ["global"]
    assert set(MOMENTS) == tasks._MOMENTS


async def test_a_failed_child_raises_only_when_unwrapped() -> None:
    """Conformance 90."""

    @task(id="t")
    async def t(payload: Any) -> Any:
        result = await t.trigger_and_wait(None)
        assert not result.ok
        await t.trigger_and_wait(None).unwrap()

    runtime = Runtime(max_attempts=1)
    runtime.child = RunResult(
        run_id="run_c9", task_id="t", ok=False, status="FAILED", error={"message": "broke"}
    )
    outcome = await attempt(t, runtime)

    assert outcome.error["name"] == SubtaskError.__name__
    assert "run_c9" in outcome.error["message"]
    assert "broke" in outcome.error["message"]


async def test_overlapping_waits_fail_the_run_without_a_retry() -> None:
    """Conformance 92."""

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(waits.for_, 60)
                group.start_soon(waits.for_, 60)
        except* ConcurrentWaitError as error:
            raise error.exceptions[0] from None

    outcome = await attempt(t, Runtime())

    assert outcome.error["code"] == "TASK_DID_CONCURRENT_WAIT"
    assert not outcome.retryable


async def test_wait_hooks_fire_around_suspensions_only() -> None:
    """Conformance 94."""
    seen: list[str] = []

    @task(id="t")
    async def t(payload: Any) -> None:
        await waits.for_(0.001)
        await waits.for_(minutes=1)

    t.on_wait(lambda wait: seen.append(wait["type"]))
    t.on_resume(lambda wait: seen.append("resumed"))
    await attempt(t, Runtime())

    assert seen == ["duration", "resumed"]


async def test_metadata_is_local_at_once_and_sent_as_operations() -> None:
    @task(id="t")
    async def t(payload: Any) -> Any:
        metadata.set("a", 1).increment("n", 2).increment("n", 3).append("list", "x")
        metadata.set("$.deep.er", True)
        metadata.set("bad", object())
        return metadata.current()

    runtime: Any = Runtime(metadata=b'{"old": 1}')
    output = await attempt(t, runtime)
    await scopes.flush_dirty()

    assert output == {"old": 1, "a": 1, "n": 5, "list": ["x"], "deep": {"er": True}}
    assert runtime.operations == [
        {"type": "set", "key": "a", "value": 1},
        {"type": "increment", "key": "n", "value": 5},
        {"type": "append", "key": "list", "value": "x"},
        {"type": "set", "key": "$.deep.er", "value": True},
    ]


async def test_metadata_does_nothing_outside_a_run() -> None:
    metadata.set("a", 1)
    assert metadata.get("a") is None


async def test_tags_over_the_limit_change_nothing() -> None:
    """Conformance 109."""
    runtime: Any = Runtime()
    with runtimes.running(runtime):
        await tags.add(*(f"t{n}" for n in range(11)))
        await tags.add(" a ", "a", "")

    assert runtime.tags == ["a"]


async def test_the_context_says_where_a_run_belongs() -> None:
    @task(id="t")
    async def t(payload: Any, ctx: Any) -> Any:
        return [ctx.run.id, ctx.environment.type, ctx.environment.branch_name, ctx.attempt.number]

    assert await attempt(t, Runtime()) == ["run_c1", "PREVIEW", "feature", 1]


async def test_out_of_memory_is_a_crash() -> None:
    outcome = outcome_of(MemoryError(), Runtime())  # type: ignore[arg-type]

    assert (outcome.kind, outcome.error["code"]) == ("crashed", "TASK_PROCESS_OOM_KILLED")  # type: ignore[index]


async def test_a_rate_limit_is_retried_after_its_reset_and_a_missing_thing_never() -> None:
    """Conformance 60, 61: the errors a call of the client raises inside a run."""
    limited = {"X-RateLimit-Limit": "1", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "5000"}
    refused = error_for(429, b"{}", headers=limited)
    at_reset = outcome_of(refused, Runtime())  # type: ignore[arg-type]
    unnamed = outcome_of(error_for(429, b"{}"), Runtime())  # type: ignore[arg-type]
    missing = outcome_of(error_for(404, b"{}", subject="run"), Runtime())  # type: ignore[arg-type]

    assert at_reset.retryable
    assert 5000 <= (at_reset.retry_at_ms or 0) <= 6000
    assert (unnamed.retryable, unnamed.retry_at_ms) == (True, None)
    assert not missing.retryable


async def test_retry_delays_double_within_their_bounds() -> None:
    """Conformance 56 and 57."""
    ids = RandomIds(seed=7)
    plain = RetryPolicy(max_attempts=5, jitter=False, max_delay=3)
    assert [plain.delay_s(n, ids) for n in range(1, 6)] == [1, 2, 3, 3, None]
    jittered = RetryPolicy(max_attempts=10, max_delay="1h")
    assert all(2 ** (n - 1) <= (jittered.delay_s(n, ids) or 0) < 2**n for n in range(1, 10))
