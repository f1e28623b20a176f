"""`chat.history`: reads and staged writes (chat-agent §4.7; R-183 to R-187)."""

from __future__ import annotations

from typing import Any

import pytest

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.chat.history import History, Lane
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


def said(text: str, role: str = "user") -> dict[str, Any]:
    return {"id": text, "role": role, "parts": [{"type": "text", "text": text}]}


def call(call_id: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"type": "tool-ask", "toolCallId": call_id, "state": state, **fields}


def calling(message_id: str, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"id": message_id, "role": "assistant", "parts": list(calls)}


def history_of(*messages: dict[str, Any]) -> History:
    lane = Lane()
    lane.replace_all(messages)
    return History(lambda: lane)


def ids(history: Any) -> list[str]:
    return [message["id"] for message in history.all()]


def echo(**options: Any) -> ChatAgent[Any]:
    @chat.agent("echo", **options)
    async def agent(turn: Any) -> str:
        return f"echo: {turn.text}"

    return agent


class TestWrites:
    def test_they_compose_and_reads_show_them_at_once(self) -> None:
        """R-183."""
        history = history_of(said("a"), said("b"), said("c"), said("d"))
        history.remove("a")
        history.replace("b", said("B"))
        assert ids(history) == ["B", "c", "d"]
        history.slice(-2)
        assert ids(history) == ["c", "d"]
        history.slice(0, -1)
        assert ids(history) == ["c"]
        assert [m["id"] for m in history.get_chain()] == ["c"]
        history.set([said("x")])
        assert history.find_message("x") == said("x")
        assert history.find_message("c") is None

    def test_rolling_back_keeps_the_named_message_and_drops_what_follows(self) -> None:
        """R-184."""
        history = history_of(said("a"), said("b"), said("c"))
        history.rollback_to("nobody")
        assert ids(history) == ["a", "b", "c"]
        history.rollback_to("b")
        assert ids(history) == ["a", "b"]

    def test_reads_are_copies(self) -> None:
        history = history_of(said("a"))
        history.all().clear()
        assert ids(history) == ["a"]

    async def test_what_a_hook_writes_is_there_for_the_next_one_that_exists(self) -> None:
        """R-183, D-21: also where the hooks between are not registered."""
        seen: list[list[str]] = []
        agent = echo()

        @agent.on_chat_start
        def start(event: Any) -> None:
            chat.history.set([said("kept"), *chat.history.all()])

        agent.on_before_turn_complete(lambda e: seen.append([m["id"] for m in e.ui_messages]))
        async with mock_chat_agent(agent) as h:
            await h.send_message(said("hi"))
            await h.settled()
        assert seen[0][:2] == ["kept", "hi"]
        assert len(seen[0]) == 3

    async def test_a_write_during_the_run_is_the_base_under_its_answer(self) -> None:
        """R-185."""

        @chat.agent("rewrites")
        async def agent(turn: Any) -> str:
            chat.history.set([said("rewritten")])
            return "answer"

        async with mock_chat_agent(agent) as h:
            await h.send_message(said("hi"))
            await h.settled()
            snapshot = await h.get_snapshot()
        assert snapshot is not None
        assert [chat.text_of(m) for m in snapshot["messages"]] == ["rewritten", "answer"]

    async def test_a_write_in_on_turn_complete_is_stored_and_seen_by_the_next_turn(self) -> None:
        seen: list[list[str]] = []

        @chat.agent("trims")
        async def agent(turn: Any) -> str:
            seen.append([chat.text_of(m) for m in turn.ui_messages])
            return "answer"

        @agent.on_turn_complete
        def trim(event: Any) -> None:
            chat.history.slice(-1)

        async with mock_chat_agent(agent) as h:
            await h.send_message(said("one"))
            await h.settled()
            await h.send_message(said("two"))
        assert seen[1] == ["answer", "two"]


class TestToolCalls:
    def test_pending_are_the_open_calls_of_the_newest_answer_only(self) -> None:
        """R-186: a user message behind it hides nothing, approvals are not among them."""
        history = history_of(
            calling("old", call("0", "input-available")),
            calling(
                "new",
                call("1", "input-available"),
                call("2", "approval-requested"),
                call("3", "output-available", output=1),
            ),
            said("and?"),
        )
        assert history.get_pending_tool_calls() == [
            {"tool_call_id": "1", "tool_name": "ask", "message_id": "new"}
        ]
        assert history_of(said("a")).get_pending_tool_calls() == []

    def test_resolved_are_those_of_the_whole_chain(self) -> None:
        history = history_of(
            calling("a", call("1", "output-available", output=1)),
            calling("b", call("2", "output-error", errorText="no"), call("3", "input-available")),
        )
        assert [c["tool_call_id"] for c in history.get_resolved_tool_calls()] == ["1", "2"]

    def test_new_results_are_those_the_chain_does_not_hold_each_once(self) -> None:
        history = history_of(
            calling("a", call("1", "output-available", output=1), call("2", "input-available"))
        )
        answer = calling(
            "a",
            call("1", "output-available", output="again"),
            call("2", "output-error", errorText="no"),
            call("2", "output-error", errorText="twice"),
            call("3", "approval-responded"),
        )
        assert history.extract_new_tool_results(answer) == [
            {"tool_call_id": "2", "tool_name": "ask", "output": None, "error_text": "no"}
        ]

    async def test_hydrating_is_where_each_result_is_new_once(self) -> None:
        """R-187: before the answer is merged; when the turn is complete it is known."""
        stored: list[dict[str, Any]] = [said("q"), calling("a", call("1", "input-available"))]
        found: list[list[Any]] = []
        answer = calling("a", call("1", "output-available", output=42))
        agent = echo()

        @agent.hydrate_messages
        def hydrate(event: Any) -> Any:
            chain = chat.history.all() or stored
            new = chat.history.extract_new_tool_results
            found.extend(new(message) for message in event.incoming_messages)
            return chain

        agent.on_turn_complete(
            lambda event: found.append(chat.history.extract_new_tool_results(answer))
        )
        async with mock_chat_agent(agent) as h:
            await h.send_message(said("q"))
            await h.settled()
            found.clear()
            await h.send_message(answer)
            await h.settled()
        assert [[r["output"] for r in results] for results in found] == [[42], []]
