"""Clauses whose tests let the promise be broken, each checked as the clause has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.protocol.records import TURN_COMPLETE, UPGRADE_REQUIRED
from everturn.testing import scripted_model
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio


def echo_agent(**options: Any) -> ChatAgent[Any]:
    @chat.agent("echo", **options)
    async def echo(turn: Any) -> str:
        return f"re {turn.text}"

    return echo


async def committed(h: ChatHarness) -> list[int | None]:
    return [turn.cursor.seq_num for turn in await h.turns()]


async def next_run(h: ChatHarness) -> None:
    """The run ends well and another one continues the session."""
    await h.settled()
    await h.drain()
    await h.restart()
    await h.settled()


async def test_the_committed_cursor_never_goes_back_from_run_to_run() -> None:
    """R-011, R-034: with the snapshot that was stored, an old one, and none."""
    async with mock_chat_agent(echo_agent()) as h:
        await h.send_message("m1")
        await h.settled()
        old = await h.get_snapshot()
        await h.send_message("m2")
        await h.send_stop()
        await next_run(h)
        await h.send_message("m3")
        assert old is not None
        await h.settled()
        await h.seed_snapshot(old)
        await next_run(h)
        await h.send_message("m4")
        await h.settled()
        await h.seed_snapshot({"version": 0})
        await next_run(h)
        await h.send_message("m5")
        turns = await h.turns()
        cursors = await committed(h)
    assert [turn.text for turn in turns] == [f"re m{n}" for n in range(1, 6)]
    assert cursors == sorted(cursors, key=lambda seq: -1 if seq is None else seq)
    assert cursors[-1] == 5


async def test_an_upgrade_neither_trims_nor_moves_what_is_trimmed_next() -> None:
    """R-017: the successor's first trim is to the turn-complete before the upgrade."""
    agent = echo_agent()

    @agent.on_turn_start
    def upgrade(event: Any) -> None:
        if event.ui_messages[-1].text == "m2" and not event.continuation:
            chat.request_upgrade()

    async with mock_chat_agent(agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.send_message("m2")
        await h.settled()
        records = await h.records()
        trims = await h.trims()
    ends = [record.seq_num for record in records if record.control == TURN_COMPLETE]
    assert [r.control for r in records if r.control == UPGRADE_REQUIRED] == [UPGRADE_REQUIRED]
    assert trims == ends[:1]


@pytest.mark.parametrize("returned", [None, 42, ["a", "b"], ("a",), {"a": 1}, b"a", {"a"}])
async def test_what_is_no_stream_streams_nothing(returned: Any) -> None:
    """R-047: a list an agent happens to return is no answer either."""

    @chat.agent("silent")
    def silent(turn: Any) -> Any:
        return returned

    async with mock_chat_agent(silent) as h:
        turn = await h.send_message("x")
    assert turn.chunks == []
    assert turn.errors == []


async def test_a_failed_model_is_told_once_and_its_finish_says_so() -> None:
    """R-060: on the stream as in the completion hook."""
    model = Agent(scripted_model([["half", ValueError("no model")]]))

    @chat.agent("failing")
    async def failing(turn: Any) -> Any:
        return turn.stream(model)

    failing.on_turn_complete(lambda event: None)
    async with mock_chat_agent(failing) as h:
        turn = await h.send_message("x")
        await h.settled()
        event = h.event("on_turn_complete")
    assert [c["finishReason"] for c in turn.chunks if c["type"] == "finish"] == ["error"]
    assert (turn.text, turn.errors) == ("half", ["no model"])
    assert (event.finish_reason, event.error, event.stopped) == ("error", None, False)


# --- approvals ------------------------------------------------------------------------------------


class Amount(BaseModel):
    amount: int


class Payer:
    """Pays what it is told; amounts above a hundred have to be approved by a person."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.heard: list[str] = []

        @chat.tool(needs_approval=lambda asked: asked.amount > 100)
        async def pay(asked: Amount) -> str:
            """Pay."""
            self.paid.append(asked.amount)
            return f"paid {asked.amount}"

        library = Agent(FunctionModel(stream_function=self._model))

        @chat.agent("payer", tools=[pay])
        async def payer(turn: Any) -> Any:
            return turn.stream(library, **chat.run_options(tools=turn.tools))

        self.agent: ChatAgent[Any] = payer

    async def _model(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        results = [p for p in messages[-1].parts if isinstance(p, ToolReturnPart)]
        if results:
            self.heard.append(str(results[0].content))
            yield f"So: {results[0].content}"
        else:
            amount = str(messages[-1].parts[-1].content)  # type: ignore[union-attr]  # the prompt
            arguments = f'{{"amount": {amount}}}'
            yield {0: DeltaToolCall(name="pay", json_args=arguments, tool_call_id=f"c{amount}")}


async def test_a_rule_of_the_authors_says_which_calls_a_person_has_to_approve() -> None:
    """R-197: those it names wait, the others run at once."""
    payer = Payer()
    async with mock_chat_agent(payer.agent) as h:
        small = await h.send_message("5")
        assert payer.paid == [5]
        assert small.message is not None
        large = await h.send_message("500")
        assert payer.paid == [5]
    kinds = [chunk["type"] for chunk in large.chunks]
    assert "tool-approval-request" in kinds
    assert "tool-output-available" not in kinds
    assert "tool-approval-request" not in [chunk["type"] for chunk in small.chunks]


@pytest.mark.parametrize("approved", [True, False])
async def test_a_decision_about_such_a_call_is_carried_out_once(approved: bool) -> None:
    """R-197: the result comes before further words; a denied body is not run, its reason is told."""
    payer = Payer()
    async with mock_chat_agent(payer.agent) as h:
        asked = (await h.send_message("500")).message
        assert asked is not None
        (part,) = [part for part in asked["parts"] if part["type"] == "tool-pay"]
        approval = {**part["approval"], "approved": approved, "reason": "too much"}
        decided = {**part, "state": "approval-responded", "approval": approval}
        turn = await h.send_message({**asked, "parts": [decided]})
        again = await h.send_message({**asked, "parts": [decided]})
    kinds = [chunk["type"] for chunk in turn.chunks]
    result = "tool-output-available" if approved else "tool-output-denied"
    assert kinds.count(result) == 1
    assert kinds.index(result) < kinds.index("text-start")
    assert payer.paid == ([500] if approved else [])
    assert payer.heard == (["paid 500"] if approved else ["too much"])
    assert again.chunks == []


# --- boot -----------------------------------------------------------------------------------------


async def test_what_only_a_snapshot_calls_committed_is_not_answered_again() -> None:
    """R-034: the newest turn-complete says less, or there is none."""
    agent = echo_agent()
    async with mock_chat_agent(agent, mode="continuation", start=False) as h:
        await h.seed_session_in_tail(["m1"])
        messages = [h.user("m1"), {"id": "a1", "role": "assistant", "parts": []}]
        await h.seed_snapshot({"version": 1, "messages": messages, "lastInEventId": "1"})
        await h.start()
        await h.settled()
        assert [turn.text for turn in await h.turns() if turn.text] == []
        turn = await h.send_message("m2")
    assert turn.text == "re m2"
    assert turn.cursor.seq_num == 2


async def test_the_idle_time_set_in_a_run_counts_after_turns_only() -> None:
    """R-078: not for the window of a preload; the turn timeout counts for both."""
    agent = echo_agent(preload_idle_timeout=50, preload_timeout=1000, turn_timeout=1000)

    @agent.on_preload
    def shorter(event: Any) -> None:
        chat.set_idle_timeout(10)
        chat.set_turn_timeout(200)

    async with mock_chat_agent(agent, mode="preload") as h:
        await h.settled()
        await h.advance(49)
        assert not h.suspended
        await h.advance(2)
        assert left_s(h) == 199
        await h.send_message("m1")
        await h.settled()
        await h.advance(11)
        assert left_s(h) == 199
        await h.advance(200)
        assert h.outcomes[-1][1] == "completed"


def left_s(h: ChatHarness) -> float:
    """Seconds until a run that is suspended is ended."""
    until_ms = h.waitpoints[-1][1]
    assert h.suspended
    assert until_ms is not None
    return (until_ms - h.world.clock.now_ms()) / 1000


# --- hydration ------------------------------------------------------------------------------------


async def test_an_answer_to_a_call_is_laid_over_the_history_an_author_keeps() -> None:
    """R-041: by the message's id, and nothing else of what the client sent."""
    part = {"type": "tool-ask", "toolCallId": "c", "state": "input-available", "input": {"q": 1}}
    kept = [
        {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "ask me"}]},
        {"id": "a1", "role": "assistant", "parts": [{"type": "step-start"}, part]},
    ]
    seen: list[Any] = []

    @chat.agent("keeping")
    async def keeping(turn: Any) -> str:
        seen.append(turn.ui_messages[-1]["parts"][-1])
        return "ok"

    keeping.hydrate_messages(lambda event: kept)
    answer = {**part, "state": "output-available", "output": "yes", "input": "forged"}
    async with mock_chat_agent(keeping) as h:
        turn = await h.send_message({"id": "a1", "role": "assistant", "parts": [answer]})
    assert turn.errors == []
    assert seen == [{**part, "state": "output-available", "output": "yes"}]


