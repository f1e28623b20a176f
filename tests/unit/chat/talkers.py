"""Agents that several files of tests talk to, and what they are asked about."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.testing.harness import ChatHarness


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """What each message says."""
    return ["".join(p.get("text", "") for p in m["parts"]) for m in messages]


class Chat:
    """Answers at once, keeps the history of each turn, and fails when told to."""

    def __init__(self, **options: Any) -> None:
        self.lanes: list[list[str]] = []
        self.turns: list[Any] = []

        @chat.agent("chatty", **options)
        async def chatty(turn: Any) -> str:
            self.lanes.append(texts(turn.ui_messages))
            self.turns.append(turn)
            if turn.text == "fail":
                raise ValueError("as told")
            return f"re {turn.text}"

        self.agent: ChatAgent[Any] = chatty


class Dying:
    """Says half of its answer to m1 and waits there to be killed."""

    def __init__(self) -> None:
        self.lanes: list[list[str]] = []
        self.hung = False

        @chat.agent("dying")
        async def dying(turn: Any) -> Any:
            self.lanes.append(texts(turn.ui_messages))
            yield f"half {turn.text}"
            if turn.text == "m1":
                self.hung = True
                await anyio.sleep_forever()

        self.agent: ChatAgent[Any] = dying

    async def killed(self, h: ChatHarness) -> None:
        """m1 is sent, half answered, and the process of that is gone."""
        await h.post_message("m1")
        await h.reached(lambda: self.hung)
        await anyio.wait_all_tasks_blocked()
        await h.crash()
