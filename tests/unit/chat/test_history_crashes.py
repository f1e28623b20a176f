"""History that authors change, and crashes around the turn-complete (rulings §1.13; P-8, P-9)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from talkers import texts

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio


class Listening:
    """Answers every message, and remembers what history it was given."""

    def __init__(self, *fails: str) -> None:
        self.lanes: list[list[str]] = []

        @chat.agent("listening")
        async def listening(turn: Any) -> str:
            self.lanes.append(texts(turn.ui_messages))
            if turn.text in fails:
                raise ValueError("broken")
            return f"re {turn.text}"

        self.agent: ChatAgent[Any] = listening

    def hang_in_completion(self) -> anyio.Event:
        """The first completion hook never returns: its turn-complete is durable, no snapshot is."""
        hung = anyio.Event()

        @self.agent.on_turn_complete
        async def hang() -> None:
            if not hung.is_set():
                hung.set()
                await anyio.sleep_forever()

        return hung


async def crashed_in_completion(h: ChatHarness, hung: anyio.Event) -> None:
    await h.reached(hung.is_set)
    await h.crash()
    await h.restart(attempt=2)
    await h.settled()


async def test_what_validation_took_out_of_a_message_stays_out_after_a_crash() -> None:
    listening = Listening()
    hung = listening.hang_in_completion()

    @listening.agent.on_validate_messages
    def redact(event: Any) -> list[dict[str, Any]]:
        return [
            {**m, "parts": [{"type": "text", "text": m.text.replace("secret", "***")}]}
            for m in event.messages
        ]

    async with mock_chat_agent(listening.agent) as h:
        await h.post_message("my secret")
        await crashed_in_completion(h, hung)
        await h.send_message("m2")
        snapshot = await h.get_snapshot()
    assert listening.lanes[-1] == ["my ***", "re my ***", "m2"]
    assert "secret" not in str(snapshot)


async def test_a_validation_that_changes_nothing_costs_no_further_write() -> None:
    listening = Listening()

    @listening.agent.on_validate_messages
    def accept(event: Any) -> list[Any]:
        return list(event.messages)

    async with mock_chat_agent(listening.agent) as h:
        await h.send_message("m1")
        await h.settled()
        assert h.world.snapshot_writes == 1


async def test_history_that_a_failed_turn_changed_is_stored_before_its_turn_complete() -> None:
    listening = Listening("bad")
    hung = anyio.Event()

    @listening.agent.on_turn_start
    def forget(event: Any) -> None:
        if event.ui_messages[-1].text == "bad":
            chat.history.set([event.ui_messages[-1]])

    @listening.agent.on_turn_complete
    async def hang(event: Any) -> None:
        if event.error is not None and not hung.is_set():
            hung.set()
            await anyio.sleep_forever()

    async with mock_chat_agent(listening.agent) as h:
        await h.send_message("m1")
        await h.settled()
        await h.post_message("bad")
        await crashed_in_completion(h, hung)
        await h.send_message("m3")
    assert listening.lanes[-1] == ["bad", "m3"]


async def test_a_crash_between_a_failed_turns_history_and_its_commit_still_shows_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The boot writes the missing turn-complete, with the error the turn had failed with."""
    listening = Listening("bad")

    @listening.agent.on_turn_start
    def forget(event: Any) -> None:
        chat.history.set([event.ui_messages[-1]])

    async with mock_chat_agent(listening.agent) as h:
        await h.send_message("m1")
        await h.settled()
        writes = h.world.snapshot_writes
        runtime = h.runtime
        assert runtime is not None
        append = runtime.append

        def refusing(records: Any) -> Any:
            if h.world.snapshot_writes > writes and any(r.headers for r in records):
                return anyio.sleep_forever()
            return append(records)

        monkeypatch.setattr(runtime, "append", refusing)
        await h.post_message("bad")
        await h.reached(lambda: h.world.snapshot_writes > writes)
        await anyio.wait_all_tasks_blocked()
        assert len(await h.turns()) == 1
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        turns = await h.turns()
        snapshot = await h.get_snapshot()
    assert len(turns) == 2
    assert len(turns[-1].errors) == 1
    assert snapshot is not None
    assert "failure" not in snapshot
    assert listening.lanes == [["m1"], ["bad"]], "the failed turn was run again"


@pytest.mark.parametrize("hook", ["on_boot", "on_chat_resume", "on_validate_messages"])
async def test_a_change_from_before_the_message_joins_does_not_take_the_message_out(
    hook: str,
) -> None:
    """`chat.history.set` in a hook that runs while the new message is not in history yet."""
    listening = Listening()

    def shorten(event: Any) -> Any:
        chat.history.set(chat.history.all()[-1:])
        return event.messages if hook == "on_validate_messages" else None

    listening.agent.hooks.add(hook, shorten)
    async with mock_chat_agent(listening.agent) as h:
        await h.send_message("m1")
        await h.settled()
        if hook == "on_boot":
            await h.crash()
            await h.restart()
        else:
            await h.advance(60)
        await h.send_message("m2")
        await h.settled()
        snapshot = await h.get_snapshot()
    assert listening.lanes[-1] == ["re m1", "m2"]
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["re m1", "m2", "re m2"]


