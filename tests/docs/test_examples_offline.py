"""Examples that other tests run with a server, tested as their users would: without one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from example_apps import load, user

from everturn.testing import Call, MockTask, mock_chat_agent, run_in_mock_task_context
from everturn.testing import scripted_model as scripted

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERTURN_OFFLINE_DELAY_MS", "0")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


async def test_the_assistant_knows_the_time() -> None:
    async with mock_chat_agent(load("assistant").run) as h:
        turn = await h.send_message("what time is it?")
    assert turn.text.startswith("current_time says")
    assert [call["toolName"] for call in turn.tool_calls] == ["current_time"]


async def test_a_refund_waits_for_a_yes_and_then_runs_once() -> None:
    example = load("tools_and_approval")
    model = scripted([[Call("refund", {"number": 7})], "Refunded."])
    with example.shop_agent.override(model=model):
        async with mock_chat_agent(example.shop, tasks=[example.refund_task]) as h:
            asked = await h.send_message("my money back, please")
            assert h.started_tasks == []
            call = asked.message["parts"][-1]
            assert call["state"] == "approval-requested"

            yes = {**call, "state": "approval-responded"}
            yes["approval"] = {**call["approval"], "approved": True}
            await h.post_message({**asked.message, "parts": [yes]})
            await h.reached(lambda: h.started_tasks != [])
            await h.advance(5)
            await h.settled()
            answer = (await h.turns())[-1]
            assert h.started_tasks == [("refund", {"number": 7})]
    assert answer.text == "Refunded."


async def test_a_refund_that_is_refused_never_runs() -> None:
    example = load("tools_and_approval")
    model = scripted([[Call("refund", {"number": 7})], "As you wish."])
    with example.shop_agent.override(model=model):
        async with mock_chat_agent(example.shop, tasks=[example.refund_task]) as h:
            asked = await h.send_message("my money back, please")
            call = asked.message["parts"][-1]
            no = {**call, "state": "approval-responded"}
            no["approval"] = {**call["approval"], "approved": False, "reason": "too late"}
            answer = await h.send_message({**asked.message, "parts": [no]})
            assert h.started_tasks == []
    assert answer.text == "As you wish."
    assert "too late" in str(model.requests[-1])


async def test_the_game_goes_on_from_guess_to_guess() -> None:
    async with mock_chat_agent(load("custom_agent").guess) as h:
        assert "Which one?" in (await h.send_message("hello")).text
        for number in range(1, 21):
            said = (await h.send_message(str(number))).text
            if said.startswith("Yes!"):
                break
        await h.reached(lambda: not h.alive)
    assert said == f"Yes! {number} it is."


async def test_what_a_user_adds_meanwhile_is_in_the_next_request() -> None:
    example = load("steering")
    model = scripted([[Call("research", {"number": 7})], "7 is fine, says the owl."])
    with example.researcher.override(model=model):
        async with mock_chat_agent(example.steerable) as h:
            await h.post_message("research number 7")
            await h.reached(lambda: len(model.requests) == 1)
            await h.post_message("also say who told you")
            await h.reached(lambda: h.state == "wait")
            [turn] = await h.turns()
    assert turn.text == "7 is fine, says the owl."
    assert "also say who told you" in str(model.requests[1])


async def test_an_expense_is_approved_step_by_step() -> None:
    example = load("approval_flow")

    async def work(run: MockTask) -> None:
        done: list[Any] = []

        async def approve() -> None:
            payload = {"sessionId": run.session, "amount": 120}
            done.append(await example.expense_approval(payload))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(approve)
            await run.inputs.send("in", {"approved": True})
            await run.advance(3600)
            await run.inputs.send("in", {"approved": False})
        assert done == [{"approved": False, "by": "finance"}]
        states = [chunk["state"] for chunk in await run.outputs.chunks()]
        assert states == ["waiting", "approved", "waiting", "rejected"]

    await run_in_mock_task_context(work)


async def test_the_inbox_echoes_until_it_is_told_goodbye() -> None:
    example = load("inbox")

    async def work(run: MockTask) -> None:
        await run.inputs.send("in", {"hello": "world"})
        await run.inputs.send("in", "bye")
        assert await example.inbox({"sessionId": run.session}) == {"ended": True}
        assert await run.outputs.chunks() == [{"echo": {"hello": "world"}}, {"said": "goodbye"}]

    await run_in_mock_task_context(work)


async def test_a_head_start_is_finished_by_the_agent() -> None:
    question = user("what time is it?", "u1")
    step = {
        "id": "m1",
        "role": "assistant",
        "parts": [
            {
                "type": "tool-current_time",
                "toolCallId": "c1",
                "state": "input-available",
                "input": {},
            },
        ],
    }
    example = load("head_start")
    async with mock_chat_agent(example.starter, start=False) as h:
        await h.send_head_start([question])
        turn = await h.send_handover(step)
    assert [c["type"] for c in turn.chunks if "output" in c] == ["tool-output-available"]
    assert turn.text.startswith("current_time says")


async def test_the_lead_asks_its_researcher_a_colleague_that_a_test_may_replace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = load("research_team")

    class Colleague:
        async def __aenter__(self) -> Colleague:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def send_message(self, question: str, *, signal: Any) -> Colleague:
            return self

        async def messages(self) -> Any:
            for text in ("Let", "Let me see: 42."):
                yield {"id": "r", "role": "assistant", "parts": [{"type": "text", "text": text}]}

    monkeypatch.setattr(example, "AgentChat", lambda *_, **__: Colleague())
    model = scripted([[Call("research", {"question": "owls?"})], "It is 42."])
    with example.lead_agent.override(model=model):
        async with mock_chat_agent(example.lead) as h:
            turn = await h.send_message("research owls")
    assert turn.text == "It is 42."
    assert "Let me see: 42." in str(model.requests[1][-1])
