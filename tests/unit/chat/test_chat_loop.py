"""Routing, waiting, stop, actions and endings (chat-agent §9.1, §9.2, §9.4 to §9.7)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.errors import Unavailable
from everturn.tasks import registry
from everturn.testing.harness import ChatHarness, mock_chat_agent

pytestmark = pytest.mark.anyio


class Gate:
    """An agent whose turns wait until the test lets them go on."""

    def __init__(self, **options: Any) -> None:
        self.open = anyio.Event()
        self.asked: list[str] = []

        @chat.agent("gated", **options)
        async def gated(turn: Any) -> Any:
            self.asked.append(turn.text)
            yield f"a:{turn.text}"
            await self.open.wait()
            yield "!"

        self.agent: ChatAgent[Any] = gated

    async def streaming(self, h: ChatHarness, turns: int = 1) -> None:
        await h.reached(lambda: len(self.asked) >= turns)
        await anyio.wait_all_tasks_blocked()


def echo_agent(**options: Any) -> ChatAgent[Any]:
    @chat.agent("echo", **options)
    async def echo(turn: Any) -> str:
        return f"echo: {turn.text}"

    return echo


def watched(agent: ChatAgent[Any], *names: str) -> ChatAgent[Any]:
    for name in names:
        agent.hooks.add(name, lambda event: None)
    return agent


async def cursors(h: ChatHarness) -> list[tuple[int | None, list[int]]]:
    return [(t.cursor.seq_num, sorted(t.cursor.decided)) for t in await h.turns()]


class TestRouting:
    async def test_messages_of_one_turn_become_turns_in_order_with_their_own_cursor(self) -> None:
        """R-008, R-011, R-012, R-067, D-02, D-03."""
        gate = Gate()
        async with mock_chat_agent(gate.agent) as h:
            for text in ("m1", "m2", "m3", "m4"):
                await h.post_message(text)
            await gate.streaming(h)
            gate.open.set()
            await h.settled()
            assert gate.asked == ["m1", "m2", "m3", "m4"]
            assert await cursors(h) == [(0, []), (1, []), (2, []), (3, [])]

    async def test_queued_messages_survive_an_error(self) -> None:
        """R-068."""

        @chat.agent("bad-first")
        async def bad_first(turn: Any) -> str:
            if turn.text == "m1":
                await anyio.wait_all_tasks_blocked()
                raise ValueError("no")
            return turn.text

        async with mock_chat_agent(bad_first) as h:
            await h.post_message("m1")
            await h.post_message("m2")
            await h.settled()
            turns = await h.turns()
        assert [t.errors for t in turns] == [["no"], []]
        assert turns[1].text == "m2"

    async def test_an_action_between_two_messages_is_handled_between_them(self) -> None:
        """R-069, R-091, R-092."""
        gate = Gate()
        names = ("on_action", "on_validate_messages", "on_turn_start", "on_turn_complete")
        for name in names:
            returns_list = name == "on_validate_messages"
            gate.agent.hooks.add(name, lambda e, keep=returns_list: e.messages if keep else None)
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            await h.post(h.wire("action", action={"do": 1}))
            await h.post_message("m2")
            gate.open.set()
            await h.settled()
            turn_numbers = [e.turn for name, e in h.events if name == "on_turn_start"]
        turn = ["on_validate_messages", "on_turn_start", "run", "on_turn_complete"]
        assert h.hook_calls == [*turn, "on_action", *turn]
        assert turn_numbers == [0, 1]

    async def test_garbage_and_unknown_kinds_are_skipped(self) -> None:
        """R-014: and a body that is a JSON string is decoded once more."""
        async with mock_chat_agent(echo_agent()) as h:
            for junk in ("not json", "[1]", '{"kind":"nonsense"}', '{"kind":"message"}'):
                await h.post(junk)
            turn = await h.send_message("hi")
        assert turn.text == "echo: hi"
        assert turn.cursor.seq_num == 4

    async def test_the_same_append_twice_is_one_turn(self) -> None:
        """R-139."""
        async with mock_chat_agent(echo_agent()) as h:
            chunk = h.wire("submit-message", message=h.user("once"))
            await h.post(chunk, part_id="p1")
            await h.post(chunk, part_id="p1")
            await h.settled()
            assert len(await h.turns()) == 1


class TestWaiting:
    async def test_a_message_within_the_idle_window_suspends_nothing(self) -> None:
        """R-070."""
        agent = watched(echo_agent(), "on_chat_suspend", "on_chat_resume")
        async with mock_chat_agent(agent) as h:
            await h.send_message("one")
            await h.advance(29)
            await h.send_message("two")
        assert h.hook_calls == ["run", "run"]

    async def test_after_the_idle_window_the_run_is_suspended_and_resumes_in_place(self) -> None:
        """R-071, R-013, R-074."""
        agent = watched(echo_agent(), "on_chat_suspend", "on_chat_resume")
        async with mock_chat_agent(agent) as h:
            await h.send_message("one")
            run_id = h.run_id
            await h.advance(30)
            assert h.suspended
            assert h.event("on_chat_suspend").phase == "turn"
            turn = await h.send_message("two")
            assert h.run_id == run_id
        assert h.hook_calls == ["run", "on_chat_suspend", "on_chat_resume", "run"]
        assert turn.cursor.seq_num == 1

    async def test_phases_name_the_wait(self) -> None:
        """R-074."""
        agent = watched(echo_agent(), "on_chat_suspend")
        async with mock_chat_agent(agent) as h:
            await h.advance(30)
            assert h.event("on_chat_suspend").phase == "preload"
        async with mock_chat_agent(agent, mode="continuation") as h:
            await h.advance(30)
            assert h.event("on_chat_suspend").phase == "continuation"

    async def test_failing_suspend_hooks_are_logged_and_the_message_is_answered(self) -> None:
        """R-074, D-13."""
        agent = echo_agent()

        @agent.on_chat_suspend
        @agent.on_chat_resume
        def broken(event: Any) -> None:
            raise ValueError("hook")

        async with mock_chat_agent(agent) as h:
            await h.advance(30)
            turn = await h.send_message("hi")
        assert turn.text == "echo: hi"

    async def test_no_idle_window_suspends_at_once_and_loses_nothing(self) -> None:
        """R-072, R-079."""
        gate = Gate(idle_timeout=0)
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            await gate.streaming(h)
            await h.post_message("m2")
            gate.open.set()
            await h.settled()
            assert h.suspended
            await h.world.post('{"kind":"stop"}')
            await h.post_message("m3")
            await h.post_message("m4")
            await h.settled()
        assert gate.asked == ["m1", "m2", "m3", "m4"]

    async def test_the_wait_after_an_errored_turn_suspends_with_its_hooks(self) -> None:
        """R-073, D-14."""

        @chat.agent("bad")
        def bad(turn: Any) -> None:
            raise ValueError("no")

        watched(bad, "on_chat_suspend", "on_chat_resume")
        async with mock_chat_agent(bad) as h:
            await h.send_message("x")
            await h.advance(30)
            await h.send_message("y")
        assert h.hook_calls == ["run", "on_chat_suspend", "on_chat_resume", "run"]

    async def test_the_turn_timeout_ends_the_run_with_success(self) -> None:
        """R-075, R-113."""
        async with mock_chat_agent(echo_agent(turn_timeout="10m")) as h:
            await h.send_message("one")
            before = len(await h.records())
            await h.advance(30)
            await h.advance(600)
            assert not h.alive
            assert [how for _, how in h.outcomes] == ["completed"]
            assert len(await h.records()) == before

    async def test_the_agents_idle_timeout_beats_the_payloads_which_beats_the_default(self) -> None:
        """R-077, D-15."""
        async with mock_chat_agent(echo_agent(), idle_timeout_s=5) as h:
            await h.advance(5)
            assert h.suspended
        with registry.collecting(registry.Registry()):
            agent = echo_agent(idle_timeout=7)
        async with mock_chat_agent(agent, idle_timeout_s=5) as h:
            await h.advance(6)
            assert not h.suspended
            await h.advance(1)
            assert h.suspended

    async def test_timeouts_set_in_a_turn_change_later_waits(self) -> None:
        """R-078."""

        @chat.agent("tuned")
        def tuned(turn: Any) -> str:
            chat.set_idle_timeout(2)
            chat.set_turn_timeout("1m")
            return "ok"

        async with mock_chat_agent(tuned) as h:
            await h.send_message("x")
            await h.advance(2)
            assert h.suspended
            await h.advance(60)
            assert not h.alive


class TestPreload:
    async def test_chunks_of_a_preload_come_first_and_are_in_no_response(self) -> None:
        """R-024, R-025, R-026."""
        agent = watched(echo_agent(), "on_boot", "on_turn_complete")

        @agent.on_preload
        def preload(event: Any) -> None:
            event.writer.data("hello", 1)

        async with mock_chat_agent(agent) as h:
            assert [c["type"] for c in await h.all_chunks()] == ["data-hello"]
            await h.send_message("hi")
            await h.settled()
            response = h.event("on_turn_complete").response_message
        assert not any(p["type"] == "data-hello" for p in response["parts"])
        assert h.hook_calls[:2] == ["on_boot", "on_preload"]

    async def test_the_preload_window_has_its_own_times(self) -> None:
        """R-030."""
        agent = echo_agent(preload_idle_timeout=3, preload_timeout=10, idle_timeout=50)
        async with mock_chat_agent(agent) as h:
            await h.advance(3)
            assert h.suspended
            await h.advance(10)
            assert [how for _, how in h.outcomes] == ["completed"]

    async def test_a_preload_may_end_with_its_window(self) -> None:
        """R-031."""
        agent = watched(echo_agent(exit_after_preload_idle=True), "on_chat_suspend")
        async with mock_chat_agent(agent) as h:
            await h.advance(30)
            assert not h.alive
        assert h.hook_calls == []

    async def test_a_close_during_preload_ends_the_run_before_any_turn(self) -> None:
        """R-031, R-101."""
        async with mock_chat_agent(echo_agent()) as h:
            await h.send_close()
            await h.settled()
            assert not h.alive
            assert await h.records() == []

    async def test_a_fresh_first_run_reads_nothing(self) -> None:
        """R-020."""
        async with mock_chat_agent(echo_agent()) as h:
            await h.send_message("x")
        assert h.world.reads == []

    async def test_a_message_in_the_boot_payload_is_turn_zero(self) -> None:
        """R-010, R-036: defence; our server puts it on the log (rulings §1.4)."""
        async with mock_chat_agent(echo_agent(), start=False) as h:
            await h.start(payload={"trigger": "submit-message", "message": h.user("boot")})
            await h.settled()
            (turn,) = await h.turns()
        assert turn.text == "echo: boot"
        assert turn.cursor.seq_num is None

    async def test_a_failing_boot_hook_fails_the_run_without_a_turn_complete(self) -> None:
        """R-024."""
        agent = echo_agent()

        @agent.on_boot
        def broken(event: Any) -> None:
            raise ValueError("boot")

        async with mock_chat_agent(agent) as h:
            await h.settled()
            assert [how for _, how in h.outcomes] == ["failed"]
            assert isinstance(h.error, ValueError)
            assert await h.records() == []
            assert h.runtime is not None
            assert h.runtime.turns == 0


class TestStop:
    async def test_a_stop_cuts_the_stream_and_keeps_the_partial(self) -> None:
        """R-082, R-083, R-084, R-085, R-009."""
        gate = Gate()
        watched(gate.agent, "on_before_turn_complete", "on_turn_complete")
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            await gate.streaming(h)
            await h.send_stop("enough")
            await h.settled()
            event, before = h.event("on_turn_complete"), h.event("on_before_turn_complete")
            (turn,) = await h.turns()
            gate.open.set()
            again = await h.send_message("m2")
            later = h.event("run")
        assert event.stopped
        assert before.stopped
        assert [c["type"] for c in turn.chunks][-1] == "abort"
        assert turn.cursor.seq_num == 1
        assert event.response_message["parts"][-1]["state"] == "done"
        assert event.raw_response_message["parts"][-1]["state"] == "streaming"
        assert again.text == "a:m2!"
        assert not later.stop_signal.aborted
        assert len(later.ui_messages) >= 3

    async def test_the_reason_of_a_stop_is_its_message(self) -> None:
        """R-084."""
        reasons: list[Any] = []

        @chat.agent("reason")
        async def reason(turn: Any) -> None:
            reasons.append(await turn.stop_signal.wait())
            assert chat.is_stopped()

        async with mock_chat_agent(reason) as h:
            for message in ("because", None):
                await h.post_message("x")
                await h.reached(lambda: h.state == "turn")
                await h.send_stop(message)
                await h.settled()
        assert reasons == ["because", "stopped"]

    async def test_an_idle_stop_has_no_effect_and_writes_nothing(self) -> None:
        """R-086; rulings §1.12."""
        async with mock_chat_agent(echo_agent()) as h:
            await h.send_message("one")
            before = len(await h.records())
            await h.send_stop()
            await h.settled()
            assert len(await h.records()) == before
            turn = await h.send_message("two")
        assert turn.text == "echo: two"
        assert turn.cursor.seq_num == 2

    async def test_a_stop_while_suspended_resumes_and_suspends_again(self) -> None:
        """R-087."""
        agent = watched(echo_agent(), "on_chat_suspend", "on_chat_resume")
        async with mock_chat_agent(agent) as h:
            await h.advance(30)
            await h.send_stop()
            await h.settled()
            assert not h.suspended
            await h.advance(30)
            assert h.suspended
        assert h.hook_calls == ["on_chat_suspend", "on_chat_resume", "on_chat_suspend"]

    async def test_a_stop_that_comes_after_the_answer_has_no_effect(self) -> None:
        """R-088."""
        agent = echo_agent()
        gate, entered = anyio.Event(), anyio.Event()

        @agent.on_before_turn_complete
        async def slow(event: Any) -> None:
            entered.set()
            await gate.wait()

        watched(agent, "on_turn_complete")
        async with mock_chat_agent(agent) as h:
            await h.post_message("one")
            await h.post_message("two")
            await entered.wait()
            await h.send_stop()
            await anyio.wait_all_tasks_blocked()
            gate.set()
            await h.settled()
            stopped = [e.stopped for name, e in h.events if name == "on_turn_complete"]
        assert stopped == [False, False]

    async def test_a_stop_with_a_target_means_that_message_and_no_other(self) -> None:
        """W-89; rulings §1.12. A stop is decided when it is used (§1.7)."""
        gate = Gate()
        watched(gate.agent, "on_turn_complete")
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            second = await h.post_message("m2")
            await h.post_message("m3")
            await gate.streaming(h)
            await h.send_stop(target=second)
            await h.send_stop(target=99)
            await anyio.wait_all_tasks_blocked()
            gate.open.set()
            await h.settled()
            stopped = [e.stopped for name, e in h.events if name == "on_turn_complete"]
            assert await cursors(h) == [(0, [4]), (1, [3, 4]), (4, [])]
        assert stopped == [False, True, False]

    async def test_a_run_that_ignores_the_stop_gives_one_turn_complete(self) -> None:
        """R-090."""
        release = anyio.Event()

        @chat.agent("deaf")
        async def deaf(turn: Any) -> str:
            await release.wait()
            return "anyway"

        async with mock_chat_agent(deaf) as h:
            await h.post_message("x")
            await h.reached(lambda: h.state == "turn")
            await h.send_stop()
            await anyio.wait_all_tasks_blocked()
            release.set()
            await h.settled()
            raw = [c["type"] for c in await h.all_raw_chunks()]
        assert raw.count("trigger:turn-complete") == 1
        assert "error" not in raw


class TestActions:
    async def test_an_action_without_a_handler_still_ends_with_a_turn_complete(self) -> None:
        """R-095, R-099, R-006."""
        async with mock_chat_agent(echo_agent()) as h:
            turn = await h.send_action({"x": 1})
            await h.settled()
            assert await h.get_snapshot() is None
        assert turn.raw_chunks == [{"type": "trigger:turn-complete"}]

    async def test_what_an_action_returns_is_streamed_and_kept(self) -> None:
        """R-096, R-097, R-094, R-100."""
        agent = watched(echo_agent(), "on_chat_start")
        message = {"id": "given", "role": "assistant", "parts": [{"type": "text", "text": "msg"}]}

        @agent.on_action
        def act(event: Any) -> Any:
            return message if event.action == "message" else f"did {event.action}"

        async with mock_chat_agent(agent) as h:
            first = await h.send_action("a")
            second = await h.send_action("message")
            turn = await h.send_message("hi")
            await h.settled()
            snapshot = await h.get_snapshot()
        assert first.text == "did a"
        assert second.text == "msg"
        assert first.message["id"] != second.message["id"] != "given"
        assert turn.text == "echo: hi"
        assert h.hook_calls.count("on_chat_start") == 1
        assert snapshot is not None
        assert len(snapshot["messages"]) == 4

    async def test_history_changed_by_an_action_survives_a_continuation(self) -> None:
        """R-098, R-132."""
        agent = echo_agent()

        @agent.on_action
        def act(event: Any) -> None:
            chat.history.slice(0, 1)

        async with mock_chat_agent(agent) as h:
            await h.send_message("keep")
            await h.send_action("cut")
            await h.crash()
            await h.restart()
            await h.send_message("next")
            lane = h.event("run").ui_messages
        assert [m["role"] for m in lane] == ["user", "user", "assistant"]

    async def test_an_invalid_action_is_an_error_and_uses_an_index(self) -> None:
        """R-093."""
        from pydantic import BaseModel

        class Move(BaseModel):
            to: int

        agent = watched(echo_agent(action=Move), "on_action", "on_turn_complete", "on_turn_start")
        async with mock_chat_agent(agent) as h:
            turn = await h.send_action({"to": "nowhere"})
            await h.send_message("hi")
            start = h.event("on_turn_start")
            good = await h.send_action({"to": 3})
            moved = h.event("on_action").action
        assert turn.errors[0].startswith("to: ")
        assert start.turn == 1
        assert good.errors == []
        assert moved.to == 3

    async def test_a_stop_ends_the_response_of_an_action_without_an_error(self) -> None:
        """R-089, D-09."""
        agent = echo_agent()
        entered = anyio.Event()

        @agent.on_action
        async def act(event: Any) -> Any:
            async def slow() -> Any:
                yield "begun"
                entered.set()
                await anyio.sleep_forever()

            return slow()

        async with mock_chat_agent(agent) as h:
            await h.post(h.wire("action", action=1))
            await entered.wait()
            await h.send_stop()
            await h.settled()
            (turn,) = await h.turns()
        assert turn.text == "begun"
        assert turn.errors == []


class TestEnding:
    async def test_close_in_mid_turn_lets_the_turn_finish(self) -> None:
        """R-102, D-05."""
        gate = Gate()
        watched(gate.agent, "on_turn_complete")
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            await gate.streaming(h)
            await h.send_close()
            gate.open.set()
            await h.settled()
            assert not h.alive
            assert h.runtime is not None
            assert h.runtime.cursor.seq_num == 1
            again = await h.send_message("m2")
        assert h.hook_calls == ["run", "on_turn_complete", "run", "on_turn_complete"]
        assert again.text == "a:m2!"

    async def test_end_run_answers_what_is_queued_first(self) -> None:
        """R-081, R-107."""
        gate = Gate()

        @gate.agent.on_turn_start
        def ends(event: Any) -> None:
            chat.end_run()

        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            await h.post_message("m2")
            gate.open.set()
            await h.settled()
            assert not h.alive
            assert len(h.outcomes) == 1
        assert gate.asked == ["m1", "m2"]

    async def test_max_turns_ends_at_once_and_a_successor_takes_the_rest(self) -> None:
        """R-108, R-080, R-076, D-06; rulings §1.10."""
        agent = watched(echo_agent(max_turns=2), "on_turn_start")
        async with mock_chat_agent(agent) as h:
            for text in ("m1", "m2", "m3"):
                await h.post_message(text)
            await h.reached(lambda: h.hook_calls.count("run") == 3)
            await h.settled()
            third = h.event("on_turn_start")
            assert [t.text for t in await h.turns()] == ["echo: m1", "echo: m2", "echo: m3"]
        assert third.turn == 0
        assert third.continuation
        assert third.previous_run_id == h.outcomes[0][0]

    async def test_an_upgrade_at_turn_start_hands_the_message_over(self) -> None:
        """R-103, R-105, R-017; rulings §1.11: the mark, then the swap."""
        agent = watched(echo_agent(), "on_turn_complete")

        @agent.on_turn_start
        def upgrade(event: Any) -> None:
            if not event.continuation:
                event.writer.data("early", 1)
                chat.request_upgrade()

        async with mock_chat_agent(agent) as h:
            turn = await h.send_message("hi")
            await h.settled()
            snapshot = await h.get_snapshot()
        assert [c["type"] for c in turn.raw_chunks][:2] == [
            "data-early",
            "trigger:upgrade-required",
        ]
        assert turn.text == "echo: hi"
        assert h.hook_calls.count("run") == 1
        assert h.world.continued == ["upgrade"]
        assert snapshot is not None
        assert [m["role"] for m in snapshot["messages"]] == ["user", "assistant"]

    async def test_a_failing_swap_is_logged_and_the_message_is_answered(self) -> None:
        """R-106."""
        agent = echo_agent()

        @agent.on_turn_start
        def upgrade(event: Any) -> None:
            if not event.continuation:
                chat.request_upgrade()

        async with mock_chat_agent(agent) as h:
            h.world.faults["end_and_continue"] = [Unavailable("away")]
            turn = await h.send_message("hi")
        assert turn.text == "echo: hi"

    async def test_an_upgrade_during_run_lets_the_turn_finish(self) -> None:
        """R-104."""

        @chat.agent("late")
        def late(turn: Any) -> str:
            chat.request_upgrade()
            return "done"

        async with mock_chat_agent(late) as h:
            turn = await h.send_message("hi")
            await h.settled()
            assert not h.alive
        assert [c["type"] for c in turn.raw_chunks].count("trigger:upgrade-required") == 0
        assert turn.text == "done"

    async def test_a_cancelled_run_writes_no_turn_complete(self) -> None:
        """R-109."""
        gate = Gate()
        watched(gate.agent, "on_before_turn_complete", "on_turn_complete")
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("m1")
            await gate.streaming(h)
            await h.crash()
            raw = [c["type"] for c in await h.all_raw_chunks()]
            assert await h.get_snapshot() is None
        assert "trigger:turn-complete" not in raw
        assert h.hook_calls == ["run"]

    async def test_running_out_of_memory_ends_the_attempt_without_an_error_chunk(self) -> None:
        """R-110, R-111: the next attempt answers the same message once."""
        fails = [True]

        @chat.agent("hungry")
        def hungry(turn: Any) -> str:
            if turn.text == "m2" and fails and fails.pop():
                raise MemoryError
            return f"ok {turn.text}"

        watched(hungry, "on_preload", "on_chat_start")
        async with mock_chat_agent(hungry) as h:
            await h.send_message("m1")
            await h.post_message("m2")
            await h.reached(lambda: not h.alive)
            assert [c["type"] for c in await h.all_raw_chunks()].count("error") == 0
            await h.restart(attempt=2)
            await h.settled()
            assert [t.text for t in await h.turns()] == ["ok m1", "ok m2"]
        assert h.hook_calls == ["on_preload", "on_chat_start", "run", "run", "run"]


class TestDraining:
    """A process that is about to go (design §4; rulings §1.8, §1.20)."""

    async def test_a_warm_idle_chat_ends_at_once_and_goes_on_with_the_next_message(self) -> None:
        agent = watched(echo_agent(), "on_chat_suspend", "on_chat_resume")
        async with mock_chat_agent(agent) as h:
            await h.send_message("one")
            await h.settled()
            await h.drain()
            assert [how for _, how in h.outcomes] == ["completed"]
            assert h.world.waits == []
            assert h.hook_calls.count("on_chat_suspend") == 1
            turn = await h.send_message("two")
        assert turn.text == "echo: two"

    async def test_a_turn_in_progress_is_finished_and_the_next_is_left_to_the_successor(
        self,
    ) -> None:
        gate = Gate()
        async with mock_chat_agent(gate.agent) as h:
            await h.post_message("one")
            await gate.streaming(h)
            await h.post_message("two")
            first = h.run_id
            await h.drain()
            assert h.outcomes == []
            gate.open.set()
            await h.settled()
            turns = await h.turns()
            assert h.outcomes == [(first, "completed")]
        assert [turn.text for turn in turns] == ["a:one!", "a:two!"]

    async def test_a_preloaded_chat_that_waits_for_its_first_message_ends_too(self) -> None:
        async with mock_chat_agent(echo_agent(), mode="preload") as h:
            await h.drain()
            assert [how for _, how in h.outcomes] == ["completed"]
            assert (await h.send_message("hello")).text == "echo: hello"
