"""`chat.local`: one value per run (chat-agent §4.3; R-062, R-158 to R-161)."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio
import msgspec
import pytest
from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from everturn import chat
from everturn.chat.local import ChatLocal, locals_for_child
from everturn.chat.tool_options import METADATA_KEY
from everturn.errors import ChatContextError, ChatLocalNotInitialized, ConfigurationError
from everturn.protocol.runs import RunInfo
from everturn.tasks.runtime import running
from everturn.testing.harness import mock_chat_agent
from everturn.testing.runtime import MemoryRuntime, World

pytestmark = pytest.mark.anyio


class Person(BaseModel):
    name: str
    seen: list[str] = []
    visits: int = 0


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str


@dataclasses.dataclass(frozen=True)
class Place:
    name: str


class Thing(msgspec.Struct, frozen=True):
    name: str


person = chat.local("test-person", Person)
lost = chat.local("test-lost", object)


async def in_a_run(work: Any) -> None:
    """Run `work` inside a turn of an agent; what it raises comes out here."""
    raised: list[BaseException] = []

    @chat.agent("locals")
    async def agent(turn: Any) -> str:
        try:
            work()
        except Exception as error:
            raised.append(error)
        return "done"

    async with mock_chat_agent(agent) as h:
        await h.send_message("go")
    if raised:
        raise raised[0]


async def test_a_value_set_at_boot_is_readable_in_hooks_and_turns_and_over_a_suspension() -> None:
    """R-158."""
    read: list[str] = []

    @chat.agent("keeps", idle_timeout=0)
    async def agent(turn: Any) -> str:
        person.visits += 1
        return f"{person.name}:{person.visits}"

    @agent.on_boot
    def boot() -> None:
        person.init({"name": "Ada"})

    @agent.on_chat_suspend
    @agent.on_turn_complete
    def later() -> None:
        read.append(person.name)

    async with mock_chat_agent(agent) as h:
        assert (await h.send_message("1")).text == "Ada:1"
        await h.settled()
        assert h.suspended
        assert (await h.send_message("2")).text == "Ada:2"
    assert set(read) == {"Ada"}


async def test_tools_read_and_write_the_value_of_their_run_in_threads_too() -> None:
    """R-158."""

    @chat.tool(description="Counts in the loop.")
    async def count() -> int:
        person.visits += 1
        return int(person.visits)

    @chat.tool(description="Counts in a thread.")
    def count_blocking() -> int:
        person.visits += 1
        return int(person.visits)

    @chat.agent("counting")
    async def agent(turn: Any) -> Any:
        return turn.stream(Agent(TestModel()), **chat.run_options(tools=[count, count_blocking]))

    @agent.on_boot
    def boot() -> None:
        person.init({"name": "Ada"})

    agent.on_turn_complete(lambda: seen.append(person.visits))
    seen: list[int] = []
    async with mock_chat_agent(agent) as h:
        assert (await h.send_message("1")).errors == []
        await h.settled()
    assert seen == [2]


async def test_a_continuation_starts_empty() -> None:
    """R-158."""

    @chat.agent("empties")
    async def agent(turn: Any) -> str:
        try:
            return str(person.name)
        except ChatLocalNotInitialized:
            person.init(Person(name="Ada"))
            return "empty"

    async with mock_chat_agent(agent) as h:
        texts = [(await h.send_message("1")).text, (await h.send_message("2")).text]
        await h.crash()
        await h.restart()
        texts.append((await h.send_message("3")).text)
    assert texts == ["empty", "Ada", "empty"]


async def test_two_chats_in_one_process_never_see_each_others_value() -> None:
    """R-062."""

    @chat.agent("apart")
    async def agent(turn: Any) -> str:
        return str(person.name)

    @agent.on_boot
    def boot(event: Any) -> None:
        person.init({"name": event.chat_id})

    async with mock_chat_agent(agent, chat_id="a") as a, mock_chat_agent(agent, chat_id="b") as b:
        assert (await a.send_message("who")).text == "a"
        assert (await b.send_message("who")).text == "b"
        assert (await a.send_message("who")).text == "a"


async def test_reading_and_writing_before_init_raises_and_outside_of_a_run_too() -> None:
    """R-159."""
    with pytest.raises(ChatLocalNotInitialized, match="test-person"):
        await in_a_run(lambda: person.name)
    with pytest.raises(ChatLocalNotInitialized):
        await in_a_run(lambda: setattr(person, "name", "x"))
    with pytest.raises(ChatLocalNotInitialized):
        await in_a_run(person.get)
    with pytest.raises(ChatContextError):
        person.get()
    with pytest.raises(ChatContextError):
        person.init(Person(name="x"))


async def test_has_changed_is_true_once_after_a_write_and_blind_to_nested_changes() -> None:
    """R-160."""

    def work() -> None:
        assert not person.has_changed()
        person.init(Person(name="Ada"))
        assert not person.has_changed()
        person.name = "Grace"
        assert person.has_changed()
        assert not person.has_changed()
        person.seen.append("nested")
        assert not person.has_changed()
        person.name = "Mary"
        person.init(Person(name="Ada"))
        assert not person.has_changed()

    await in_a_run(work)


async def test_a_write_replaces_the_value_so_earlier_readers_keep_what_they_read() -> None:
    def work() -> None:
        given = Person(name="Ada")
        person.init(given)
        before = person.get()
        person.name = "Grace"
        assert (given.name, before.name, person.name) == ("Ada", "Ada", "Grace")

    await in_a_run(work)


@pytest.mark.parametrize("value", [{"name": "a"}, Place("a"), Thing("a"), Frozen(name="a")])
async def test_frozen_values_and_dicts_are_replaced_and_unknown_fields_refused(value: Any) -> None:
    held: ChatLocal[Any] = ChatLocal("test-any", object)

    def work() -> None:
        held.init(value)
        held.name = "b"
        assert held.name == "b"
        if not isinstance(value, dict):
            with pytest.raises(AttributeError):
                held.other = 1
        with pytest.raises(AttributeError):
            _ = held.third

    await in_a_run(work)
    assert (value["name"] if isinstance(value, dict) else value.name) == "a"


async def test_an_id_is_declared_once() -> None:
    with pytest.raises(ConfigurationError, match=r"declared twice.*test_local_values"):
        chat.local("test-person", Person)
    with pytest.raises(ConfigurationError):
        chat.local("", Person)


async def in_a_child(sent: dict[str, Any], work: Any) -> None:
    """Run `work` in a run that carries out a tool call and was sent these locals."""
    told = {METADATA_KEY: {"toolCallId": "call", "chatLocals": sent}}
    info = RunInfo(
        run_id="run_c",
        task_id="child",
        environment_id="env_test",
        environment_slug="dev",
        fence=1,
        attempt=1,
        payload=b"{}",
        version="v1",
        queue="task/child",
        max_attempts=1,
        created_at_ms=0,
        started_at_ms=0,
        metadata=msgspec.json.encode(told),
    )
    async with anyio.create_task_group() as tasks:
        with running(MemoryRuntime(World("c"), info, tasks)):
            work()
        tasks.cancel_scope.cancel()


async def test_a_child_gets_the_values_built_on_first_use_and_keeps_its_writes() -> None:
    """R-161."""
    sent: list[dict[str, Any]] = []

    def parent() -> None:
        person.init(Person(name="Ada", visits=2))
        lost.init(object())
        sent.append(locals_for_child())

    def child() -> None:
        # A child that starts one of its own hands on what it was sent, read or not.
        assert locals_for_child() == sent[0]
        assert person.get() == Person(name="Ada", visits=2)
        person.name = "changed"
        assert locals_for_child()["test-person"]["name"] == "changed"
        with pytest.raises(ChatLocalNotInitialized):
            lost.get()

    await in_a_run(parent)
    assert sent == [{"test-person": {"name": "Ada", "seen": [], "visits": 2}}]
    await in_a_child(sent[0], child)
    assert locals_for_child() == {}


async def test_data_of_a_parent_that_does_not_fit_counts_as_not_sent() -> None:
    def child() -> None:
        with pytest.raises(ChatLocalNotInitialized):
            person.get()

    await in_a_child({"test-person": {"visits": "many"}}, child)
