"""The tools an assistant talks to agents with (chat-agent §4.17; R-223), and the start action."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from everturn import AgentChat, ChatSessionState, chat, sessions
from everturn.client.api import Api
from everturn.client.config import Target
from everturn.errors import InvalidRequest, NotAllowed, NotAuthenticated
from everturn.mcp import ChatTools, UnknownChat
from everturn.protocol import tokens
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APP = Path(__file__).parent.parent / "apps" / "head_starts.py"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("tools"), APP) as running:
        yield running


@pytest.fixture
def api(system: System) -> Api:
    return Api(Target(system.url, system.key, None, None))


class TestTools:
    async def test_agents_of_both_kinds_are_listed(self, api: Api) -> None:
        # W-114
        found = await ChatTools(api=api).list_agents()

        assert {agent["id"]: agent["kind"] for agent in found} == {
            "own-loop": "custom-agent",
            "timekeeper": "agent",
        }

    async def test_a_browsers_token_does_not_list_agents(self, api: Api, system: System) -> None:
        # W-114
        token = (await chat.create_start_session_action("timekeeper", api=api)("lister"))[0]

        with pytest.raises((NotAllowed, NotAuthenticated)):
            await Api(Target(system.url, token, None, None)).list_tasks()

    async def test_a_message_returns_the_text_of_its_turn_and_the_tools_used(
        self, api: Api
    ) -> None:
        """R-223."""
        tools = ChatTools(api=api)
        await tools.start_agent_chat("timekeeper", "talk")

        said = await tools.send_agent_message("talk", "what time is it?")

        assert "noon" in said
        assert "[tools used: current_time]" in said

    async def test_a_chat_that_is_open_is_not_started_again(self, api: Api) -> None:
        tools = ChatTools(api=api)
        await tools.start_agent_chat("timekeeper", "again")

        assert "already" in await tools.start_agent_chat("timekeeper", "again")

    async def test_an_unknown_chat_is_an_error(self, api: Api) -> None:
        """R-223."""
        with pytest.raises(UnknownChat):
            await ChatTools(api=api).send_agent_message("nobody", "hello?")

    async def test_a_closed_chat_is_forgotten(self, api: Api) -> None:
        tools = ChatTools(api=api)
        await tools.start_agent_chat("timekeeper", "short")
        await tools.close_agent_chat("short")

        with pytest.raises(UnknownChat):
            await tools.send_agent_message("short", "hello?")

    async def test_a_read_only_host_offers_nothing_that_writes(self, api: Api) -> None:
        """R-223."""
        tools = ChatTools(api=api, read_only=True)

        assert [tool.__name__ for tool in tools.tools] == ["list_agents"]
        with pytest.raises(InvalidRequest):
            await tools.start_agent_chat("timekeeper")


class TestStartSessionAction:
    async def test_racing_starts_of_one_chat_are_one_session_and_one_run(self, api: Api) -> None:
        """R-220."""
        start = chat.create_start_session_action("timekeeper", api=api)
        started = []

        async def one() -> None:
            started.append(await start("raced"))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)

        assert len({each.session_id for each in started}) == 1
        assert len({each.run_id for each in started}) == 1

    async def test_its_token_talks_to_this_chat_and_no_other(
        self, api: Api, system: System
    ) -> None:
        """R-221."""
        start = chat.create_start_session_action("timekeeper", api=api)
        token = (await start("mine")).public_access_token
        await start("theirs")
        browser = Api(Target(system.url, token, None, None))

        mine = AgentChat("timekeeper", "mine", session=ChatSessionState(), api=browser)
        assert "turn 1" in (await (await mine.send_message("hi")).result()).text
        with pytest.raises(NotAllowed):
            await browser.append("theirs", "in", "{}", part_id="p1")
        with pytest.raises(NotAllowed):
            await browser.append("mine", "out", "{}", part_id="p2")

    async def test_what_is_sent_is_merged_in_the_documented_order(self, api: Api) -> None:
        """R-220."""
        start = chat.create_start_session_action(
            "timekeeper",
            trigger_config={
                "tags": ["a", "b"],
                "base_payload": {"from": "action", "both": "action"},
                "max_attempts": 2,
            },
            api=api,
        )
        await start(
            "merged",
            client_data={"user": 7},
            trigger_config={"tags": list("cdefgh"), "base_payload": {"both": "call"}},
            metadata={"plan": "pro"},
        )

        session = await sessions.retrieve("merged", api=api)
        assert session.metadata == {"plan": "pro"}
        config = session.trigger_config
        assert config is not None
        assert config["tags"] == ["chat:merged", "c", "d", "e", "f"]
        assert config["maxAttempts"] == 2
        assert config["basePayload"] == {
            "trigger": "preload",
            "messages": [],
            "from": "action",
            "both": "call",
            "metadata": {"user": 7},
            "chatId": "merged",
        }

    async def test_a_token_of_ones_own_length_is_minted(self, api: Api) -> None:
        start = chat.create_start_session_action("timekeeper", token_ttl="10m", api=api)
        token = (await start("minted")).public_access_token

        claims = tokens.peek(token)
        assert claims is not None
        assert claims["scopes"] == ["read:sessions:minted", "write:sessions:minted"]
        assert claims["exp"] - claims["iat"] == 600

    async def test_an_empty_chat_id_is_refused(self, api: Api) -> None:
        with pytest.raises(InvalidRequest):
            await chat.create_start_session_action("timekeeper", api=api)("")

    async def test_calls_may_be_made_by_the_application(self, api: Api) -> None:
        asked: list[str] = []

        async def request(prepared, context, send):
            asked.append(context.endpoint)
            return await send(prepared)

        start = chat.create_start_session_action(
            "timekeeper", token_ttl="10m", request=request, api=api
        )
        await start("made-by-app")

        assert asked == ["sessions", "auth"]


async def test_an_access_token_starts_runs_of_its_agent_only(api: Api, system: System) -> None:
    token = await chat.create_access_token("timekeeper", api=api)
    browser = Api(Target(system.url, token, None, None))

    body, _ = await browser.trigger("timekeeper", {"payload": "{}"})
    assert body["id"].startswith("run_")
    with pytest.raises(NotAllowed):
        await browser.trigger("own-loop", {"payload": "{}"})
