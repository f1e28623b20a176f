"""`on_busy`: what becomes of a message that arrives during a turn (rulings §5.8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from everturn import PendingMessages, chat
from everturn.chat.definition import ChatAgent
from everturn.chat.policy import INTERRUPTED, REJECTED, SUPERSEDED
from everturn.errors import ConfigurationError
from everturn.testing.harness import ChatHarness, HarnessTurn, mock_chat_agent

pytestmark = pytest.mark.anyio


class Slow:
    """An agent that says its message at once and then waits, the first time."""

    def __init__(self, on_busy: str, *, silent: bool = False) -> None:
        self.speaking, self.go_on = anyio.Event(), anyio.Event()
        self.heard: list[list[str]] = []

        @chat.agent("slow", on_busy=on_busy)  # type: ignore[arg-type]  # parametrised
        async def agent(turn: Any) -> AsyncIterator[str]:
            self.heard.append([m.text for m in turn.ui_messages if m["role"] == "user"])
            if not silent:
                yield f"{turn.text}: "
            self.speaking.set()
            await self.go_on.wait()
            yield "done"

        self.agent: ChatAgent[Any] = agent


async def busy_with(h: ChatHarness, slow: Slow, *arriving: str) -> None:
    """A turn in progress, during which these messages arrived."""
    await h.post_message(user("one"))
    await slow.speaking.wait()
    for text in arriving:
        await h.post_message(user(text))
    await anyio.wait_all_tasks_blocked()


async def finished(h: ChatHarness, slow: Slow) -> list[HarnessTurn]:
    slow.go_on.set()
    await h.settled()
    return await h.turns()


def user(text: str) -> dict[str, Any]:
    return {"id": f"m-{text}", "role": "user", "parts": [{"type": "text", "text": text}]}


def said(turns: list[HarnessTurn]) -> list[str]:
    return [turn.errors[0] if turn.errors else turn.text for turn in turns]


def newest_attempt(turn: HarnessTurn) -> HarnessTurn:
    """What a turn said after its newest restart mark."""
    marks = [n for n, r in enumerate(turn.records) if b"data-restarted" in r.body]
    return HarnessTurn(turn.records[marks[-1] + 1 :]) if marks else turn


async def roles(h: ChatHarness) -> list[str]:
    snapshot = await h.get_snapshot()
    assert snapshot is not None
    return [message["role"] for message in snapshot["messages"]]


@pytest.mark.parametrize(
    ("on_busy", "answers"),
    [
        ("queue", ["one: done", "two: done", "three: done"]),
        ("latest", ["one: done", SUPERSEDED, "three: done"]),
        ("reject", ["one: done", REJECTED, REJECTED]),
        ("interrupt", ["one: ", SUPERSEDED, "three: done"]),
    ],
)
async def test_every_message_is_answered_or_visibly_refused_in_order(
    on_busy: str, answers: list[str]
) -> None:
    """P-3: one turn-complete each, whose cursor covers just that message."""
    slow = Slow(on_busy)
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow, "two", "three")
        turns = await finished(h, slow)
    assert said(turns) == answers
    assert [turn.cursor.seq_num for turn in turns] == [0, 1, 2]


@pytest.mark.parametrize("on_busy", ["latest", "reject"])
async def test_a_refusal_is_an_error_and_a_turn_complete_and_nothing_else(on_busy: str) -> None:
    """Rulings §1.21: the two are neighbours."""
    # W-86
    slow = Slow(on_busy)
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow, "two", "three")
        turns = await finished(h, slow)
        history = await roles(h)
    refused = next(turn for turn in turns if turn.errors)
    assert [c["type"] for c in refused.raw_chunks] == ["error", "trigger:turn-complete"]
    assert history.count("user") == 3


async def test_a_refused_message_uses_up_no_turn_and_calls_no_hook() -> None:
    slow = Slow("reject")
    slow.agent.on_turn_complete(lambda event: None)
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow, "two")
        await finished(h, slow)
        await h.send_message(user("three"))
        await h.settled()
        last = h.event("on_turn_complete").turn
    assert last == 1
    assert h.hook_calls.count("on_turn_complete") == 2


async def test_the_chat_is_not_busy_any_more_once_the_turn_complete_is_written() -> None:
    """A client that has seen the end may write, whatever the completion hook still does."""
    slow, hooked, go_on = Slow("reject"), anyio.Event(), anyio.Event()

    @slow.agent.on_turn_complete
    async def long(event: Any) -> None:
        hooked.set()
        await go_on.wait()

    slow.go_on.set()
    async with mock_chat_agent(slow.agent) as h:
        await h.send_message(user("one"))
        await hooked.wait()
        await h.post_message(user("two"))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await h.settled()
        turns = await h.turns()
    assert said(turns) == ["one: done", "two: done"]


async def test_an_interrupted_turn_keeps_what_it_said_and_ends_in_abort() -> None:
    # W-86
    slow = Slow("interrupt")
    slow.agent.on_turn_complete(lambda event: None)
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow, "two")
        turns = await finished(h, slow)
        stopped = [e.stopped for name, e in h.events if name == "on_turn_complete"]
        history = await roles(h)
    abort = next(chunk for chunk in turns[0].chunks if chunk["type"] == "abort")
    assert abort["reason"] == INTERRUPTED
    assert not turns[0].errors
    assert stopped == [True, False]
    assert history == ["user", "assistant", "user", "assistant"]
    assert slow.heard[1] == ["one", "two"]


async def test_a_turn_interrupted_before_it_said_anything_ends_visibly() -> None:
    slow = Slow("interrupt", silent=True)
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow, "two")
        turns = await finished(h, slow)
    assert said(turns) == [SUPERSEDED, "done"]


async def test_an_action_is_never_refused_nor_interrupted() -> None:
    slow = Slow("interrupt")
    slow.agent.on_action(lambda event: f"did {event.action}")
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow)
        await h.post(h.wire("action", action="x"))
        await anyio.wait_all_tasks_blocked()
        turns = await finished(h, slow)
    assert said(turns) == ["one: done", "did x"]


async def test_a_regenerate_waits_for_its_turn_under_every_policy() -> None:
    slow = Slow("reject")
    async with mock_chat_agent(slow.agent) as h:
        await busy_with(h, slow)
        await h.post(h.wire("regenerate-message"))
        await anyio.wait_all_tasks_blocked()
        turns = await finished(h, slow)
    assert said(turns) == ["one: done", ": done"]


class TestAfterACrash:
    @pytest.mark.parametrize(
        ("on_busy", "answers"),
        [
            ("queue", ["one: done", "two: done", "three: done"]),
            ("latest", ["one: done", SUPERSEDED, "three: done"]),
            ("reject", ["one: done", REJECTED, REJECTED]),
            ("interrupt", [SUPERSEDED, SUPERSEDED, "three: done"]),
        ],
    )
    async def test_the_next_attempt_comes_to_the_same_decisions(
        self, on_busy: str, answers: list[str]
    ) -> None:
        slow = Slow(on_busy)
        async with mock_chat_agent(slow.agent, preload=False, continuation=True) as h:
            await h.post_message(user("one"))
            await slow.speaking.wait()
            await anyio.wait_all_tasks_blocked()
            await h.crash()
            await h.seed_in(user("two"), user("three"))
            slow.go_on.set()
            await h.restart(attempt=2)
            await h.settled()
            turns = await h.turns()
        assert said([newest_attempt(turn) for turn in turns]) == answers

    async def test_a_superseded_message_keeps_the_answer_that_was_cut_off(self) -> None:
        """P-8: its open text is closed, and nobody announces that it is given again."""
        slow = Slow("interrupt")
        async with mock_chat_agent(slow.agent, preload=False, continuation=True) as h:
            await h.post_message(user("one"))
            await slow.speaking.wait()
            await anyio.wait_all_tasks_blocked()
            await h.crash()
            await h.seed_in(user("two"))
            slow.go_on.set()
            await h.restart(attempt=2)
            await h.settled()
            turns, snapshot = await h.turns(), await h.get_snapshot()
        kinds = [chunk["type"] for chunk in turns[0].chunks]
        assert kinds[-2:] == ["text-end", "error"]
        assert "data-restarted" not in kinds
        assert snapshot is not None
        assert [chat.text_of(m) for m in snapshot["messages"]] == [
            "one", "one: ", "two", "two: done",
        ]  # fmt: skip


class TestConfiguration:
    def test_an_unknown_policy_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="on_busy is one of"):
            chat.agent("x", on_busy="merge")  # type: ignore[arg-type]  # what is tested

    def test_steering_beside_a_policy_without_a_use_for_it_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="no use beside"):
            chat.agent("x", on_busy="reject", pending_messages=PendingMessages())