async def test_an_action_has_the_history_an_author_keeps() -> None:
    """R-041, R-091: hydration is asked before the action, with nothing coming in."""
    agent = echo_agent()
    kept = [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": "stored"}]}]
    agent.hydrate_messages(lambda event: kept)
    seen: list[str] = []

    @agent.on_action
    def act(event: Any) -> None:
        seen.extend(message.text for message in event.ui_messages)

    async with mock_chat_agent(agent) as h:
        await h.send_action({"do": 1})
        hydrated = h.event("hydrate_messages")
    assert seen == ["stored"]
    assert (hydrated.trigger, hydrated.incoming_messages) == ("action", [])
    assert h.hook_calls == ["hydrate_messages", "on_action"]


async def test_a_call_of_an_older_answer_is_not_pending_any_more() -> None:
    """R-186: the newest answer has none; a question behind it hides none of its own."""
    pending = {"type": "tool-ask", "toolCallId": "c", "state": "input-available", "input": {}}
    asks = {"id": "a1", "role": "assistant", "parts": [pending]}
    said = {"id": "a2", "role": "assistant", "parts": [{"type": "text", "text": "never mind"}]}
    waits = {"id": "a3", "role": "assistant", "parts": [{**pending, "toolCallId": "d"}]}
    approval = {**pending, "toolCallId": "e", "state": "approval-requested"}
    asked = {"id": "u", "role": "user", "parts": []}
    found: list[list[str]] = []

    @chat.agent("looking")
    async def looking(turn: Any) -> str:
        for chain in ([asks, said], [asks, waits, asked], [{**asks, "parts": [approval]}]):
            chat.history.set(chain)
            found.append([c["tool_call_id"] for c in chat.history.get_pending_tool_calls()])
        return "ok"

    async with mock_chat_agent(looking) as h:
        assert (await h.send_message("x")).errors == []
    assert found == [[], ["d"], []]
