"""Boot after a lost process: cursors, replay, interruption, snapshots (chat-agent §9.2, §9.8)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from talkers import texts

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.errors import Unavailable
from everturn.rules.boot_records import continuation_payload
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio


class Dying:
    """Hangs in the middle of the answers named, so that a test can kill it there."""

    def __init__(self, *hangs: str, silent: bool = False) -> None:
        self.hangs = list(hangs)
        self.hung = False
        self.lanes: list[list[str]] = []

        @chat.agent("dying")
        async def dying(turn: Any) -> Any:
            self.lanes.append(texts(turn.ui_messages))
            hangs = turn.text in self.hangs
            if not (hangs and silent):
                yield f"half {turn.text}"
            if hangs:
                self.hangs.remove(turn.text)
                self.hung = True
                await anyio.sleep_forever()
            yield " whole"

        self.agent: ChatAgent[Any] = dying

    async def killed(self, h: ChatHarness) -> None:
        await h.reached(lambda: self.hung)
        await anyio.wait_all_tasks_blocked()
        self.hung = False
        await h.crash()


def continued_by_the_server(lost_run: str) -> dict[str, Any]:
    """The payload of the run that this server makes after it has lost one."""
    return continuation_payload(
        {}, session_id="session_test", idle_timeout_s=None, previous_run_id=lost_run
    )


def echo_agent(**options: Any) -> ChatAgent[Any]:
    @chat.agent("echo", **options)
    async def echo(turn: Any) -> str:
        return f"echo: {turn.text}"

    return echo


class TestInterruption:
    async def test_the_next_attempt_answers_again_under_the_same_message_id(self) -> None:
        """Rulings §1.5, §1.6; D-11, R-143."""
        dying = Dying("m1")
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            first = (await h.all_chunks())[0]["messageId"]
            await h.restart(attempt=2)
            await h.settled()
            chunks = await h.all_chunks()
            snapshot = await h.get_snapshot()
            (turn,) = await h.turns()
        kinds = [c["type"] for c in chunks]
        mark = kinds.index("data-restarted")
        assert kinds[mark - 1] == "text-end"
        assert "finish" not in kinds[:mark]
        assert "abort" not in kinds
        assert chunks[mark]["data"] == {"runId": h.run_id, "attempt": 2}
        assert chunks[mark + 1] == {"type": "start", "messageId": first}
        assert turn.cursor.seq_num == 0
        assert snapshot is not None
        assert texts(snapshot["messages"]) == ["m1", "half m1 whole"]
        assert dying.lanes == [["m1"], ["m1"]]

    async def test_two_deaths_in_one_turn_leave_one_answer_also_in_replay(self) -> None:
        """Rulings §1.6: replay discards what lies before the newest mark; R-133, R-134."""
        dying = Dying("m1", "m1")
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            await h.restart(attempt=2)
            await dying.killed(h)
            h.world.faults["save_snapshot"] = [Unavailable("lost")]
            await h.restart(attempt=3)
            await h.settled()
            await h.crash()
            assert await h.get_snapshot() is None
            await h.restart()
            await h.send_message("m2")
        assert dying.lanes[-1] == ["m1", "half m1 whole", "m2"]

    async def test_a_death_before_the_first_chunk_answers_in_full_without_a_mark(self) -> None:
        """R-116."""
        dying = Dying("m1", silent=True)
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await h.post_message("m2")
            await dying.killed(h)
            await h.restart()
            await h.settled()
            assert [t.text for t in await h.turns()] == ["half m1 whole", "half m2 whole"]
            assert not any(c["type"] == "data-restarted" for c in await h.all_chunks())

    async def test_completed_turns_are_not_repeated_by_a_further_attempt(self) -> None:
        """R-111, R-034; rulings §1.15."""
        dying = Dying("m2")
        for name in ("on_boot", "on_preload", "on_chat_start"):
            dying.agent.hooks.add(name, lambda event: None)
        async with mock_chat_agent(dying.agent) as h:
            await h.send_message("m1")
            await h.settled()
            await h.post_message("m2")
            await dying.killed(h)
            await h.restart(attempt=2)
            await h.settled()
            assert [t.cursor.seq_num for t in await h.turns()] == [0, 1]
        assert h.hook_calls.count("on_boot") == 2
        assert h.hook_calls.count("on_preload") == 1
        assert h.hook_calls.count("on_chat_start") == 1

    async def test_chat_start_fires_until_a_turn_has_committed(self) -> None:
        """Rulings §1.15."""
        dying = Dying("m1")
        dying.agent.hooks.add("on_chat_start", lambda event: None)
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            await h.restart(attempt=2)
            await h.settled()
        assert h.hook_calls.count("on_chat_start") == 2

    async def test_a_stop_nobody_decided_stops_the_open_message_at_boot(self) -> None:
        """Rulings §1.12: its turn-complete is written, the partial kept, nobody runs it."""
        dying = Dying("m1")
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            await h.world.post('{"kind":"stop"}')
            await h.restart(attempt=2)
            await h.settled()
            (turn,) = await h.turns()
            later = await h.send_message("m2")
        assert [c["type"] for c in turn.chunks][-1] == "text-end"
        assert turn.cursor.seq_num == 1
        assert later.text == "half m2 whole"
        assert dying.lanes == [["m1"], ["m1", "half m1", "m2"]]

    async def test_a_used_stop_is_not_applied_again_by_a_later_boot(self) -> None:
        """Rulings §1.7: the decided set; R-125."""
        dying = Dying("m1", "m2")
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await h.post_message("m2")
            await h.reached(lambda: dying.hung)
            await anyio.wait_all_tasks_blocked()
            dying.hung = False
            await h.send_stop()
            await dying.killed(h)
            await h.restart(attempt=2)
            await h.settled()
            turns = await h.turns()
        assert [sorted(t.cursor.decided) for t in turns] == [[2], []]
        assert turns[1].text.endswith("half m2 whole")

    async def test_an_interrupted_action_runs_again(self) -> None:
        """Rulings §1.13: at least once."""
        agent = echo_agent()
        calls: list[int] = []
        entered = anyio.Event()

        @agent.on_action
        async def act(event: Any) -> str:
            calls.append(1)
            if len(calls) == 1:
                entered.set()
                await anyio.sleep_forever()
            return "acted"

        async with mock_chat_agent(agent) as h:
            await h.post(h.wire("action", action=1))
            await entered.wait()
            await h.crash()
            await h.restart(attempt=2)
            await h.settled()
            (turn,) = await h.turns()
        assert turn.text == "acted"
        assert len(calls) == 2

    async def test_a_hydrating_agent_is_interrupted_in_the_same_way(self) -> None:
        """R-022, rulings §1.6: the cursor comes from the newest turn-complete."""
        dying = Dying("m2")
        kept: list[dict[str, Any]] = []

        @dying.agent.hydrate_messages
        def hydrate(event: Any) -> Any:
            for message in event.incoming_messages:
                if message not in kept:
                    kept.append(message)
            return list(kept)

        async with mock_chat_agent(dying.agent) as h:
            await h.send_message("m1")
            await h.post_message("m2")
            await dying.killed(h)
            await h.restart(attempt=2)
            await h.settled()
            assert [t.cursor.seq_num for t in await h.turns()] == [0, 1]
            kinds = [c["type"] for c in await h.all_chunks()]
        assert kinds.count("data-restarted") == 1
        assert "snapshot" not in h.world.reads


class TestContinuation:
    async def test_a_partial_found_by_a_continuation_is_kept_and_m2_answered(self) -> None:
        """R-114, R-118, D-10: the defence behind the server's own turn-complete."""
        dying = Dying("m1")
        dying.agent.hooks.add("on_boot", lambda event: None)
        dying.agent.hooks.add("on_recovery_boot", lambda event: None)
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            h.hook_calls.clear()
            await h.post_message("m2")
            await h.settled()
            event = h.event("on_recovery_boot")
        assert dying.lanes[-1] == ["m1", "half m1", "m2"]
        assert h.hook_calls == ["on_recovery_boot", "on_boot", "run"]
        assert texts(event.in_flight_users) == ["m1", "m2"]
        assert texts([event.partial_assistant]) == ["half m1"]
        assert event.settled_messages == []

    async def test_a_half_answer_is_given_again_by_a_continuation_that_is_told_to(self) -> None:
        """Rulings §1.5, §1.6: as when the run could not go on because nobody serves its version.

        It is the same message that is answered, and nobody's history holds the lost half.
        """
        dying = Dying("m1")
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            first, lost_run = (await h.all_chunks())[0]["messageId"], h.run_id
            await h.start(payload=continued_by_the_server(lost_run))
            await h.settled()
            chunks = await h.all_chunks()
            (turn,) = await h.turns()
            snapshot = await h.get_snapshot()
        kinds = [c["type"] for c in chunks]
        mark = kinds.index("data-restarted")
        assert h.run_id != lost_run
        assert chunks[mark]["data"]["runId"] == h.run_id
        assert chunks[mark + 1] == {"type": "start", "messageId": first}
        assert turn.cursor.seq_num == 0
        assert snapshot is not None
        assert texts(snapshot["messages"]) == ["m1", "half m1 whole"]
        assert dying.lanes == [["m1"], ["m1"]]

    async def test_a_half_answer_is_given_again_before_the_message_that_follows_it(self) -> None:
        """P-3: each is answered, in order, and neither for the other."""
        dying = Dying("m1")
        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            await h.seed_in("m2")
            await h.start(payload=continued_by_the_server(h.run_id))
            await h.settled()
            turns = await h.turns()
        assert [t.cursor.seq_num for t in turns] == [0, 1]
        assert dying.lanes[1:] == [["m1"], ["m1", "half m1 whole", "m2"]]

    async def test_what_only_a_guest_wrote_is_not_given_again_for_a_lost_run(self) -> None:
        """Rulings §1.3: no run of ours began that answer, so the rules of older logs hold."""
        dying = Dying()
        async with mock_chat_agent(dying.agent, mode="continuation", start=False) as h:
            await h.seed_in("m1", "m2")
            await h.seed_out(
                {"type": "start", "messageId": "r1"},
                {"type": "text-start", "id": "t"},
                {"type": "text-delta", "id": "t", "delta": "a guest's"},
            )
            await h.start(payload=continued_by_the_server("run_0"))
            await h.settled()
            kinds = [c["type"] for c in await h.all_chunks()]
        assert "data-restarted" not in kinds
        assert dying.lanes == [["m1", "a guest's", "m2"]]

    async def test_the_recovery_hook_may_drop_the_partial_or_the_turns(self) -> None:
        """R-119, R-120, R-121."""
        dying = Dying("m1")
        order: list[str] = []

        @dying.agent.on_recovery_boot
        def recovery(event: Any) -> Any:
            event.writer.data("note", 1)
            return chat.RecoveryOverrides(
                chain=event.settled_messages,
                recovered_turns=[],
                before_boot=lambda: order.append("before"),
            )

        @dying.agent.on_boot
        def booted() -> None:
            order.append("boot")

        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await h.post_message("m2")
            await dying.killed(h)
            order.clear()
            await h.restart()
            await h.settled()
            await h.send_message("m3")
        assert order == ["before", "boot"]
        assert dying.lanes == [["m1"], ["m3"]]

    async def test_a_failing_recovery_hook_is_logged_and_defaults_apply(self) -> None:
        """R-121."""
        dying = Dying("m1")

        @dying.agent.on_recovery_boot
        def broken(event: Any) -> None:
            raise ValueError("no")

        async with mock_chat_agent(dying.agent) as h:
            await h.post_message("m1")
            await dying.killed(h)
            await h.post_message("m2")
            await h.settled()
        assert dying.lanes[-1] == ["m1", "half m1", "m2"]

    async def test_a_clean_continuation_writes_nothing_until_a_message_comes(self) -> None:
        """R-021, R-032, R-037, R-117."""
        agent = echo_agent()
        for name in ("on_boot", "on_preload", "on_chat_start", "on_recovery_boot"):
            agent.hooks.add(name, lambda event: None)
        async with mock_chat_agent(agent) as h:
            await h.send_message("m1")
            await h.settled()
            before = len(await h.records())
            await h.crash()
            h.hook_calls.clear()
            await h.restart()
            await h.settled()
            assert len(await h.records()) == before
            assert sorted(h.world.reads) == ["in", "out", "out", "snapshot"]
            await h.send_message("m2")
            turn = h.event("run")
        assert h.hook_calls == ["on_boot", "run"]
        assert (turn.turn, turn.continuation, turn.preloaded) == (0, True, False)
        assert turn.session_id == "session_test"

    async def test_a_lost_snapshot_costs_no_history_and_no_second_answer(self) -> None:
        """R-133, D-24, R-129, R-130."""
        dying = Dying()
        async with mock_chat_agent(dying.agent) as h:
            await h.send_message("m1")
            await h.settled()
            h.world.faults["save_snapshot"] = [Unavailable("lost")]
            await h.send_message("m2")
            await h.settled()
            await h.crash()
            await h.restart()
            await h.send_message("m3")
        assert dying.lanes[-1] == ["m1", "half m1 whole", "m2", "half m2 whole", "m3"]

    @pytest.mark.parametrize(
        "stored", [b"", b"nonsense", b"[]", b'{"version":2,"messages":[]}', b'{"version":1}']
    )
    async def test_an_unreadable_snapshot_counts_as_none(self, stored: bytes) -> None:
        """R-023."""
        dying = Dying()
        async with mock_chat_agent(dying.agent) as h:
            await h.send_message("m1")
            await h.settled()
            await h.crash()
            await h.world.objects.put("snapshot", stored)
            await h.restart()
            await h.send_message("m2")
        assert dying.lanes[-1] == ["m1", "half m1 whole", "m2"]

    @pytest.mark.parametrize("read", ["read_in", "read_out"])
    async def test_a_channel_that_cannot_be_read_interrupts_the_attempt(self, read: str) -> None:
        """P-3 before R-023: taken for empty, a message would be lost or answered twice."""
        async with mock_chat_agent(echo_agent()) as h:
            await h.send_message("m1")
            await h.settled()
            await h.crash()
            await h.seed_in("m2")
            h.world.faults[read] = [Unavailable("away")]
            await h.restart()
            await h.advance(1)
            assert h.outcomes[-1][1] == "interrupted"
            await h.restart(attempt=2)
            await h.settled()
            turns = await h.turns()
        assert [turn.text for turn in turns] == ["echo: m1", "echo: m2"]

    async def test_a_hydrating_agent_is_interrupted_too_when_it_cannot_read(self) -> None:
        """P-3 before R-023."""
        agent = echo_agent()
        agent.hooks.add("hydrate_messages", lambda event: event.incoming_messages)
        async with mock_chat_agent(agent) as h:
            await h.send_message("m1")
            await h.settled()
            await h.crash()
            h.world.faults["read_out"] = [Unavailable("away")]
            await h.restart()
            await h.advance(1)
            assert h.outcomes[-1][1] == "interrupted"

    async def test_a_snapshot_that_cannot_be_read_is_replayed_while_nothing_was_trimmed(
        self,
    ) -> None:
        """R-023, P-9: after its first turn a chat has trimmed nothing yet."""
        agent = echo_agent()
        async with mock_chat_agent(agent) as h:
            await h.send_message("m1")
            await h.settled()
            await h.crash()
            h.world.faults["load_snapshot"] = [Unavailable("away")]
            await h.restart()
            await h.send_message("m2")
            lane = h.event("run").ui_messages
        assert texts(lane)[:3] == ["m1", "echo: m1", "m2"]

    async def test_a_snapshot_that_cannot_be_read_interrupts_once_something_was_trimmed(
        self,
    ) -> None:
        """P-9 before R-023: only the snapshot holds the trimmed turns."""
        agent = echo_agent()
        async with mock_chat_agent(agent) as h:
            for text in ("m1", "m2", "m3"):
                await h.send_message(text)
            await h.settled()
            assert await h.trims()
            await h.crash()
            h.world.faults["load_snapshot"] = [Unavailable("away")]
            await h.restart()
            await h.advance(1)
            assert h.outcomes[-1][1] == "interrupted"
            await h.restart(attempt=2)
            await h.send_message("m4")
            lane = h.event("run").ui_messages
        assert [text for text in texts(lane) if text.startswith("m")] == ["m1", "m2", "m3", "m4"]

    async def test_history_stored_before_its_turn_complete_gets_the_missing_one(self) -> None:
        """Rulings §1.13: the turn is committed, not run again, and what was removed stays so."""
        agent = echo_agent()
        hung = anyio.Event()

        @agent.on_before_turn_complete
        def forget(event: Any, ctx: Any) -> None:
            if ctx.attempt.number == 1:
                chat.history.set(event.ui_messages[:1])

        async with mock_chat_agent(agent) as h:
            # The process dies between the snapshot and the turn-complete.
            original = h.world.objects.put

            async def dies(name: str, data: bytes) -> None:
                await original(name, data)
                hung.set()
                await anyio.sleep_forever()

            h.world.objects.put = dies  # type: ignore[method-assign]  # the fault of this test
            await h.post_message("m1")
            await hung.wait()
            await h.crash()
            h.world.objects.put = original  # type: ignore[method-assign]  # back again
            await h.restart(attempt=2)
            await h.settled()
            (turn,) = await h.turns()
            await h.send_message("m2")
            lane = h.event("run").ui_messages
        assert turn.cursor.seq_num == 0
        assert texts(lane)[:2] == ["m1", "m2"]
        assert h.hook_calls.count("run") == 2

    async def test_an_unanswered_close_ends_the_continuation_after_boot(self) -> None:
        """R-126."""
        agent = echo_agent()
        agent.hooks.add("on_boot", lambda event: None)
        async with mock_chat_agent(agent, mode="continuation", start=False) as h:
            await h.seed_in({**h.wire("close")})
            await h.start()
            await h.settled()
            assert [how for _, how in h.outcomes] == ["completed"]
            assert h.runtime is not None
            assert h.runtime.cursor.seq_num == 0
        assert h.hook_calls == ["on_boot"]

    async def test_recovered_turns_keep_their_order_and_their_own_metadata(self) -> None:
        """R-123, R-125: actions in their place, stale stops dropped."""
        seen: list[Any] = []

        @chat.agent("data")
        def data(turn: Any) -> None:
            seen.append((turn.text, turn.client_data))

        @data.on_action
        def act(event: Any) -> None:
            seen.append(("action", event.client_data))

        async with mock_chat_agent(data, mode="continuation", start=False) as h:
            chunk = h.wire("submit-message", message=h.user("m1"), metadata={"n": 1})
            await h.seed_in({"kind": "stop"}, chunk, h.wire("action", action=1, metadata={"n": 2}))
            await h.seed_in(h.wire("submit-message", message=h.user("m2"), metadata={"n": 3}))
            await h.start()
            await h.settled()
        assert seen == [("m1", {"n": 1}), ("action", {"n": 2}), ("m2", {"n": 3})]

    async def test_a_snapshot_seeds_history_and_the_first_trim(self) -> None:
        """R-016, R-131, R-032."""
        dying = Dying()
        stored = {"id": "old", "role": "user", "parts": [{"type": "text", "text": "old"}]}
        dying.agent.hooks.add("on_chat_start", lambda event: None)
        async with mock_chat_agent(dying.agent, mode="continuation", start=False) as h:
            await h.seed_in("old")
            end = (await h.seed_out({"type": "trigger:turn-complete", "cursor": 0}))[0]
            await h.seed_snapshot(
                {"version": 1, "savedAt": 1, "messages": [stored],
                 "lastOutEventId": str(end), "lastInEventId": "0"}
            )  # fmt: skip
            turn = await h.send_message("new")
            await h.settled()
            snapshot = await h.get_snapshot()
            trims = await h.trims()
        assert dying.lanes == [["old", "new"]]
        assert trims == [end]
        assert snapshot is not None
        assert snapshot["version"] == 1
        assert snapshot["lastOutEventId"] == str(turn.turn_complete.seq_num)
        assert snapshot["lastInEventId"] == "1"
        assert "on_chat_start" not in h.hook_calls

    async def test_a_stopped_or_failed_newest_turn_is_history_and_no_partial(self) -> None:
        """R-142, R-127, R-128."""
        agent = echo_agent()
        agent.hooks.add("on_recovery_boot", lambda event: None)
        async with mock_chat_agent(agent, mode="continuation", start=False) as h:
            await h.seed_in("m1")
            await h.seed_out(
                {"type": "start", "messageId": "r1"},
                {"type": "text-start", "id": "t"},
                {"type": "text-delta", "id": "t", "delta": "cut"},
                {"type": "error", "errorText": "gone"},
                {"type": "trigger:turn-complete", "cursor": 0},
            )
            await h.start()
            await h.send_message("m2")
            lane = h.event("run").ui_messages
        assert texts(lane)[:3] == ["m1", "cut", "m2"]
        assert "on_recovery_boot" not in h.hook_calls

    async def test_an_uncommitted_answer_is_left_out_finished_or_not(self) -> None:
        """Rulings §1.5: committed means turn-complete."""
        dying = Dying()
        async with mock_chat_agent(dying.agent, mode="continuation", start=False) as h:
            await h.seed_in("m1")
            await h.seed_out(
                {"type": "start", "messageId": "r1"},
                {"type": "text-start", "id": "t"},
                {"type": "text-delta", "id": "t", "delta": "all said"},
                {"type": "text-end", "id": "t"},
                {"type": "finish"},
            )
            await h.start()
            await h.settled()
            snapshot = await h.get_snapshot()
        assert dying.lanes == [["m1"]]
        assert snapshot is not None
        assert [m["id"] for m in snapshot["messages"]][1] == "r1"
        assert texts(snapshot["messages"]) == ["m1", "half m1 whole"]
