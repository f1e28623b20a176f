"""The turn pipeline: records, hook order, errors, output (chat-agent §9.1, §9.3, §9.9)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from talkers import texts

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.errors import ChatContextError, Unavailable
from everturn.protocol.records import open_envelope
from everturn.rules import limits
from everturn.tasks import registry
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_registry() -> Any:
    with registry.collecting(registry.Registry()) as collected:
        yield collected


def echo_agent(**options: Any) -> ChatAgent[Any]:
    @chat.agent("echo", **options)
    async def echo(turn: Any) -> str:
        return f"echo: {turn.text}"

    return echo


async def test_a_message_is_answered_and_the_turn_ends_with_one_turn_complete() -> None:
    """R-002, R-006, R-007, R-049."""
    async with mock_chat_agent(echo_agent()) as h:
        turn = await h.send_message("hi")
    assert turn.text == "echo: hi"
    kinds = [c["type"] for c in turn.raw_chunks]
    assert kinds[0] == "start"
    assert kinds[-2:] == ["finish", "trigger:turn-complete"]
    assert turn.chunks[0]["messageId"]
    assert turn.turn_complete.header("public-access-token")
    assert turn.turn_complete.body == b""
    assert turn.cursor.seq_num == 0


async def test_every_chunk_is_one_record_with_its_own_part_id() -> None:
    """R-001: the id in the envelope is unique."""
    async with mock_chat_agent(echo_agent()) as h:
        await h.send_message("a")
        await h.send_message("b")
        opened = [open_envelope(r.body) for r in await h.records() if r.is_data]
    ids = [item[1] for item in opened if item is not None]
    assert len(ids) == len(set(ids)) == len(opened)


async def test_a_thousand_unawaited_writes_arrive_in_order_before_turn_complete() -> None:
    """R-005, D-01."""

    @chat.agent("many")
    async def many(turn: Any) -> None:
        for n in range(1000):
            chat.response.data("n", n, transient=True)

    async with mock_chat_agent(many) as h:
        turn = await h.send_message("go")
    assert [c["data"] for c in turn.chunks] == list(range(1000))


async def test_the_hooks_of_a_first_message_run_in_order() -> None:
    """R-038, R-028: preload, then the turn; follow-ups have neither boot nor chat_start."""
    agent = echo_agent()
    names = [
        "on_boot", "on_preload", "on_chat_start", "on_turn_start",
        "on_before_turn_complete", "on_turn_complete",
    ]  # fmt: skip
    for name in names:
        agent.hooks.add(name, lambda event: None)
    agent.hooks.add("on_validate_messages", lambda event: event.messages)
    async with mock_chat_agent(agent) as h:
        await h.send_message("one")
        await h.settled()
        first, h.hook_calls = h.hook_calls, []
        await h.send_message("two")
        await h.settled()
        preloaded = h.event("on_turn_complete").preloaded
    assert first == [
        "on_boot", "on_preload", "on_validate_messages", "on_chat_start", "on_turn_start",
        "run", "on_before_turn_complete", "on_turn_complete",
    ]  # fmt: skip
    assert h.hook_calls == [
        "on_validate_messages", "on_turn_start", "run",
        "on_before_turn_complete", "on_turn_complete",
    ]  # fmt: skip
    assert preloaded


async def test_hooks_receive_what_they_declare_sync_or_async() -> None:
    """Rulings §5.5."""
    agent = echo_agent()
    seen: list[Any] = []

    @agent.on_turn_start
    def nothing() -> None:
        seen.append("nothing")

    @agent.on_turn_start
    async def both(event: Any, ctx: Any) -> None:
        seen.append((event.turn, ctx.attempt.number))

    async with mock_chat_agent(agent) as h:
        await h.send_message("x")
    assert seen == ["nothing", (0, 1)]


async def test_on_turn_start_sees_the_message_and_writes_before_the_answer() -> None:
    """R-044."""
    agent = echo_agent()
    seen: list[str] = []

    @agent.on_turn_start
    def start(event: Any) -> None:
        seen.extend(texts(event.ui_messages))
        event.writer.write({"type": "data-note", "data": 1})

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("hi")
    assert seen == ["hi"]
    assert [c["type"] for c in turn.chunks][:2] == ["data-note", "start"]


async def test_parts_written_before_completion_are_in_the_response() -> None:
    """R-051, R-144, R-145: persistent parts at the end, replaced by id, transient ones not."""
    agent = echo_agent()

    @agent.on_before_turn_complete
    def late(event: Any) -> None:
        event.writer.data("mark", 1, id="a")
        event.writer.data("mark", 2, id="a")
        event.writer.data("gone", 3, transient=True)
        event.writer.merge([{"type": "data-merged", "data": 4}])

    agent.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("hi")
        await h.settled()
        response = h.event("on_turn_complete").response_message
        snapshot = await h.get_snapshot()
    assert response["parts"][-1] == {"type": "data-mark", "data": 2, "id": "a"}
    assert [p["type"] for p in response["parts"]].count("data-mark") == 1
    assert not any(p["type"] in ("data-gone", "data-merged") for p in response["parts"])
    assert any(c["type"] == "data-merged" for c in turn.chunks)
    assert snapshot is not None
    assert snapshot["messages"][-1] == response


async def test_a_turn_of_data_parts_only_stores_a_message_with_them() -> None:
    """R-146."""

    @chat.agent("data")
    async def data(turn: Any) -> None:
        chat.response.data("chart", [1, 2])

    async with mock_chat_agent(data) as h:
        await h.send_message("draw")
        await h.settled()
        snapshot = await h.get_snapshot()
    assert snapshot is not None
    assert snapshot["messages"][-1]["role"] == "assistant"
    assert snapshot["messages"][-1]["parts"] == [{"type": "data-chart", "data": [1, 2]}]


async def test_new_ui_messages_are_the_message_and_its_response() -> None:
    """R-054, R-015."""
    agent = echo_agent()
    agent.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("hi")
        await h.settled()
        event = h.event("on_turn_complete")
    assert texts(event.new_ui_messages) == ["hi", "echo: hi"]
    assert event.last_event_id == str(turn.turn_complete.seq_num)
    assert event.finish_reason == "stop"


async def test_a_failing_run_gives_one_error_and_the_run_lives() -> None:
    """R-058, R-059, R-006; rulings §1.21: error and turn-complete are neighbours."""
    lanes: list[list[str]] = []

    @chat.agent("flaky")
    async def flaky(turn: Any) -> str:
        lanes.append(texts(turn.ui_messages))
        if turn.text == "bad":
            raise ValueError("it broke")
        return "fine"

    for name in ("on_before_turn_complete", "on_turn_complete"):
        flaky.hooks.add(name, lambda event: None)
    async with mock_chat_agent(flaky) as h:
        turn = await h.send_message("bad")
        await h.settled()
        event = h.event("on_turn_complete")
        calls = list(h.hook_calls)
        good = await h.send_message("good")
    assert turn.errors == ["it broke"]
    assert turn.raw_chunks[-2:] == [
        {"type": "error", "errorText": "it broke"},
        {"type": "trigger:turn-complete"},
    ]
    assert calls == ["run", "on_turn_complete"]
    assert isinstance(event.error, ValueError)
    assert event.finish_reason == "error"
    assert good.text == "fine"
    assert lanes[1] == ["bad", "good"]


async def test_what_a_failing_answer_had_shown_is_kept_in_history() -> None:
    """P-8: partial answers of failed turns are kept."""

    @chat.agent("half")
    async def half(turn: Any) -> Any:
        yield "half an ans"
        raise RuntimeError("cut")

    async with mock_chat_agent(half) as h:
        turn = await h.send_message("q")
        await h.settled()
        snapshot = await h.get_snapshot()
    assert turn.errors == ["cut"]
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["q", "half an ans"]
    assert snapshot["messages"][-1]["parts"][-1]["state"] == "done"


async def test_a_failing_validation_hook_keeps_the_message_in_the_snapshot() -> None:
    """R-040."""
    agent = echo_agent()

    @agent.on_validate_messages
    def refuse(event: Any) -> None:
        raise ValueError("no")

    async with mock_chat_agent(agent) as h:
        turn = await h.send_message("hi")
        await h.settled()
        snapshot = await h.get_snapshot()
    assert turn.errors == ["no"]
    assert snapshot is not None
    assert texts(snapshot["messages"]) == ["hi"]


async def test_validation_replaces_the_incoming_messages_and_skips_regenerates() -> None:
    """R-039, R-064: a regenerate drops the answer and gives a new one under a new id."""
    agent = echo_agent()

    @agent.on_validate_messages
    def shout(event: Any) -> Any:
        message = event.messages[0]
        return [{**message, "parts": [{"type": "text", "text": "LOUD"}]}]

    async with mock_chat_agent(agent) as h:
        first = await h.send_message("hi")
        again = await h.send_regenerate()
        await h.settled()
        snapshot = await h.get_snapshot()
    assert first.text == "echo: LOUD"
    assert h.hook_calls.count("on_validate_messages") == 1
    assert again.message["id"] != first.message["id"]
    assert snapshot is not None
    assert [m["role"] for m in snapshot["messages"]] == ["user", "assistant"]
    assert snapshot["messages"][-1]["id"] == again.message["id"]


async def test_a_failing_chat_start_hook_is_not_called_again() -> None:
    """R-043; rulings §1.15: the failed turn has committed."""
    agent = echo_agent()

    @agent.on_chat_start
    def broken(event: Any) -> None:
        raise ValueError("no start")

    async with mock_chat_agent(agent) as h:
        first = await h.send_message("one")
        second = await h.send_message("two")
    assert first.errors == ["no start"]
    assert second.text == "echo: two"
    assert h.hook_calls.count("on_chat_start") == 1


async def test_a_failing_before_complete_hook_takes_the_error_path_once() -> None:
    """R-051, R-002."""
    agent = echo_agent()

    @agent.on_before_turn_complete
    def broken(event: Any) -> None:
        raise ValueError("late")

    agent.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(agent) as h:
        await h.send_message("x")
        await h.settled()
        raw = await h.all_raw_chunks()
    assert [c["type"] for c in raw].count("trigger:turn-complete") == 1
    assert [c["type"] for c in raw].count("error") == 1
    assert h.hook_calls.count("on_turn_complete") == 1


async def test_a_failing_completion_hook_writes_nothing_more() -> None:
    """R-052, D-13."""
    agent = echo_agent()

    @agent.on_turn_complete
    def broken(event: Any) -> None:
        raise ValueError("too late")

    async with mock_chat_agent(agent) as h:
        await h.send_message("one")
        await h.settled()
        assert (await h.all_raw_chunks())[-1]["type"] == "trigger:turn-complete"
        second = await h.send_message("two")
    assert second.text == "echo: two"
    assert h.hook_calls.count("on_turn_complete") == 2


async def test_the_next_message_waits_for_the_completion_hook_and_the_snapshot() -> None:
    """R-053."""
    agent = echo_agent()
    gate, entered = anyio.Event(), anyio.Event()

    @agent.on_turn_complete
    async def slow(event: Any) -> None:
        entered.set()
        await gate.wait()

    async with mock_chat_agent(agent) as h:
        await h.send_message("one")
        await entered.wait()
        await h.post_message("two")
        await anyio.wait_all_tasks_blocked()
        assert h.hook_calls.count("run") == 1
        assert h.world.snapshot_writes == 0
        gate.set()
        await h.settled()
    assert h.hook_calls.count("run") == 2


async def test_anything_not_streamable_streams_nothing_and_completes() -> None:
    """R-047."""

    @chat.agent("silent")
    def silent(turn: Any) -> int:
        return 42

    async with mock_chat_agent(silent) as h:
        turn = await h.send_message("x")
    assert turn.chunks == []


async def test_after_a_pipe_the_return_value_is_not_streamed() -> None:
    """R-047, R-048, R-057."""

    @chat.agent("piper")
    async def piper(turn: Any) -> str:
        with pytest.raises(TypeError):
            await chat.pipe(42)
        await chat.pipe("piped")
        return "ignored"

    piper.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(piper) as h:
        turn = await h.send_message("x")
        await h.settled()
    assert turn.text == "piped"
    assert h.event("on_turn_complete").finish_reason is None


async def test_chunk_dicts_pass_and_a_start_without_id_is_stamped() -> None:
    """R-049, rulings §5.3; the model's own error chunk is no exception (R-060)."""

    @chat.agent("raw")
    async def raw(turn: Any) -> Any:
        yield {"type": "start"}
        yield {"type": "error", "errorText": "model says no"}
        yield {"type": "finish", "finishReason": "error"}

    raw.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(raw) as h:
        turn = await h.send_message("x")
        await h.settled()
        event = h.event("on_turn_complete")
    assert turn.chunks[0]["messageId"] == event.response_message["id"]
    assert turn.errors == ["model says no"]
    assert event.error is None
    assert event.finish_reason == "error"


