"""What author code writes when its turn is over: a task of its own that kept the `turn` (§4.1).

It is seen by whoever reads next, as the log says. It is no answer, and costs nobody theirs.
"""

from __future__ import annotations

from typing import Any

import pytest

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.tasks.registry import Registry, collecting
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio

LATE = {
    "a data part": [{"type": "data-late", "data": 1}],
    "a whole message": [
        {"type": "start", "messageId": "late"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "late"},
        {"type": "text-end", "id": "t"},
        {"type": "finish"},
    ],
    "half a message": [
        {"type": "start", "messageId": "late"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "late"},
    ],
}


def keeping() -> tuple[ChatAgent[Any], list[Any]]:
    """An agent whose turns stay in the hands of whoever wants to write into them later."""
    turns: list[Any] = []
    with collecting(Registry()):

        @chat.agent("keeping")
        async def keeping(turn: Any) -> str:
            turns.append(turn)
            return f"{len(turn.ui_messages)} {turn.text}"

    return keeping, turns


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
@pytest.mark.parametrize("goes_on", ["the run", "a continuation", "the next attempt"])
async def test_what_is_written_after_a_turn_costs_no_message_its_answer(
    late: list[dict[str, Any]], goes_on: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, turns = keeping()
    async with mock_chat_agent(agent) as h:
        await h.send_message("m1")
        await h.settled()
        for chunk in late:
            turns[0].write(chunk)
        await h.settled()
        await h.advance(1)
        if goes_on == "a continuation":
            await h.drain()
        elif goes_on == "the next attempt":
            await h.crash()
            await h.restart(attempt=2)
        turn = await h.send_message("m2")
        await h.settled()
        snapshot = await h.get_snapshot()

    assert turn.errors == []
    assert turn.text.removeprefix("late") == "3 m2"
    assert snapshot is not None
    assert len(snapshot["messages"]) == 4
    [line] = [line for line in caplog.messages if line.startswith("output.late")]
    assert "'keeping'" in line
