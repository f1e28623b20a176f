"""Every hook order of §3.5 in the harness, with its log as the evidence, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hook_orders import ORDERS, RECOVERIES, hooked

from everturn.tasks import registry
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio

QUESTION = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "what time is it?"}]}
STEP_ONE = {
    "id": "m1",
    "role": "assistant",
    "parts": [
        {"type": "text", "text": "Let me see."},
        {"type": "tool-time", "toolCallId": "c1", "state": "input-available", "input": {}},
    ],
}
ANSWER = {"id": "m1", "role": "assistant", "parts": [{"type": "text", "text": "It is noon."}]}


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


class Scene:
    """A harness around the hooked agent, and the gate its long answers wait at."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.waiting = False
        self.agent = hooked("hooked", pause=self.pause)
        self.hydrating = hooked("hydrating", hydrates=True)

    async def pause(self, chat_id: str) -> None:
        self.waiting = True
        await self.gate.wait()

    @asynccontextmanager
    async def begun(self, *, hydrating: bool = False) -> AsyncIterator[ChatHarness]:
        """After a first turn, with an empty log."""
        async with mock_chat_agent(self.hydrating if hydrating else self.agent) as h:
            await h.send_message("one")
            await h.settled()
            h.timeline.clear()
            yield h

    async def in_mid_answer(self, h: ChatHarness, text: str = "wait") -> None:
        await h.post_message(text)
        await h.reached(lambda: self.waiting)


async def play(scenario: str, scene: Scene) -> list[str]:
    """Drive one scenario; its timeline."""
    if scenario in ("first message", "preload, then a message"):
        mode: Any = "submit-message" if scenario == "first message" else "preload"
        async with mock_chat_agent(scene.agent, mode=mode) as h:
            await h.send_message("hello")
            await h.settled()
            return list(h.timeline)
    if scenario == "preload, suspended, then a message":
        async with mock_chat_agent(scene.agent) as h:
            await h.advance(30)
            assert h.suspended
            assert h.event("on_chat_suspend").phase == "preload"
            await h.send_message("hello")
            await h.settled()
            return list(h.timeline)
    async with scene.begun(hydrating="hydration" in scenario) as h:
        await drive(scenario, scene, h)
        await h.settled()
        return list(h.timeline)


async def drive(scenario: str, scene: Scene, h: ChatHarness) -> None:
    words = {
        "follow-up": "two",
        "an error in run": "fail in run",
        "an error in validation": "fail in validation",
        "an error at turn start": "fail at turn start",
        "an upgrade at turn start": "upgrade",
        "a follow-up with hydration": "two",
        "an error in hydration": "fail in hydration",
    }
    if scenario in words:
        await h.send_message(words[scenario])
    elif scenario == "a clean continuation":
        await h.drain()
        h.timeline.clear()
        await h.send_message("two")
    elif scenario in ("an action", "an action with hydration"):
        await h.send_action({"do": 1})
    elif scenario == "an action that changes history":
        await h.send_action({"do": "undo"})
    elif scenario == "out of memory, and a larger machine":
        await h.post_message("out of memory")
        await h.reached(lambda: not h.alive)
        await h.restart(attempt=2)
    elif scenario == "a stop in mid-stream":
        await scene.in_mid_answer(h)
        await h.send_stop()
        await h.settled()
        assert h.event("on_turn_complete").stopped
    elif scenario == "close while idle":
        await h.send_close()
    elif scenario == "close in mid-turn":
        await scene.in_mid_answer(h)
        await h.send_close()
        scene.gate.set()
        await h.reached(lambda: not h.alive)
    elif scenario == "suspend and resume":
        await h.advance(30)
        assert h.suspended
        await h.send_message("two")


@pytest.mark.parametrize("scenario", ORDERS)
async def test_the_hooks_of_a_scenario_come_in_their_order(scenario: str) -> None:
    """R-257, R-258, R-038."""
    assert await play(scenario, Scene()) == ORDERS[scenario]


async def test_a_death_in_mid_stream_is_recovered_before_boot() -> None:
    """R-257, R-259: the chain of R-114."""
    scene = Scene()
    async with scene.begun() as h:
        await scene.in_mid_answer(h, "die")
        await h.crash()
        scene.gate.set()
        h.timeline.clear()
        await h.post_message("after")
        await h.settled()
        seen = h.event("on_turn_start").ui_messages

        assert h.timeline == RECOVERIES["a continuation after a death in mid-stream"]
        assert ["".join(p.get("text", "") for p in m["parts"]) for m in seen] == [
            "one", "half whole", "die", "half", "after",
        ]  # fmt: skip


async def test_the_next_attempt_answers_again_with_the_hooks_of_the_turn() -> None:
    """R-257, R-259."""
    scene = Scene()
    async with mock_chat_agent(scene.agent, mode="submit-message") as h:
        await scene.in_mid_answer(h, "die")
        await h.crash()
        scene.gate.set()
        h.timeline.clear()
        await h.restart(attempt=2)
        await h.settled()

        assert h.timeline == RECOVERIES["the next attempt after a death in mid-stream"]


async def test_a_run_out_of_memory_has_failed_and_the_next_message_goes_on() -> None:
    """R-257, R-112."""
    scene = Scene()
    async with scene.begun() as h:
        seq_num = await h.post_message("out of memory")
        await h.reached(lambda: not h.alive)
        # The server's part: the open message of a run that has failed is closed visibly.
        end = {"type": "trigger:turn-complete", "cursor": seq_num}
        await h.seed_out({"type": "error", "errorText": "out of memory"}, end)
        await h.send_message("two")
        await h.settled()

        assert h.timeline == RECOVERIES["out of memory, and another message"]


async def test_a_head_start_with_a_call_runs_the_agent() -> None:
    """R-257."""
    async with mock_chat_agent(
        Scene().agent, mode="handover-prepare", head_start_messages=[QUESTION]
    ) as h:
        await h.send_handover(STEP_ONE)
        await h.settled()

        assert h.timeline == RECOVERIES["a head start with a tool call"]


async def test_a_head_start_that_said_everything_runs_nothing() -> None:
    """R-257, R-214."""
    async with mock_chat_agent(Scene().agent, start=False) as h:
        await h.send_head_start([QUESTION])
        turn = await h.send_handover(ANSWER, is_final=True)
        await h.settled()

        assert h.timeline == RECOVERIES["a head start that is the whole answer"]
        assert turn.text == ""


async def test_a_head_start_that_failed_ends_the_run_without_a_hook() -> None:
    """R-257, R-215."""
    async with mock_chat_agent(Scene().agent, mode="handover-prepare") as h:
        await h.send_handover_skip()

        assert not h.alive
        assert h.timeline == ["on_boot"]