async def test_an_oversized_chunk_fails_the_turn_and_the_run_lives() -> None:
    """R-148."""

    @chat.agent("big")
    async def big(turn: Any) -> Any:
        size = limits.CHUNK_BYTES_MAX if turn.text == "big" else 10
        yield {"type": "data-blob", "data": "x" * size}

    async with mock_chat_agent(big) as h:
        turn = await h.send_message("big")
        small = await h.send_message("small")
    assert "at most 1047552" in turn.errors[0]
    assert small.errors == []


async def test_a_chunk_out_of_place_fails_the_turn_before_a_client_sees_it() -> None:
    """R-151; authors cannot write the runtime's marks (rulings §1.6)."""

    @chat.agent("odd")
    async def odd(turn: Any) -> Any:
        yield {"type": turn.text, "id": "t", "delta": "x", "data": 1}

    async with mock_chat_agent(odd) as h:
        delta = await h.send_message("text-delta")
        mark = await h.send_message("data-restarted")
    assert len(delta.errors) == len(mark.errors) == 1
    assert not any(c["type"] in ("text-delta", "data-restarted") for c in await h.all_chunks())


async def test_an_assistant_message_from_the_client_is_continued_under_its_id() -> None:
    """R-050, R-054: a tool answer resumes the message it belongs to."""
    call = {"type": "tool-ask", "toolCallId": "c1", "state": "input-available", "input": {}}

    @chat.agent("hitl")
    async def hitl(turn: Any) -> Any:
        if turn.ui_messages[-1]["role"] == "user":
            yield {"type": "start"}
            yield {
                "type": "tool-input-available",
                "toolCallId": "c1",
                "toolName": "ask",
                "input": {},
            }
            yield {"type": "finish", "finishReason": "tool-calls"}
        else:
            yield "thanks"

    hitl.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(hitl) as h:
        asked = await h.send_message("please")
        answer = {**call, "state": "output-available", "output": "yes"}
        reply = {"id": asked.message["id"], "role": "assistant", "parts": [answer]}
        resumed = await h.send_message(reply)
        await h.settled()
        event = h.event("on_turn_complete")
    assert resumed.chunks[0]["messageId"] == asked.message["id"]
    assert [m["id"] for m in event.new_ui_messages] == [asked.message["id"]]
    parts = event.response_message["parts"]
    assert parts[0]["output"] == "yes"
    assert parts[-1]["text"] == "thanks"
    assert len(event.ui_messages) == 2


