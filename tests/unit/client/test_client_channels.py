"""`sessions`, `runs`, `auth` and the channels of a session from outside (chat-agent §6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx2
import pytest
from client_stage import KEY, Stage

from everturn import Signal, auth, runs, sessions
from everturn.client import binding
from everturn.client.follow import Follower
from everturn.errors import (
    InputStreamTimeoutError,
    InvalidRequest,
    NotInRunError,
    SessionClosedError,
    SessionNotFound,
    TaskNotFound,
    Unprocessable,
    WaitTimeoutError,
)
from everturn.protocol import tokens

pytestmark = pytest.mark.anyio


async def started(stage: Stage, id: str = "s/1", **options: Any) -> sessions.StartedSession:
    return await sessions.start(type="t", task="agent", external_id=id, api=stage.api, **options)


class TestSessions:
    async def test_two_starts_of_one_external_id_find_one_session(self, stage: Stage) -> None:
        first = await started(stage, tags=["a"], metadata={"x": 1})
        again = await started(stage)
        assert (first.is_cached, again.is_cached) == (False, True)
        assert (first.id, first.run_id) == (again.id, again.run_id)
        assert first.key == "s/1"
        assert tokens.verify(first.public_access_token, KEY, now_ms=stage.api.clock.now_ms())

    async def test_a_session_is_found_by_both_ids_and_changed(self, stage: Stage) -> None:
        first = await started(stage, expires_at=timedelta(hours=1))
        found = await sessions.retrieve(first.id, api=stage.api)
        assert found.expires_at is not None
        assert found.expires_at > datetime.now(UTC)
        changed = await sessions.update("s/1", tags=["b"], metadata={"y": 2}, api=stage.api)
        assert (changed.tags, changed.metadata) == (("b",), {"y": 2})
        cleared = await sessions.update("s/1", clear_metadata=True, api=stage.api)
        assert (cleared.tags, cleared.metadata) == (("b",), None)

    async def test_closing_is_repeatable_and_keeps_the_first_reason(self, stage: Stage) -> None:
        """R-256"""
        await started(stage)
        closed = await sessions.close("s/1", reason="done", api=stage.api)
        again = await sessions.close("s/1", reason="other", api=stage.api)
        assert again.closed_reason == "done"
        assert again.closed_at == closed.closed_at
        with pytest.raises(SessionClosedError):
            await started(stage)

    async def test_what_is_not_there_is_said_to_be_missing(self, stage: Stage) -> None:
        with pytest.raises(SessionNotFound):
            await sessions.retrieve("nobody", api=stage.api)
        with pytest.raises(SessionNotFound):
            await sessions.open("nobody", api=stage.api).in_.send("x")
        with pytest.raises(Unprocessable):
            await sessions.start(type="t", task="unknown", api=stage.api)

    async def test_a_list_pages_through_everything_that_matches(self, stage: Stage) -> None:
        for number in range(5):
            await started(stage, f"s{number}", tags=["odd" if number % 2 else "even"])
        found = sessions.list(tag=["odd", "even"], limit=2, api=stage.api)
        assert [item.external_id async for item in found] == ["s4", "s3", "s2", "s1", "s0"]
        assert [len(page.items) async for page in found.pages()] == [2, 2, 1]
        page = await sessions.list(tag="odd", status="ACTIVE", period="1h", api=stage.api).page()
        assert [item.external_id for item in page.items] == ["s3", "s1"]
        with pytest.raises(InvalidRequest, match="not both"):
            sessions.list(after="a", before="b")

    async def test_inside_a_run_the_runs_own_handle_is_answered(self, stage: Stage) -> None:
        own = object()
        with binding.bound(lambda id: own if id == "mine" else None):
            assert sessions.open("mine") is own
            assert sessions.open("other") is not own
        assert sessions.open("mine") is not own


class TestInput:
    async def test_text_is_sent_as_it_is_and_values_as_json(self, stage: Stage) -> None:
        await started(stage)
        channel = sessions.open("s/1", api=stage.api).in_
        assert [await channel.send(value) for value in ("raw", {"a": 1}, 5)] == [0, 1, 2]
        stored = [record["data"] for record in await stage.api.read_records("s/1", "in")]
        assert stored == ["raw", '{"a":1}', "5"]
        async with channel:
            assert [await channel.receive() for _ in range(3)] == ["raw", {"a": 1}, 5]

    async def test_a_wait_for_input_ends_with_a_value_or_an_error(self, stage: Stage) -> None:
        """R-243"""
        await started(stage)
        async with sessions.open("s/1", api=stage.api).in_ as channel:
            result = await channel.once(timeout=0.05)
            assert isinstance(result.error, InputStreamTimeoutError)
            with pytest.raises(InputStreamTimeoutError):
                result.unwrap()
            await channel.send("late")
            result = await channel.once(timeout=5)
            assert (result.ok, result.output, result.unwrap()) == (True, "late", "late")

    async def test_only_a_run_can_wait_suspended(self, stage: Stage) -> None:
        """R-244"""
        await started(stage)
        async with sessions.open("s/1", api=stage.api).in_ as channel:
            assert channel.peek() is None
            assert channel.last_dispatched_seq_num() is None
            with pytest.raises(NotInRunError):
                await channel.wait(timeout="1h")
            with pytest.raises(NotInRunError):
                await channel.wait_with_idle_timeout(0.01)
            assert not (await channel.wait_with_idle_timeout(0.01, skip_suspend=True)).ok

    async def test_two_waits_get_two_records_oldest_first(self, stage: Stage) -> None:
        """R-245"""
        await started(stage)
        got: dict[str, Any] = {}
        async with sessions.open("s/1", api=stage.api).in_ as channel:

            async def wait(name: str) -> None:
                got[name] = await channel.receive(timeout=5)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, "older")
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(wait, "younger")
                await anyio.wait_all_tasks_blocked()
                await channel.send("1")
                await channel.send("2")
        assert got == {"older": 1, "younger": 2}

    async def test_a_handler_that_returns_true_consumes_and_any_other_leaves(
        self, stage: Stage
    ) -> None:
        """R-246, R-247"""
        await started(stage)
        seen: list[Any] = []
        async with sessions.open("s/1", api=stage.api).in_ as channel:
            for number in range(4):
                await channel.send(number)
            assert await channel.receive() == 0
            assert channel.peek() == 1

            def odd(value: Any) -> bool:
                seen.append(value)
                return value == 1

            async def never(value: Any) -> bool:
                raise AssertionError("an async handler is not awaited here")

            undo = channel.on(odd)
            assert seen == [1, 2, 3]
            assert [await channel.receive(), await channel.receive()] == [2, 3]
            undo()
            undo()

            def broken(value: Any) -> None:
                raise RuntimeError("the caller's own trouble")

            channel.on(broken)
            await channel.send("still")
            assert await channel.receive() == "still"

    async def test_iterating_and_seeking_read_each_record_in_order(self, stage: Stage) -> None:
        await started(stage)
        async with sessions.open("s/1", api=stage.api).in_ as channel:
            for number in range(3):
                await channel.send(number)
            got = []
            async for value in channel:
                got.append(value)
                if len(got) == 3:
                    break
            channel.seek(1)
            assert [*got, await channel.receive()] == [0, 1, 2, 1]

    async def test_giving_up_a_wait_loses_no_record(self, stage: Stage) -> None:
        await started(stage)
        async with sessions.open("s/1", api=stage.api).in_ as channel:
            signal = Signal()
            async with anyio.create_task_group() as tasks:

                async def wait() -> None:
                    with pytest.raises(InterruptedError):
                        await channel.once(signal=signal)

                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                signal.abort()
            await channel.send("kept")
            assert await channel.receive(timeout=5) == "kept"

    async def test_a_send_whose_answer_was_lost_stores_one_record(self, stage: Stage) -> None:
        """R-253"""
        await started(stage)
        lost: list[httpx2.Response] = []

        async def lose_the_first(request: httpx2.Request, send: Any) -> httpx2.Response:
            response = await send(request)
            if lost:
                return response
            lost.append(response)
            await response.aread()
            raise httpx2.ReadError("lost")

        channel = sessions.open("s/1", api=stage.api.hooked(lose_the_first)).in_
        assert await channel.send("once") == 0
        assert lost[0].status_code == 200
        assert len(await stage.api.read_records("s/1", "in")) == 1


class TestOutput:
    async def test_objects_are_stored_as_objects_and_read_back(self, stage: Stage) -> None:
        await started(stage)
        out = sessions.open("s/1", api=stage.api).out
        assert await out.append({"type": "x"}) == 0
        assert await out.pipe([1, "two"]) == 2

        async def live() -> Any:
            yield 3
            yield [4]

        def fill(writer: Any) -> None:
            writer.write("first")
            writer.merge(live())
            writer.write("last")

        await out.writer(fill)
        control = await out.write_control("turn-complete", [("session-in-event-id", "0")])
        parts: list[Any] = []
        controls: list[Any] = []
        ends: list[str] = []
        values = [
            value
            async for value in out.read(
                timeout=1,
                on_part=parts.append,
                on_control=controls.append,
                on_complete=lambda: ends.append("end"),
            )
        ]
        assert values == [{"type": "x"}, 1, "two", "first", 3, [4], "last"]
        assert [part.seq_num for part in parts] == list(range(7))
        assert [(c.subtype, c.headers, c.seq_num) for c in controls] == [
            ("turn-complete", (("session-in-event-id", "0"),), control)
        ]
        assert ends == ["end"]

    async def test_what_a_writer_raises_is_logged_and_what_it_wrote_stays(
        self, stage: Stage
    ) -> None:
        await started(stage)
        out = sessions.open("s/1", api=stage.api).out

        async def fill(writer: Any) -> None:
            writer.write(1)
            raise RuntimeError("the caller's own trouble")

        await out.writer(fill)
        assert [value async for value in out.read(timeout=1)] == [1]

    async def test_trimming_hides_records_and_never_goes_back(self, stage: Stage) -> None:
        """R-254"""
        await started(stage)
        out = sessions.open("s/1", api=stage.api).out
        await out.pipe(range(4))
        await out.trim_to(3)
        await out.trim_to(1)
        assert [value async for value in out.read(timeout=1)] == [3]

    async def test_reading_ends_when_its_signal_is_aborted(self, stage: Stage) -> None:
        await started(stage)
        out = sessions.open("s/1", api=stage.api).out
        await out.pipe(range(3))
        signal = Signal()
        got = []
        async for value in out.read(last_event_id="0", signal=signal):
            got.append(value)
            if value == 2:
                signal.abort()
        assert got == [1, 2]

    async def test_an_aborted_pipe_stops_writing(self, stage: Stage) -> None:
        await started(stage)
        out = sessions.open("s/1", api=stage.api).out
        signal = Signal()

        async def live() -> Any:
            yield 1
            signal.abort()
            yield 2

        assert await out.pipe(live(), signal=signal) == 0
        assert await out.pipe([]) is None

    async def test_an_error_of_reading_is_told_and_raised(self, stage: Stage) -> None:
        told: list[BaseException] = []
        out = sessions.open("session_nobody", api=stage.api).out
        with pytest.raises(SessionNotFound):
            [value async for value in out.read(on_error=told.append)]
        assert len(told) == 1

    async def test_a_settled_stream_ends_at_once_and_one_in_a_turn_stays_open(
        self, stage: Stage
    ) -> None:
        """R-255"""
        await started(stage)
        end = await stage.answer("s/1", 0, "1")
        await stage.api.write_records("s/1", [{"trim": 0}])
        async with Follower(stage.api, "s/1", peek_settled=True) as settled:
            numbers = [record.seq_num async for record in settled]
            assert settled.settled
            assert end in numbers

        await stage.write("s/1", [{"type": "start"}])
        async with Follower(stage.api, "s/1", peek_settled=True, after=numbers[-1]) as open_one:
            await anext(open_one)
            assert not open_one.settled
            with anyio.move_on_after(0.05) as waited:
                await anext(open_one)
            assert waited.cancelled_caught
            await stage.write("s/1", [{"type": "finish"}])
            assert (await anext(open_one)).seq_num == numbers[-1] + 2


class TestRunsAndTokens:
    async def test_a_triggered_run_is_found_listed_and_cancelled(self, stage: Stage) -> None:
        run = await runs.trigger(
            "agent", {"a": 1}, tags=["x"], idempotency_key=["k", "1"], api=stage.api
        )
        again = await runs.trigger("agent", {"a": 1}, idempotency_key="k-1", api=stage.api)
        assert (run.is_cached, again.is_cached, again.id) == (False, True, run.id)
        found = await runs.retrieve(run, api=stage.api)
        assert (found.status, found.task_identifier, found.payload) == ("QUEUED", "agent", {"a": 1})
        assert found.raw["id"] == run.id
        listed = [item.id async for item in runs.list(task="agent", tag="x", api=stage.api)]
        assert listed == [run.id]
        with pytest.raises(WaitTimeoutError, match="still QUEUED"):
            await runs.poll(run, interval=0.01, timeout=0.02, api=stage.api)
        assert await runs.cancel(run, api=stage.api) == run.id
        over = await runs.poll(run.id, timeout=5, api=stage.api)
        assert (over.status, over.is_cancelled) == ("CANCELED", True)

    async def test_a_task_nobody_registered_cannot_be_triggered(self, stage: Stage) -> None:
        with pytest.raises(TaskNotFound):
            await runs.trigger("unknown", api=stage.api)

    async def test_a_run_can_start_later_with_every_option(self, stage: Stage) -> None:
        run = await runs.trigger(
            "agent",
            "text",
            delay=60,
            ttl="1h",
            queue="q",
            priority=1,
            metadata={"m": 1},
            max_attempts=2,
            max_duration="1m",
            machine="micro",
            test=True,
            api=stage.api,
        )
        found = await runs.retrieve(run, api=stage.api)
        assert (found.status, found.is_test, found.metadata) == ("DELAYED", True, {"m": 1})
        assert found.payload == "text"

    async def test_public_tokens_open_what_they_say_and_expire(self, stage: Stage) -> None:
        token = await auth.create_public_token(
            {"read": {"sessions": "a"}},
            expires="1h",
            realtime={"skipColumns": ["x"]},
            api=stage.api,
        )
        now_ms = stage.api.clock.now_ms()
        claims = tokens.verify(token, KEY, now_ms=now_ms)
        assert claims.sub == stage.system.environment.id
        assert claims.scopes == ("read:sessions:a",)
        assert claims.realtime == {"skipColumns": ["x"]}
        assert claims.exp is not None
        assert 3598 <= claims.exp - now_ms // 1000 <= 3600
        once = await auth.create_trigger_token(["a", "b"], expires=60, api=stage.api)
        claims = tokens.verify(once, KEY, now_ms=now_ms)
        assert claims.otu is True
        assert claims.scopes == ("trigger:tasks:a", "trigger:tasks:b")
        with pytest.raises(InvalidRequest):
            await auth.create_public_token(["read:all"], expires="1h ago", api=stage.api)
