"""A worker and its runs, against a scripted server."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn.errors import AbortTaskRunError, Unavailable
from everturn.protocol import link as frames
from everturn.protocol.records import NewRecord
from everturn.rules import limits
from everturn.tasks import runtime as runtimes
from everturn.tasks import waits
from everturn.tasks.definition import task
from everturn.tasks.failures import CompleteTask
from everturn.tasks.metadata import metadata

pytestmark = pytest.mark.anyio


async def test_a_claimed_run_is_started_and_its_output_reported(server: Any, work: Any) -> None:
    @task(id="t")
    async def double(payload: dict) -> int:
        return payload["n"] * 2

    async with work():
        await server.claim(payload=b'{"n": 21}')
        started = await server.next(frames.Started)
        outcome = await server.outcome()

    assert (started.run_id, started.fence) == ("run_c1", 1)
    assert outcome["kind"] == "completed"
    assert outcome["output"] == b"42"


async def test_hello_names_version_tasks_and_queues(server: Any, work: Any) -> None:
    @task(id="t", queue="q")
    # L-2
    async def t(payload: Any) -> None: ...

    async with work():
        hello = await server.next(frames.Hello)

    assert hello.version == "v1"
    assert [one.task_id for one in hello.tasks] == ["t"]
    assert hello.queues == {"q": None}
    assert hello.held == []


async def test_metadata_whose_sending_was_cancelled_is_sent_again_as_the_same_call(
    server: Any, work: Any
) -> None:
    """The server knows calls by their id: an increment that it made is not made again."""
    del server.answers["metadata"]

    @task(id="t")
    async def t(payload: Any) -> None:
        metadata.increment("n")
        with anyio.move_on_after(0.01):
            await metadata.flush()
        metadata.increment("n")

    async with work():
        await server.claim()
        first = await server.call("metadata")
        again = await server.call("metadata")
        await server.answer(again, {"metadata": b"{}"})
        second = await server.call("metadata")
        await server.answer(second, {"metadata": b"{}"})
        await server.outcome()

    assert (again.id, again.params) == (first.id, first.params)
    assert second.id != first.id


async def test_an_exception_is_reported_with_name_message_and_stack(server: Any, work: Any) -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        raise ValueError("x" * 5000)

    async with work():
        await server.claim()
        outcome = await server.outcome()

    assert outcome["kind"] == "failed"
    assert outcome["retryable"] is True
    assert outcome["error"]["name"] == "ValueError"
    assert len(outcome["error"]["message"]) == 1000
    assert "test_worker_runs.py" in outcome["error"]["stackTrace"]


@pytest.mark.parametrize(
    ("raised", "kind", "retryable", "code"),
    [
        (AbortTaskRunError("no"), "failed", False, None),
        (MemoryError(), "crashed", True, "TASK_PROCESS_OOM_KILLED"),
        (SystemExit(3), "crashed", True, "TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE"),
        (CompleteTask({"a": 1}), "completed", True, None),
    ],
)
async def test_what_the_code_raises_decides_the_outcome(
    server: Any, work: Any, raised: BaseException, kind: str, retryable: bool, code: str | None
) -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        raise raised

    async with work():
        await server.claim()
        outcome = await server.outcome()

    assert outcome["kind"] == kind
    assert outcome["retryable"] is retryable
    assert (outcome["error"] or {}).get("code") == code


async def test_appends_keep_their_order_and_are_numbered_under_the_fence(
    server: Any, work: Any
) -> None:
    @task(id="t")
    # L-4
    async def t(payload: Any) -> list[int]:
        runtime = runtimes.current()
        ids = []
        for n in range(20):
            ids.append(runtime.part_id())
            last = runtime.append([NewRecord(body=b"%d" % n)])
        assert ids == [f"7-{n}" for n in range(20)]
        return list(await last)

    async with work():
        await server.claim(session_id="session_c1", session_key="k", fence=7)
        outcome = await server.outcome()
        sent = [f for f in server.frames if isinstance(f, frames.Append)]

    assert [f.first_part for f in sent] == list(range(20))
    assert outcome["output"] == b"[19]"
    # Everything written before the writer's next turn goes into one message.
    assert server.messages < 12


async def test_a_record_over_the_limit_is_refused_before_it_takes_a_number(
    server: Any, work: Any
) -> None:
    @task(id="t")
    async def t(payload: Any) -> str:
        runtime = runtimes.current()
        try:
            await runtime.append([NewRecord(body=b"x" * (limits.RECORD_BYTES_MAX + 1))])
        except Exception as error:
            return f"{type(error).__name__} {runtime.part_id()}"
        return "accepted"

    async with work():
        await server.claim(session_id="session_c1", session_key="k")
        outcome = await server.outcome()

    assert outcome["output"] == b'"TooLarge 1-0"'


async def test_a_fast_writer_waits_for_room(server: Any, work: Any) -> None:
    # L-14
    server.acknowledge = False
    wrote = 0

    @task(id="t")
    async def t(payload: Any) -> None:
        nonlocal wrote
        runtime = runtimes.current()
        for _ in range(10):
            await runtime.room()
            runtime.append([NewRecord(body=b"x" * 64 * 1024)])
            wrote += 1

    async with work():
        await server.claim(session_id="session_c1", session_key="k")
        taken = [await server.next(frames.Append) for _ in range(4)]
        assert wrote == 4
        for frame in taken:
            await server.ack(frame)
        server.acknowledge = True
        assert (await server.outcome())["kind"] == "completed"

    assert wrote == 10


async def test_a_long_wait_suspends_frees_the_slot_and_goes_on_when_woken(
    server: Any, work: Any
) -> None:
    @task(id="t")
    async def t(payload: Any) -> str:
        metadata.set("at", "waiting")
        await waits.for_(seconds=60)
        return "woken"

    async with work(concurrency=1) as worker:
        await server.next(frames.Credit)
        info = await server.claim()
        await server.next(frames.Started)
        flushed = await server.call("metadata")
        suspend = await server.call("suspend")
        credit = await server.next(frames.Credit, lambda frame: frame.runs == 1)
        assert len(worker.parking) == 1
        await server.send(frames.Wake(info.run_id, info.fence, False, []))
        outcome = await server.outcome()

    assert flushed.params["operations"] == [{"type": "set", "key": "at", "value": "waiting"}]
    assert suspend.params["wait"]["kind"] == "until"
    assert credit.runs == 1
    assert outcome["output"] == b'"woken"'


async def test_a_wake_may_overtake_the_answer_to_suspend(server: Any, work: Any) -> None:
    # L-12
    del server.answers["suspend"]

    @task(id="t")
    async def t(payload: Any) -> str:
        await waits.for_(seconds=60)
        return "woken"

    async with work():
        info = await server.claim()
        await server.call("suspend")
        await server.send(frames.Wake(info.run_id, info.fence, False, []))
        outcome = await server.outcome()

    assert outcome["output"] == b'"woken"'


async def test_a_wait_of_five_seconds_or_less_keeps_its_slot(server: Any, work: Any) -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        await waits.for_(seconds=0.01)

    async with work():
        await server.claim()
        await server.outcome()

    assert not [f for f in server.frames if isinstance(f, frames.Call) and f.method == "suspend"]


async def test_cancelling_aborts_the_signal_runs_on_cancel_and_reports_canceled(
    server: Any, work: Any
) -> None:
    # L-13
    seen: list[str | None] = []
    running = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        running.set()
        await anyio.sleep_forever()

    @t.on_cancel
    async def told(signal: Any) -> None:
        seen.append(signal.reason)

    async with work():
        info = await server.claim()
        await running.wait()
        await server.send(frames.Cancel(info.run_id, "by the user"))
        outcome = await server.outcome()

    assert outcome["kind"] == "canceled"
    assert seen == ["by the user"]


async def test_a_lost_run_ends_and_reports_nothing(server: Any, work: Any) -> None:
    # L-13
    ended = anyio.Event()
    running = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        try:
            running.set()
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with work():
        info = await server.claim()
        await running.wait()
        await server.send(frames.Lost(info.run_id))
        with anyio.fail_after(5):
            await ended.wait()

    assert not [f for f in server.frames if isinstance(f, frames.Call)]


async def test_a_refused_append_fences_the_run(server: Any, work: Any) -> None:
    # L-4, L-13
    server.acknowledge = False
    caught: list[str] = []
    ended = anyio.Event()

    @task(id="t")
    async def t(payload: Any) -> None:
        runtime = runtimes.current()
        try:
            await runtime.append([NewRecord(body=b"x")])
        except BaseException as error:
            caught.append(type(error).__name__)
            raise
        finally:
            ended.set()

    async with work():
        await server.claim(session_id="session_c1", session_key="k")
        frame = await server.next(frames.Append)
        await server.send(
            frames.Refused(frame.run_id, frame.fence, frame.first_part, "fenced", "newer lease")
        )
        with anyio.fail_after(5):
            await ended.wait()

    assert caught[0] in ("Fenced", "CancelledError")
    assert not [f for f in server.frames if isinstance(f, frames.Call)]


async def test_max_duration_counts_running_time_and_not_waiting(server: Any, work: Any) -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        await waits.for_(seconds=60)
        await anyio.sleep_forever()

    async with work() as worker:
        info = await server.claim(max_duration_s=1)
        await server.call("suspend")
        parked = next(iter(worker._attempts.values()))
        await server.until(lambda: parked.runtime.is_parked)
        assert parked._scope.deadline == float("inf")
        await server.send(frames.Wake(info.run_id, info.fence, False, []))
        outcome = await server.outcome()

    assert outcome["kind"] == "timed_out"
    assert outcome["error"]["code"] == "MAX_DURATION_EXCEEDED"


async def test_a_call_is_repeated_when_the_server_was_unavailable(server: Any, work: Any) -> None:
    answers = iter([Unavailable("not now"), {"tags": []}])
    server.answers["tags"] = lambda params: next(answers)

    @task(id="t")
    async def t(payload: Any) -> None:
        await runtimes.current().add_tags(["a"])

    async with work():
        await server.claim()
        first, again = await server.call("tags"), await server.call("tags")
        outcome = await server.outcome()

    assert outcome["kind"] == "completed"
    # Nobody knows whether the first was carried out, so the server must recognise the second.
    assert first.id == again.id


async def test_an_echo_of_an_earlier_wake_does_not_end_the_wait(server: Any, work: Any) -> None:
    """The server repeats Wakes that a lost connection may have swallowed."""
    # L-12
    woken: list[int] = []

    @task(id="t")
    async def t(payload: Any) -> None:
        runtime = runtimes.current()
        after = None
        for _ in range(2):
            found = await runtime.suspend_on_input(after, until_ms=None)
            after = found.records[0].seq_num
            woken.append(after)

    async with work():
        info = await server.claim(session_id="session_c1", session_key="k")

        def wake(number: int) -> frames.Wake:
            record = frames.RecordFrame(number, 1, (), b"x")
            return frames.Wake(info.run_id, info.fence, False, [record])

        await server.send(wake(7))  # for a run that is not suspended
        await server.call("suspend")
        await server.send(wake(0), wake(0))
        await server.call("suspend")
        await server.send(wake(0), wake(1))
        await server.outcome()

    assert woken == [0, 1]


async def test_a_run_of_an_unknown_task_is_refused(server: Any, work: Any) -> None:
    async with work():
        await server.claim(task_id="nobody")
        outcome = await server.outcome()

    assert outcome["error"]["code"] == "COULD_NOT_FIND_TASK"
    assert outcome["retryable"] is False


async def test_a_tail_hands_out_each_record_once_over_a_reconnect(server: Any, work: Any) -> None:
    # L-11
    got: list[int] = []

    @task(id="t")
    async def t(payload: Any) -> None:
        tail = runtimes.current().tail("in", None)
        while len(got) < 3:
            got.extend(record.seq_num for record in await tail.next())
        tail.close()

    def records(*numbers: int) -> list[frames.RecordFrame]:
        return [frames.RecordFrame(n, 1, (), b"x") for n in numbers]

    async with work():
        await server.claim(session_id="session_c1", session_key="k")
        first = await server.next(frames.Tail)
        await server.send(frames.Records(first.sub, records(0, 1)))
        await server.until(lambda: len(got) == 2)
        await server.cut()
        again = await server.next(frames.Tail)
        assert again.after == 1
        await server.send(frames.Records(again.sub, records(1, 2)))
        await server.outcome()

    assert got == [0, 1, 2]


async def test_draining_evicts_parked_runs_and_interrupts_the_rest(
    server: Any, work: Any, registry: Any
) -> None:
    # L-13
    server.answers["evict"] = lambda params: {"evicted": True}
    ended: list[str] = []
    running = anyio.Event()

    @task(id="parks")
    async def parks(payload: Any) -> None:
        try:
            await waits.for_(seconds=60)
        finally:
            ended.append("parks")

    @task(id="runs")
    async def runs(payload: Any) -> None:
        running.set()
        await anyio.sleep_forever()

    async with work() as worker:
        await server.claim(run_id="run_c1", task_id="parks")
        await server.claim(run_id="run_c2", task_id="runs")
        await server.call("suspend")
        await running.wait()
        worker.stop()
        evict = await server.call("evict")
        worker.stop()
        outcome = await server.outcome()

    assert evict.run_id == "run_c1"
    assert ended == ["parks"]
    assert outcome["kind"] == "interrupted"


async def test_a_wake_that_won_prevents_the_eviction(server: Any, work: Any) -> None:
    """Rulings §1.18."""
    server.answers["evict"] = lambda params: {"evicted": False}

    @task(id="t")
    async def t(payload: Any) -> str:
        await waits.for_(seconds=60)
        return "went on"

    async with work() as worker:
        info = await server.claim()
        await server.call("suspend")
        worker.stop()
        await server.call("evict")
        await server.send(frames.Wake(info.run_id, info.fence, False, []))
        outcome = await server.outcome()

    assert outcome["output"] == b'"went on"'


async def test_metadata_is_sent_with_the_end_of_the_run_and_before_its_report(
    server: Any, work: Any
) -> None:
    @task(id="t")
    async def t(payload: Any) -> None:
        metadata.increment("n").increment("n")

    async with work():
        await server.claim()
        await server.outcome()
        calls = [f.method for f in server.frames if isinstance(f, frames.Call)]
        operations = next(f for f in server.frames if isinstance(f, frames.Call)).params

    assert calls == ["metadata"]
    assert operations["operations"] == [{"type": "increment", "key": "n", "value": 2}]


async def test_a_payload_of_a_model_arrives_as_that_model(server: Any, work: Any) -> None:
    from pydantic import BaseModel

    class Image(BaseModel):
        width: int

    @task(id="t", payload=Image)
    async def t(payload: Any) -> int:
        return payload.width

    async with work():
        await server.claim(payload=b'{"width": 3}')
        assert (await server.outcome())["output"] == b"3"
        await server.claim(payload=b'{"width": "wide"}', run_id="run_c2")
        failed = await server.outcome()

    assert failed["error"]["code"] == "TASK_INPUT_ERROR"
    assert failed["retryable"] is False