async def test_resending_a_known_message_runs_a_turn_without_duplicating_it() -> None:
    """R-136."""
    async with mock_chat_agent(echo_agent()) as h:
        message = h.user("hi")
        await h.send_message(message)
        await h.send_message(message)
        await h.settled()
        snapshot = await h.get_snapshot()
    assert snapshot is not None
    assert [m["id"] for m in snapshot["messages"]].count(message["id"]) == 1


async def test_client_data_that_fails_gives_an_error_and_the_run_lives() -> None:
    """R-027."""
    from pydantic import BaseModel

    class Client(BaseModel):
        user: str

    agent = echo_agent(client_data=Client)
    async with mock_chat_agent(agent, mode="submit-message") as h:
        turn = await h.send_message("hi", metadata={"user": 3, "secret": "s3cret"})
        good = await h.send_message("hi", metadata={"user": "ada"})
    assert turn.errors[0].startswith("user: ")
    assert "s3cret" not in turn.errors[0]
    assert good.errors == []


async def test_hydration_gives_the_history_and_sees_it_before_the_merge() -> None:
    """R-041, R-042, R-022: no snapshot is read or written."""
    agent = echo_agent()
    previous: list[int] = []
    stored: list[dict[str, Any]] = []

    @agent.hydrate_messages
    async def hydrate(event: Any) -> Any:
        previous.append(len(event.previous_messages))
        assert len(chat.history.all()) == len(event.previous_messages)
        stored.extend(event.incoming_messages)
        return list(stored)

    async with mock_chat_agent(agent) as h:
        await h.send_message("one")
        await h.send_message("two")
        await h.settled()
        assert await h.get_snapshot() is None
    assert previous == [0, 2]
    assert "snapshot" not in h.world.reads


