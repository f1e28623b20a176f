"""Tasks as tools: what the child is told, and how it writes to the chat (chat-agent §4.11.5)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest

from everturn import ai, chat
from everturn.chat.guest_output import BATCH_CHUNKS, guest_writer
from everturn.chat.tool_options import METADATA_KEY
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.errors import ChatContextError, SessionNotFound, UIMessageStreamError
from everturn.protocol.runs import RunInfo
from everturn.server.assembly import build
from everturn.server.settings import Settings
from everturn.storage.ports.rows import TaskVersion, Worker
from everturn.tasks.runtime import running
from everturn.testing.asgi import AsgiTransport
from everturn.testing.runtime import MemoryRuntime, World

pytestmark = pytest.mark.anyio

KEY = "tr_dev_abcdefghijklmnopqrstuvwx"
kitchen = chat.local("test-tools-kitchen", dict)


# --- what the child is told -----------------------------------------------------------------------


async def child(metadata: Any) -> tuple[Any, Any, Any]:
    """What a run with this metadata finds: call id, chat, and the value of a local."""
    info = RunInfo(
        run_id="run_c",
        task_id="brew",
        environment_id="env_test",
        environment_slug="dev",
        fence=1,
        attempt=1,
        payload=b"{}",
        version="v1",
        queue="task/brew",
        max_attempts=1,
        created_at_ms=0,
        started_at_ms=0,
        metadata=msgspec.json.encode(metadata),
    )
    async with anyio.create_task_group() as tasks:
        runtime = MemoryRuntime(World("c"), info, tasks)
        with running(runtime):
            context = ai.chat_context()
            value = kitchen.get() if context is not None else None
            found = (ai.tool_call_id(), context, value)
        tasks.cancel_scope.cancel()
    return found


async def test_a_child_knows_its_call_its_chat_and_the_chats_locals() -> None:
    told = {
        "toolCallId": "call-1",
        "chatId": "c1",
        "turn": 3,
        "continuation": False,
        "clientData": {"user": "u1"},
        "chatLocals": {"test-tools-kitchen": {"cups": 7}},
    }
    call_id, context, value = await child({METADATA_KEY: told, "own": 1})

    assert call_id == "call-1"
    assert context == ai.ChatContext(
        chat_id="c1", turn=3, continuation=False, client_data={"user": "u1"}
    )
    assert value == {"cups": 7}


@pytest.mark.parametrize(
    "metadata", [{}, {METADATA_KEY: "mine"}, {METADATA_KEY: {"chatId": "c"}}, [METADATA_KEY]]
)
async def test_a_run_that_is_no_tool_call_has_none_whatever_its_metadata_is(metadata: Any) -> None:
    assert await child(metadata) == (None, None, None)


async def test_outside_of_a_tool_call_the_chat_is_asked_for_in_vain() -> None:
    with pytest.raises(ChatContextError):
        ai.chat_context_or_raise()
    with pytest.raises(ChatContextError):
        async with chat.stream.writer():
            raise AssertionError("there is nothing to write to")


# --- writing as a guest ---------------------------------------------------------------------------


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """A real server in this process, with one chat, `c1`."""
    async with (
        build(Settings(data_dir=None, secret_key=KEY, shutdown_s=1.0)) as system,
        AsgiTransport(system.app) as transport,
    ):
        api = Api(Target("http://everturn.test", KEY, None, transport))
        now_ms = api.clock.now_ms()
        worker = Worker(
            id="worker_1",
            environment_id=system.environment.id,
            version="1",
            server_id="s",
            lease_until_ms=now_ms + 3_600_000,
            registered_at_ms=now_ms,
        )
        tasks = [TaskVersion(task_id="agent", kind="agent")]
        await system.services.state.register_worker(worker, tasks, {}, now_ms=now_ms)
        config = {"basePayload": {"chatId": "c1", "trigger": "preload"}}
        await api.create_session(
            {
                "type": "chat.agent",
                "externalId": "c1",
                "taskIdentifier": "agent",
                "triggerConfig": config,
            }
        )
        yield api


def note(n: int) -> dict[str, Any]:
    return {"type": "data-note", "data": n}


async def written(api: Api) -> list[Any]:
    return [record["data"]["data"] for record in await api.read_records("c1", "out")]


async def test_what_a_guest_writes_and_merges_is_stored_in_order_when_the_block_ends(
    api: Api,
) -> None:
    async with guest_writer("c1", api) as writer:
        writer.write(note(0))
        writer.data("note", 1)
        writer.merge(note(n) for n in range(2, 3 * BATCH_CHUNKS))

    assert await written(api) == list(range(3 * BATCH_CHUNKS))


async def test_a_guests_chunk_is_stored_while_its_block_goes_on(api: Api) -> None:
    async with guest_writer("c1", api) as writer:
        writer.write(note(0))
        with anyio.fail_after(10):
            while not await written(api):
                await anyio.lowlevel.checkpoint()
        writer.write(note(1))

    assert await written(api) == [0, 1]


async def test_a_guest_finds_out_that_it_could_not_write(api: Api) -> None:
    with pytest.raises(SessionNotFound):
        async with guest_writer("nobody", api) as writer:
            writer.write(note(0))
    with pytest.raises(UIMessageStreamError):
        async with guest_writer("c1", api) as writer:
            writer.write({"no": "type"})


async def test_what_a_block_raises_comes_out_as_it_was(api: Api) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with guest_writer("c1", api):
            raise LookupError("mine")
