"""Head start, on the agent's side (chat-agent §2.6, §4.15; R-213 to R-217)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from pydantic_ai import Agent

from everturn import chat
from everturn.chat.adapters.offline import offline_model
from everturn.chat.definition import ChatAgent
from everturn.chat.handover import ui_parts, wire_partial
from everturn.protocol.records import NewRecord, data_body
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio

QUESTION = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "what time is it?"}]}
CALL = {"type": "tool-call", "toolCallId": "c1", "toolName": "current_time", "input": {}}
FINAL = [{"role": "assistant", "content": [{"type": "text", "text": "It is noon."}]}]
PENDING = [
    {
        "role": "assistant",
        "content": [
            {"type": "reasoning", "text": "hm", "providerOptions": {"x": {"signature": "s"}}},
            {"type": "text", "text": "Let me see."},
            CALL,
            {"type": "tool-approval-request", "approvalId": "a1", "toolCallId": "c1"},
        ],
    },
    {
        "role": "tool",
        "content": [{"type": "tool-approval-response", "approvalId": "a1", "approved": True}],
    },
]
STEP_ONE: list[dict[str, Any]] = [
    {"type": "start", "messageId": "m1"},
    {"type": "start-step"},
    {"type": "text-start", "id": "w"},
    {"type": "text-delta", "id": "w", "delta": "Let me see."},
    {"type": "text-end", "id": "w"},
    {"type": "tool-input-available", "toolCallId": "c1", "toolName": "current_time", "input": {}},
    {"type": "finish-step"},
]


def seeing_agent(seen: list[Any], **options: Any) -> ChatAgent[Any]:
    """Answers the handed-over call by hand, as a stream of the model library would."""

    @chat.agent("seeing", **options)
    async def seeing(turn: Any) -> Any:
        seen.append(turn.ui_messages)
        last = turn.ui_messages[-1]
        if last["role"] == "assistant":
            yield {"type": "tool-output-available", "toolCallId": "c1", "output": "noon"}
        yield "It is noon."

    return seeing


@asynccontextmanager
async def head_started(agent: ChatAgent[Any], **payload: Any) -> AsyncIterator[ChatHarness]:
    """A run that waits for its handover."""
    async with mock_chat_agent(agent, start=False) as h:
        boot = {"trigger": "handover-prepare", "headStartMessages": [QUESTION], **payload}
        await h.start(payload=boot)
        yield h


async def warm(h: ChatHarness, *chunks: dict[str, Any]) -> None:
    """What the warm side writes, as a guest."""
    records = [
        NewRecord(data_body(msgspec.json.encode(chunk), f"warm:{n}"), (), f"warm:{n}")
        for n, chunk in enumerate(chunks)
    ]
    await h.world.streams.append(h.world.channel("out"), records)


def handover(partial: Any, *, final: bool) -> dict[str, Any]:
    return {
        "kind": "handover",
        "partialAssistantMessage": partial,
        "messageId": "m1",
        "isFinal": final,
    }


async def stored(h: ChatHarness) -> list[dict[str, Any]]:
    await h.settled()
    snapshot = await h.get_snapshot()
    assert snapshot is not None
    return snapshot["messages"]


async def test_the_turn_after_a_tool_call_goes_on_in_the_same_message() -> None:
    """R-213."""
    seen: list[Any] = []
    async with head_started(seeing_agent(seen)) as h:
        await warm(h, *STEP_ONE)
        turn = await h.send(handover(PENDING, final=False))

        assert [chunk["type"] for chunk in turn.chunks].count("start") == 0, (
            "one message, one start"
        )
        everything = (await h.turns())[0].message
        question, answer = await stored(h)
        assert question == QUESTION
        assert answer["id"] == everything["id"] == "m1"
        assert [part["type"] for part in everything["parts"]] == [
            part["type"] for part in answer["parts"] if part["type"] != "reasoning"
        ]
        call = next(part for part in answer["parts"] if part["type"] == "tool-current_time")
        assert call["state"] == "output-available"
        assert "approval" not in call, "nobody approved anything"


async def test_the_agent_sees_the_call_as_one_that_may_be_executed() -> None:
    seen: list[Any] = []
    async with head_started(seeing_agent(seen)) as h:
        await h.send(handover(PENDING, final=False))

        partial = seen[0][-1]
        reasoning = next(part for part in partial["parts"] if part["type"] == "reasoning")
        call = next(part for part in partial["parts"] if part["type"] == "tool-current_time")
        assert reasoning["providerMetadata"] == {"x": {"signature": "s"}}
        assert call["state"] == "approval-responded"
        assert call["approval"] == {"id": "a1", "approved": True, "handover": True}


async def test_a_final_handover_is_the_answer_and_nothing_is_run() -> None:
    """R-214."""
    seen: list[Any] = []
    ended: list[Any] = []
    agent = seeing_agent(seen)
    agent.on_turn_complete(ended.append)
    agent.prepare_messages(lambda event: pytest.fail("there is no model request to prepare"))
    async with head_started(agent) as h:
        turn = await h.send(handover(FINAL, final=True))

        assert seen == []
        assert turn.chunks == [], "the warm side has written all of it"
        [event] = ended
        assert event.response_message["id"] == "m1"
        assert event.finish_reason == "stop"
        assert chat.text_of(event.response_message) == "It is noon."
        assert [message["id"] for message in await stored(h)] == ["u1", "m1"]


async def test_a_skip_ends_the_run_without_a_turn() -> None:
    """R-215."""
    agent = seeing_agent([])
    agent.on_turn_start(lambda event: pytest.fail("there is no turn"))
    async with head_started(agent) as h:
        await h.post({"kind": "handover-skip"})
        await h.reached(lambda: not h.alive)

        assert [how for _, how in h.outcomes] == ["completed"]
        assert await h.records() == []


async def test_no_handover_within_the_window_ends_the_run_without_suspending() -> None:
    """R-216."""
    async with head_started(seeing_agent([]), idleTimeoutInSeconds=7) as h:
        await h.advance(6.5)
        assert h.alive

        await h.advance(1)
        await h.reached(lambda: not h.alive)

        assert [how for _, how in h.outcomes] == ["completed"]
        assert h.world.waits == [], "it never suspended"


async def test_a_message_sent_during_the_wait_is_answered_after_the_handover_turn() -> None:
    """R-217."""
    seen: list[Any] = []
    async with head_started(seeing_agent(seen)) as h:
        early = await h.post_message("and in Rome?")
        await h.send(handover(FINAL, final=True))
        turn = await h.turn_after((await h.turns())[0].turn_complete.seq_num)

        assert turn.text == "It is noon."
        assert [message["role"] for message in seen[0]] == ["user", "assistant", "user"]
        first, second = [each.cursor for each in await h.turns()]
        assert first.covers(early + 1)
        assert not first.covers(early)
        assert second.seq_num == early + 1


async def test_a_message_sent_during_the_wait_is_answered_when_the_warm_side_fails() -> None:
    seen: list[Any] = []
    async with head_started(seeing_agent(seen)) as h:
        await h.post_message("hello?")
        turn = await h.send({"kind": "handover-skip"})

        assert turn.text == "It is noon."
        assert seen[0][0] == QUESTION, "the history of the head start is not lost"


async def test_a_process_that_dies_while_waiting_finds_the_handover_again() -> None:
    seen: list[Any] = []
    async with head_started(seeing_agent(seen)) as h:
        await warm(h, *STEP_ONE)
        await h.crash()
        await h.world.post('{"kind":"handover","partialAssistantMessage":[],"isFinal":true}')
        await h.restart(attempt=2)
        turn = await h.turn_after(len(STEP_ONE) - 1)

        assert [chunk["type"] for chunk in turn.chunks] == [], "there was nothing to tell again"


async def test_a_turn_that_died_is_told_again_with_its_first_step() -> None:
    seen: list[Any] = []
    agent = seeing_agent(seen)

    @agent.on_turn_start
    def write(event: Any) -> None:
        event.writer.write({"type": "data-note", "data": 1, "transient": True})
        if len(h.events) and h.runtime is not None and h.runtime.info.attempt == 1:
            raise MemoryError

    async with head_started(agent) as h:
        await warm(h, *STEP_ONE)
        await h.post(handover(PENDING, final=False))
        await h.reached(lambda: not h.alive)
        await h.restart(attempt=2)
        turn = await h.turn_after(len(STEP_ONE))

        kinds = [chunk["type"] for chunk in turn.chunks]
        again = kinds[kinds.index("data-restarted") :]
        assert again.count("start") == 1
        [_, answer] = await stored(h)
        assert answer["id"] == "m1"
        assert chat.text_of(answer) == "Let me see.It is noon."


async def test_the_history_is_stored_before_the_turn_complete() -> None:
    """What the user said is nowhere else: a run that died in between could not find it."""
    async with head_started(seeing_agent([])) as h:
        writes = []
        agent = h.agent
        agent.on_turn_complete(lambda event: writes.append(h.world.snapshot_writes))
        await h.send(handover(FINAL, final=True))
        await h.settled()

        assert writes == [1]


async def test_a_hydrating_author_is_given_the_head_start_history() -> None:
    given: list[Any] = []
    agent = seeing_agent([])

    @agent.hydrate_messages
    def load(event: Any) -> list[Any]:
        given.extend(event.incoming_messages)
        return list(event.incoming_messages)

    async with head_started(agent) as h:
        await h.send(handover(FINAL, final=True))

        assert given == [QUESTION]


async def test_a_handover_nobody_waits_for_is_dropped() -> None:
    async with mock_chat_agent(seeing_agent([])) as h:
        await h.post(handover(FINAL, final=True))
        turn = await h.send_message("hi")

        assert turn.text == "It is noon."
        assert turn.cursor.seq_num == 1


async def test_a_stop_after_the_handover_stops_its_turn() -> None:
    @chat.agent("waiting")
    async def waiting(turn: Any) -> Any:
        yield "never "
        await turn.signal.wait()

    async with head_started(waiting) as h:
        await h.post(handover(PENDING, final=False))
        await h.send_stop()
        await h.turn_after(-1)

        [_, answer] = await stored(h)
        assert [part["type"] for part in answer["parts"]].count("tool-current_time") == 0


async def answered_by_a_model(tool: Any) -> tuple[Any, dict[str, Any]]:
    """The turn of a handed-over call to `tool`, and the call as it was stored."""
    model = Agent(offline_model(delay_ms=0))

    @chat.agent("modelled", tools=[tool])
    async def modelled(turn: Any) -> Any:
        return turn.stream(model, **chat.run_options(tools=turn.tools))

    async with head_started(modelled) as h:
        turn = await h.send(handover(PENDING, final=False))
        [_, answer] = await stored(h)
    [call] = [part for part in answer["parts"] if part["type"] == "tool-current_time"]
    return turn, call


async def test_a_handed_over_call_runs_in_the_agent() -> None:
    """R-213."""
    tool = chat.tool(lambda: "noon", name="current_time", description="The time.")
    turn, call = await answered_by_a_model(tool)

    assert (call["state"], call["output"]) == ("output-available", "noon")
    assert "noon" in turn.text
    assert "approval" not in call


async def test_a_handed_over_call_that_needs_approval_is_put_to_a_person() -> None:
    ran: list[int] = []
    tool = chat.tool(
        lambda: ran.append(1), name="current_time", description="The time.", needs_approval=True
    )
    turn, call = await answered_by_a_model(tool)

    assert ran == [], "a marker of the protocol is nobody's consent"
    assert call["state"] == "approval-requested"
    assert "tool-approval-request" in [chunk["type"] for chunk in turn.chunks]


async def test_a_handed_over_call_that_a_client_answers_waits_for_it() -> None:
    tool = chat.client_tool(name="current_time", description="The time.")
    turn, call = await answered_by_a_model(tool)

    assert turn.errors == []
    assert call["state"] == "input-available"


def test_the_partial_survives_its_way_over_the_wire() -> None:
    parts = [
        {"type": "step-start"},
        {
            "type": "reasoning",
            "text": "hm",
            "state": "done",
            "providerMetadata": {"p": {"signature": "s"}},
        },
        {"type": "text", "text": "Let me see.", "state": "done"},
        {
            "type": "tool-current_time",
            "toolCallId": "c1",
            "state": "input-available",
            "input": {"zone": "UTC"},
            "callProviderMetadata": {"p": {"id": "7"}},
        },
        {
            "type": "tool-web",
            "toolCallId": "c2",
            "state": "output-available",
            "input": {},
            "output": {"found": 1},
            "providerExecuted": True,
        },
    ]
    message = {"id": "m1", "role": "assistant", "parts": parts}

    back = ui_parts(wire_partial(message, is_final=False), is_final=False)

    assert back[:2] == parts[1:3]
    assert back[2] == {
        **parts[3],
        "state": "approval-responded",
        "approval": {"id": "handover-c1", "approved": True, "handover": True},
    }
    assert back[3] == parts[4]
    assert ui_parts(wire_partial(message, is_final=True), is_final=True) == parts[1:]
