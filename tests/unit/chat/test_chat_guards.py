"""What the turn loop must not lose, asked for by name: the partial, the one append, the handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.chat.replay import replay_out
from everturn.protocol.records import (
    TURN_COMPLETE,
    UPGRADE_REQUIRED,
    NewRecord,
    Record,
    control_record,
    open_envelope,
)
from everturn.testing.harness import ChatHarness, mock_chat_agent
from everturn.testing.runtime import MemoryRuntime

pytestmark = pytest.mark.anyio


class Halting:
    """Says half an answer, then waits to be stopped; anything but `one` is answered whole."""

    def __init__(self) -> None:
        self.halted = False
        self.seen: list[list[str]] = []

        @chat.agent("halting")
        async def halting(turn: Any) -> Any:
            self.seen.append(
                ["".join(p.get("text", "") for p in m["parts"]) for m in turn.ui_messages]
            )
            yield f"half of {turn.text}"
            if turn.text == "one":
                self.halted = True
                await anyio.sleep_forever()

        self.agent: ChatAgent[Any] = halting

    async def stopped(self, h: ChatHarness) -> None:
        await h.post_message("one")
        await h.reached(lambda: self.halted)
        await anyio.wait_all_tasks_blocked()
        await h.send_stop()
        await h.settled()


async def test_the_next_turn_knows_what_a_stopped_one_had_said() -> None:
    """P-8: in memory, and from what was stored."""
    halting = Halting()
    async with mock_chat_agent(halting.agent) as h:
        await halting.stopped(h)
        await h.send_message("two")
        await h.crash()
        await h.send_message("three")
    one, two = ["one", "half of one"], ["two", "half of two"]
    assert halting.seen == [["one"], [*one, "two"], [*one, *two, "three"]]


async def test_the_error_of_a_failed_turn_and_its_end_are_one_append(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P-3, rulings §1.21: no reader sees the one without the other."""
    appends: list[Sequence[NewRecord]] = []
    real = MemoryRuntime.append

    def append(self: MemoryRuntime, records: Sequence[NewRecord]) -> Any:
        appends.append(records)
        return real(self, records)

    monkeypatch.setattr(MemoryRuntime, "append", append)

    @chat.agent("failing")
    async def failing(turn: Any) -> Any:
        yield "half"
        raise ValueError("no")

    async with mock_chat_agent(failing) as h:
        turn = await h.send_message("hi")
    assert len(turn.errors) == 1
    (ending,) = [records for records in appends if any(is_end(record) for record in records)]
    assert kinds(ending) == ["error", TURN_COMPLETE]


def is_end(record: NewRecord) -> bool:
    return ("trigger-control", TURN_COMPLETE) in record.headers


def kinds(records: Sequence[NewRecord]) -> list[str]:
    found = []
    for record in records:
        opened = open_envelope(record.body)
        found.append(TURN_COMPLETE if is_end(record) else str(opened and opened[0]["type"]))
    return found


async def test_what_was_said_before_a_hand_over_is_no_answer_that_was_cut_off() -> None:
    """P-3, rulings §1.11: the turn begins anew on the successor, without a word of being restarted."""
    halting = Halting()
    async with mock_chat_agent(halting.agent, continuation=True, start=False) as h:
        await h.seed_in("two")
        await h.seed_out(
            {"type": "start", "messageId": "m"},
            {"type": "text-start", "id": "t"},
            {"type": "text-delta", "id": "t", "delta": "never mind"},
        )
        await h.world.streams.append(h.world.channel("out"), [control_record(UPGRADE_REQUIRED)])
        await h.start()
        await h.settled()
        chunks = [chunk["type"] for chunk in await h.all_chunks()]
    assert "data-restarted" not in chunks
    assert halting.seen == [["two"]]


def test_a_replay_says_nothing_of_what_a_repeated_part_says() -> None:
    """P-8"""
    body = b'{"data":{"type":"start","messageId":"m"},"id":"p1"}'
    delta = b'{"data":{"type":"data-x","data":1},"id":"p2"}'
    records = [Record(n, 1, (), each) for n, each in enumerate([body, delta, delta])]
    done = control_record(TURN_COMPLETE)
    replay = replay_out([*records, Record(3, 1, done.headers)], [])
    assert [part["type"] for part in replay.chain[0]["parts"]] == ["data-x"]
