"""Wait tokens and other tasks in the harness: what code under test finds around its run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import ai, chat, task, testing, wait
from everturn.client.api import Api
from everturn.errors import NotFound, RunNotFound, WaitTimeoutError
from everturn.tasks import registry
from everturn.testing import Call, mock_chat_agent, scripted_model

pytestmark = pytest.mark.anyio


class Order(BaseModel):
    number: int


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


class TestTokens:
    async def test_an_agent_waits_suspended_until_a_test_completes_its_token(self) -> None:
        @chat.agent("asking")
        async def asking(turn: chat.Turn[Any]) -> str:
            token = await wait.create_token(timeout="1d")
            return f"approved: {await wait.for_token(token).unwrap()}"

        async with mock_chat_agent(asking) as h:
            await h.post_message("may I?")
            await h.reached(lambda: h.suspended)
            [token] = h.waiting_tokens
            await h.advance(3600)
            h.complete_token(token, {"by": "Ada"})
            h.complete_token(token, "the first completion counts")
            await h.settled()
            [turn] = await h.turns()
        assert turn.text == "approved: {'by': 'Ada'}"
        assert h.waiting_tokens == []

    async def test_a_token_nobody_completes_times_out_in_virtual_time(self) -> None:
        async def work(mock: testing.MockTask) -> None:
            at = datetime(2026, 1, 1, 1, tzinfo=UTC)  # an hour after a mock world begins
            token = await wait.create_token(timeout=at)
            assert mock.waiting_tokens == [token.id]
            await mock.advance(3601)
            with pytest.raises(WaitTimeoutError):
                await wait.for_token(token).unwrap()
            assert (await wait.retrieve_token(token)).status == "TIMED_OUT"

        await testing.run_in_mock_task_context(work)

    async def test_code_may_complete_and_look_at_tokens_itself(self) -> None:
        async def work(mock: testing.MockTask) -> None:
            made = await wait.create_token(idempotency_key="once")
            assert (await wait.create_token(idempotency_key="once")).id == made.id
            assert (await wait.retrieve_token(made)).status == "WAITING"
            await wait.complete_token(made, "yes")
            assert (await wait.retrieve_token(made)).output == "yes"
            assert await wait.for_token(made).unwrap() == "yes"
            with pytest.raises(NotFound):
                await wait.for_token("waitpoint_nobodys")

        await testing.run_in_mock_task_context(work)


class TestTasks:
    async def test_a_task_that_is_a_tool_runs_in_the_harness_and_writes_to_the_chat(self) -> None:
        @task(id="refund")
        async def refund(order: Order) -> dict[str, Any]:
            async with chat.stream.writer() as writer:
                writer.data("refunding", {"number": order.number})
            return {"refunded": order.number, "by": ai.chat_context_or_raise().chat_id}

        tool = chat.tool(ai.tool_execute(refund), name="refund", description="Refund an order.")
        model = Agent(scripted_model([[Call("refund", {"number": 7})], "Done."]))

        @chat.agent("shop", tools=[tool])
        async def shop(turn: chat.Turn[Any]) -> Any:
            return turn.stream(model, **chat.run_options(tools=turn.tools))

        async with mock_chat_agent(shop) as h:
            await h.post_message("refund order 7")
            await h.reached(lambda: h.started_tasks != [])
            await h.advance(5)
            await h.settled()
            [turn] = await h.turns()
            assert h.started_tasks == [("refund", {"number": 7})]
        outputs = [c["output"] for c in turn.chunks if c["type"] == "tool-output-available"]
        assert outputs == [{"refunded": 7, "by": "test-chat"}]
        assert [c["data"] for c in turn.chunks if c["type"] == "data-refunding"] == [{"number": 7}]

    async def test_a_task_starts_others_waits_for_them_and_is_told_of_failures(self) -> None:
        @task(id="double")
        async def double(payload: dict[str, int]) -> int:
            if payload["n"] < 0:
                raise ValueError("negative")
            await wait.for_(minutes=1)
            return payload["n"] * 2

        async def work(mock: testing.MockTask) -> None:
            handle = await double.trigger({"n": 1})
            failed = await double.trigger_and_wait({"n": -1})
            assert not failed.ok
            assert failed.error is not None
            assert failed.error["message"] == "negative"
            await mock.advance(60)
            found = await mock.runtime.run_result(handle.id)
            assert found is not None
            assert found.output == b"2"

        await testing.run_in_mock_task_context(work)

    async def test_only_tasks_that_were_named_or_registered_are_there(self) -> None:
        @task(id="known")
        async def known(payload: Any) -> str:
            return "hello"

        async def work(mock: testing.MockTask) -> None:
            with pytest.raises(RunNotFound, match="known"):
                await known.trigger_and_wait(1)

        await testing.run_in_mock_task_context(work, tasks=[])

    async def test_a_child_that_is_cancelled_ends_cancelled(self) -> None:
        @task(id="slow")
        async def slow(payload: Any) -> None:
            await wait.for_(hours=1)

        async def work(mock: testing.MockTask) -> None:
            handle = await slow.trigger(None)
            await mock.advance(1)
            await mock.runtime.cancel_run(handle.id)
            await mock.advance(1)
            found = await mock.runtime.run_result(handle.id)
            assert found is not None
            assert found.status == "CANCELED"

        await testing.run_in_mock_task_context(work)

    async def test_other_calls_find_nobody(self) -> None:
        async def work(mock: testing.MockTask) -> None:
            with pytest.raises(NotFound):
                await Api().retrieve_run("run_x")

        await testing.run_in_mock_task_context(work)
