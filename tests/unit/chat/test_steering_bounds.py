"""Where steering may not take a message, and where what it took must be accounted for (P-3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from talkers import texts

from everturn import PendingMessages, chat
from everturn.chat.state import current_run, current_turn
from everturn.chat.steering import Boundary
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio
ALWAYS = PendingMessages(should_inject=lambda batch: True)


def user(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


async def offer(run: Any, state: Any) -> list[Any]:
    """What the step hook of a model run does before a request."""
    boundary = Boundary(history=[], request=[], steps=[], run_id="r", show=lambda *chunks: None)
    found: list[Any] = await run.steering.at_boundary(run, state, boundary)
    return found


class Working:
    """A model that calls a tool once, which waits for the test, and then answers."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []
        self.working, self.go_on = anyio.Event(), anyio.Event()
        self.agent: Agent[None, str] = Agent(FunctionModel(stream_function=self._answer))

        @self.agent.tool_plain
        async def wait() -> str:
            self.working.set()
            await self.go_on.wait()
            return "waited"

    async def _answer(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        parts = [part for message in messages for part in message.parts]
        self.heard.append([str(p.content) for p in parts if isinstance(p, UserPromptPart)])
        if any(part.part_kind == "tool-return" for part in parts):
            yield "done"
        else:
            yield {0: DeltaToolCall(name="wait", json_args="{}")}


@pytest.mark.parametrize("piped", [False, True], ids=["returned", "piped"])
async def test_a_message_taken_into_an_action_is_decided_with_it_and_kept(piped: bool) -> None:
    working = Working()

    @chat.agent("acting", pending_messages=ALWAYS)
    async def acting(turn: Any) -> str:
        return "never"

    @acting.on_action
    async def act(event: Any) -> Any:
        made = chat.stream_agent(working.agent, messages=[user("go", "a")], **chat.run_options())
        if not piped:
            return made
        await chat.pipe(made)
        return None

    async with mock_chat_agent(acting) as h:
        await h.post(h.wire("action", action="x"))
        await working.working.wait()
        await h.post_message(user("and that", "m1"))
        await anyio.wait_all_tasks_blocked()
        working.go_on.set()
        turn = await h.turn_after(-1)
        await h.settled()
        snapshot = await h.get_snapshot()
        await h.crash()
        await h.restart()
        await h.settled()
        assert len(await h.turns()) == 1, "the message was answered a second time"
    assert working.heard[-1] == ["go", "and that"]
    assert turn.cursor.seq_num == 1
    assert "and that" in str(snapshot)


async def test_two_model_runs_of_one_turn_take_a_waiting_message_once() -> None:
    taken: list[int] = []
    waiting, deciding = anyio.Event(), anyio.Event()

    async def should_inject(batch: Any) -> bool:
        await anyio.lowlevel.checkpoint()
        return True

    pending = PendingMessages(should_inject=should_inject)

    @chat.agent("double", pending_messages=pending)
    async def double(turn: Any) -> str:
        waiting.set()
        await deciding.wait()
        run, state = current_run(), current_turn()

        async def one() -> None:
            taken.append(len(await offer(run, state)))

        async with anyio.create_task_group() as both:
            both.start_soon(one)
            both.start_soon(one)
        return "answer"

    async with mock_chat_agent(double) as h:
        await h.post_message(user("first", "m1"))
        await waiting.wait()
        await h.post_message(user("second", "m2"))
        await anyio.wait_all_tasks_blocked()
        deciding.set()
        turn = await h.turn_after(-1)
        snapshot = await h.get_snapshot()
    assert turn.errors == []
    assert sorted(taken) == [0, 1]
    assert turn.cursor.seq_num == 1
    assert snapshot is not None


async def test_work_beside_a_turn_whose_answer_is_whole_takes_nothing() -> None:
    """The message would be decided without being in any history: it gets a turn of its own."""
    answers: list[str] = []
    taken: list[list[Any]] = []
    late, go_on = anyio.Event(), anyio.Event()

    @chat.agent("deferring", pending_messages=ALWAYS)
    async def deferring(turn: Any) -> str:
        answers.append(turn.text)
        if turn.text == "first":
            run, state = current_run(), current_turn()

            async def title() -> None:
                late.set()
                await go_on.wait()
                taken.append(await offer(run, state))

            chat.defer(title)
        return f"re {turn.text}"

    async with mock_chat_agent(deferring) as h:
        await h.post_message(user("first", "m1"))
        await late.wait()
        await anyio.wait_all_tasks_blocked()
        await h.post_message(user("second", "m2"))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await h.settled()
        snapshot = await h.get_snapshot()
    assert answers == ["first", "second"]
    assert taken == [[]]
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["first", "re first", "second", "re second"]


async def test_a_message_that_is_dropped_stays_out_of_history_after_a_crash() -> None:
    """`unconsumed="drop"`: the log names it as decided, but no history ever held it."""
    lanes: list[list[str]] = []
    speaking, go_on, hung = anyio.Event(), anyio.Event(), anyio.Event()

    @chat.agent("dropping", pending_messages=PendingMessages(unconsumed="drop"))
    async def dropping(turn: Any) -> str:
        lanes.append(texts(turn.ui_messages))
        speaking.set()
        await go_on.wait()
        return f"re {turn.text}"

    @dropping.on_turn_complete
    async def hang() -> None:
        if not hung.is_set():
            hung.set()
            await anyio.sleep_forever()

    async with mock_chat_agent(dropping) as h:
        await h.post_message("first")
        await speaking.wait()
        await h.post_message("too late")
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await h.reached(hung.is_set)
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        await h.send_message("third")
    assert lanes == [["first"], ["first", "re first", "third"]]