async def test_a_change_between_turns_of_a_loop_does_not_take_the_message_out() -> None:
    lanes: list[list[str]] = []

    @chat.custom_agent("loop")
    async def loop(payload: Any) -> None:
        async with chat.create_session(payload) as session:
            async for turn in session:
                lanes.append(texts(turn.ui_messages))
                await turn.complete(f"re {turn.text}")
                chat.history.set(chat.history.all()[-1:])

    async with mock_chat_agent(loop) as h:
        await h.send_message("m1")
        await h.send_message("m2")
        await h.send_message("m3")
    assert lanes == [["m1"], ["re m1", "m2"], ["re m2", "m3"]]


async def test_a_recovery_hook_that_returns_no_messages_counts_as_one_that_failed() -> None:
    began = anyio.Event()
    lanes: list[list[str]] = []

    @chat.agent("dying")
    async def dying(turn: Any) -> Any:
        lanes.append(texts(turn.ui_messages))
        yield "half"
        if not began.is_set():
            began.set()
            await anyio.sleep_forever()
        yield " whole"

    @dying.on_recovery_boot
    def wrong() -> dict[str, Any]:
        return {"chain": [object()]}

    async with mock_chat_agent(dying) as h:
        await h.post_message("m1")
        await h.reached(began.is_set)
        await anyio.wait_all_tasks_blocked()
        await h.crash()
        await h.restart(attempt=2)
        await h.settled()
        assert len(await h.turns()) == 1
        snapshot = await h.get_snapshot()
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["m1", "half whole"]
    assert lanes == [["m1"], ["m1"]]


async def test_the_chain_a_recovery_hook_chose_survives_a_crash_after_the_next_commit() -> None:
    began = anyio.Event()
    lanes: list[list[str]] = []

    @chat.agent("dying")
    async def dying(turn: Any) -> Any:
        lanes.append(texts(turn.ui_messages))
        yield f"half {turn.text}"
        if turn.text == "m2" and not began.is_set():
            began.set()
            await anyio.sleep_forever()

    hung = anyio.Event()

    @dying.on_recovery_boot
    def forget() -> dict[str, Any]:
        return {"chain": []}

    @dying.on_turn_complete
    async def hang() -> None:
        if began.is_set() and not hung.is_set():
            hung.set()
            await anyio.sleep_forever()

    async with mock_chat_agent(dying) as h:
        await h.send_message("m1")
        await h.settled()
        await h.post_message("m2")
        await h.reached(began.is_set)
        await anyio.wait_all_tasks_blocked()
        await h.crash()
        await h.restart(attempt=2)
        await h.reached(hung.is_set)
        await h.crash()
        await h.restart(attempt=3)
        await h.settled()
        await h.send_message("m3")
    assert lanes[-1] == ["m2", "half m2", "m3"]


async def test_what_validation_took_out_stays_out_of_a_turn_that_fails() -> None:
    listening = Listening("my ***")
    told: list[list[str]] = []

    @listening.agent.on_validate_messages
    def redact(event: Any) -> list[dict[str, Any]]:
        return [{**m, "parts": [{"type": "text", "text": "my ***"}]} for m in event.messages]

    @listening.agent.on_turn_complete
    def completed(event: Any) -> None:
        told.append(texts(event.new_ui_messages))

    async with mock_chat_agent(listening.agent) as h:
        await h.send_message("my secret")
        await h.settled()
        snapshot = await h.get_snapshot()
    assert told == [["my ***"]]
    assert "secret" not in str(snapshot)


async def test_a_message_that_validation_dropped_does_not_come_back_when_the_turn_fails() -> None:
    @chat.agent("empty")
    async def empty(turn: Any) -> str:
        raise ValueError("nothing to answer")

    @empty.on_validate_messages
    def drop(event: Any) -> list[Any]:
        return []

    async with mock_chat_agent(empty) as h:
        await h.send_message("spam")
        await h.settled()
        snapshot = await h.get_snapshot()
    assert snapshot is not None
    assert snapshot["messages"] == []


async def test_a_change_at_boot_does_not_take_out_a_message_that_is_superseded_then() -> None:
    @chat.agent("newest", on_busy="latest")
    async def newest(turn: Any) -> str:
        return f"re {turn.text}"

    @newest.on_boot
    def begin() -> None:
        chat.history.set([])

    async with mock_chat_agent(newest, preload=False, continuation=True, start=False) as h:
        await h.seed_in("m1", "m2")
        await h.start()
        await h.settled()
        snapshot = await h.get_snapshot()
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["m1", "m2", "re m2"]


async def test_the_suspend_hooks_after_an_action_name_no_turn_when_there_was_none() -> None:
    turns: list[Any] = []

    @chat.agent("acting")
    async def acting(turn: Any) -> str:
        return "answer"

    acting.on_action(lambda event: None)
    acting.on_chat_suspend(lambda event: turns.append((event.phase, event.turn)))
    async with mock_chat_agent(acting) as h:
        await h.send_action("x")
        await h.advance(60)
        await h.send_message("m1")
        await h.advance(60)
    assert turns == [("turn", None), ("turn", 0)]