async def test_trim_follows_the_turn_before_and_never_what_no_snapshot_holds() -> None:
    """R-016, R-018, P-9: a snapshot that could not be written keeps its turn readable."""
    async with mock_chat_agent(echo_agent()) as h:
        one = await h.send_message("1")
        await h.settled()
        assert await h.trims() == []
        h.world.faults["save_snapshot"] = [Unavailable("disk")]
        two = await h.send_message("2")
        await h.settled()
        await h.send_message("3")
        await h.settled()
        four = await h.send_message("4")
        await h.settled()
        trims = await h.trims()
        third = (await h.turns())[2]
    first_end, third_end = one.turn_complete.seq_num, third.turn_complete.seq_num
    assert trims == [first_end, third_end]
    assert two.turn_complete.seq_num < third_end < four.turn_complete.seq_num


async def test_history_changes_apply_at_checkpoints_and_are_stored_before_turn_complete() -> None:
    """§4.7, rulings §1.13."""
    agent = echo_agent()
    lengths: list[int] = []

    @agent.on_turn_start
    def forget(event: Any) -> None:
        if event.turn == 1:
            chat.history.set(event.ui_messages[-1:])
            assert len(chat.history.all()) == 1

    @agent.on_before_turn_complete
    def look(event: Any) -> None:
        lengths.append(len(event.ui_messages))

    async with mock_chat_agent(agent) as h:
        await h.send_message("one")
        await h.settled()
        writes = h.world.snapshot_writes
        await h.send_message("two")
        await h.settled()
    assert lengths == [2, 2]
    assert h.world.snapshot_writes == writes + 2


