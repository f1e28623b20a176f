"""The examples of custom agents and head starts run as they are written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec
import pytest

from everturn import AgentChat
from everturn.chat.reducer import MessageReducer
from everturn.client.config import configure
from everturn.testing.asgi import AsgiTransport
from everturn.testing.processes import System

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@contextmanager
def serving(folder: Path, example: str) -> Iterator[System]:
    with System(folder, EXAMPLES / example) as system:
        configure(url=system.url, secret_key=system.key)
        try:
            yield system
        finally:
            configure()


async def say(chat: AgentChat, text: str) -> str:
    result = await (await chat.send_message(text)).result()
    assert result.complete
    return result.text


async def test_the_game_remembers_and_the_parrot_repeats(tmp_path: Path) -> None:
    with serving(tmp_path, "custom_agent.py"):
        async with AgentChat("guess", "game") as chat:
            assert "from 1 to 20" in await say(chat, "hello")
            low, high = 1, 20
            for _ in range(6):
                middle = (low + high) // 2
                said = await say(chat, str(middle))
                if said.startswith("Yes!"):
                    break
                low, high = (middle + 1, high) if "larger" in said else (low, middle - 1)
            assert said == f"Yes! {middle} it is."
        async with AgentChat("parrot") as chat:
            assert await say(chat, "polly wants a cracker") == "polly … wants … a … cracker … "


async def test_the_backend_begins_and_the_agent_ends_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, "head_start.py"):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.delitem(sys.modules, "head_start", raising=False)
        import head_start  # type: ignore[import-not-found]  # found on the path set just above

        question = {
            "id": "u1",
            "role": "user",
            "parts": [{"type": "text", "text": "what time is it?"}],
        }
        reducer = MessageReducer()
        async with (
            AsgiTransport(head_start.app) as transport,
            httpx2.AsyncClient(transport=transport, base_url="http://backend") as client,
        ):
            body = {"chatId": "c1", "headStartMessages": [question]}
            async with client.stream("POST", "/chat", json=body) as response:
                async for line in response.aiter_lines():
                    chunk = msgspec.json.decode(line[6:]) if line else {"type": "trigger:none"}
                    if not chunk["type"].startswith("trigger:"):
                        reducer.feed(chunk)
            started = (await client.post("/start/c2")).json()

        states = [part.get("state") for part in reducer.message["parts"] if "output" in part]
        assert states == ["output-available"]
        assert started["publicAccessToken"].count(".") == 2