async def test_deferred_work_delays_the_turn_by_five_seconds_at_most() -> None:
    """§2.8 T28."""
    done: list[int] = []

    @chat.agent("deferring")
    async def deferring(turn: Any) -> str:
        async def quick() -> None:
            done.append(1)

        chat.defer(quick())
        chat.defer(anyio.sleep_forever)
        return "ok"

    async with mock_chat_agent(deferring) as h:
        await h.post_message("x")
        await anyio.wait_all_tasks_blocked()
        assert len(await h.turns()) == 0
        await h.advance(5)
        assert len(await h.turns()) == 1
    assert done == [1]


def test_helpers_outside_a_run_say_so() -> None:
    """R-066."""
    for call in (chat.end_run, chat.request_upgrade, chat.is_stopped, lambda: chat.session_id):
        with pytest.raises(ChatContextError):
            call()
    with pytest.raises(ChatContextError):
        chat.response.write({"type": "data-x", "data": 1})
    with pytest.raises(ChatContextError):
        chat.history.all()


async def test_two_chats_in_one_process_never_see_each_other() -> None:
    """R-062, R-261."""
    agent = echo_agent()

    async def talk(name: str, found: dict[str, Any]) -> None:
        async with mock_chat_agent(agent, chat_id=name) as h:
            for n in range(3):
                found[f"{name}{n}"] = (await h.send_message(f"{name}{n}")).text

    found: dict[str, Any] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talk, "a", found)
        tasks.start_soon(talk, "b", found)
    assert found == {f"{c}{n}": f"echo: {c}{n}" for c in "ab" for n in range(3)}


async def test_an_agent_that_nobody_registered_is_a_lookup_error() -> None:
    """R-263."""
    with pytest.raises(LookupError):
        async with mock_chat_agent("nobody"):
            pass


async def test_leaving_a_harness_with_a_hung_run_returns() -> None:
    """R-262."""

    @chat.agent("hung")
    async def hung(turn: Any) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with mock_chat_agent(hung) as h:
            await h.post_message("x")


async def test_a_model_stream_is_a_streamable_with_usage() -> None:
    """R-055, R-057: `turn.stream` on the library's own test model."""
    from pydantic_ai import Agent
    from pydantic_ai.models.test import TestModel

    model = Agent(TestModel(custom_output_text="from the model"))

    @chat.agent("modelled")
    def modelled(turn: Any) -> Any:
        return turn.stream(model)

    modelled.hooks.add("on_turn_complete", lambda event: None)
    async with mock_chat_agent(modelled) as h:
        turn = await h.send_message("hi")
        await h.send_message("again")
        await h.settled()
        event = h.event("on_turn_complete")
        lane = h.event("run").messages
    assert turn.text == "from the model"
    assert event.usage is not None
    assert event.total_usage.output_tokens > event.usage.output_tokens
    assert event.finish_reason == "stop"
    assert len(lane) >= 3
