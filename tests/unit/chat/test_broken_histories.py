"""P-8: a history cannot be poisoned, however it was broken and whichever way it came in.

`corpus_histories/` holds broken histories, each with a sentence that says what is broken and the
texts that are worth keeping. Each goes through every road a history takes: stored in a snapshot,
replayed from the log, given by the author, sent by a client, put there by a hook. After each of
them the chat answers its next message, with a request that no provider refuses (`strict_provider`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic_ai import Agent
from strict_provider import ANSWER, said, strict_model

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.protocol import lenient, nesting
from everturn.tasks import registry
from everturn.testing.harness import ChatHarness, mock_chat_agent
from everturn.testing.models import ScriptedModel
from everturn.testing.runtime import SNAPSHOT

pytestmark = pytest.mark.anyio
Json = dict[str, Any]
CORPUS: Final = Path(__file__).parent / "corpus_histories"
NEXT: Final = "are you still there?"
NO_MESSAGE: Final = "what was sent is no message: it needs a known role"
NO_SUCH_CALL: Final = "this chat holds no such tool call to approve"
#: The library's word for a chat in which nobody has said anything yet.
NOTHING_SAID: Final = "No message history, user prompt, or instructions provided"


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


# --- the corpus -----------------------------------------------------------------------------------


def names(kind: str) -> list[str]:
    return sorted(path.stem for path in (CORPUS / kind).glob("*.json"))


def load(kind: str, name: str) -> Json:
    """A file of the corpus, with what it abbreviates written out."""
    found: Json = _whole(json.loads((CORPUS / kind / f"{name}.json").read_text()))
    return found


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        if "$repeat" in value:
            text, times = value["$repeat"]
            return text * times
        if "$nested" in value:
            made: Any = "inside"
            for _ in range(value["$nested"]):
                made = [made]
            return made
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        made = []
        for item in value:
            if isinstance(item, dict) and "$times" in item:
                times, repeated = item["$times"]
                made += [dict(repeated) for _ in range(times)]
            else:
                made.append(_whole(item))
        return made
    return value


def as_json(value: Any) -> str:
    """JSON as any program may write it: half characters included."""
    return json.dumps(value)


# --- an agent that is asked by a strict provider --------------------------------------------------


class Asked:
    """An agent on a strict model; `model.requests` is what the provider got."""

    def __init__(self, **options: Any) -> None:
        self.model: ScriptedModel = strict_model(200)
        model = Agent(self.model)

        @chat.agent("asked", **options)
        async def asked(turn: Any) -> Any:
            return turn.stream(model)

        self.agent: ChatAgent[Any] = asked

    def heard(self) -> str:
        return said(self.model.requests[-1])


@asynccontextmanager
async def continuation(asked: Asked) -> AsyncIterator[ChatHarness]:
    """A harness whose run has a past that the test stores before it boots."""
    async with mock_chat_agent(asked.agent, mode="continuation", start=False) as h:
        yield h


async def goes_on(h: ChatHarness, asked: Asked, keeps: list[str]) -> None:
    """The next message is answered, twice over, and the model heard all that was worth keeping."""
    turn = await h.send_message(NEXT)
    assert (turn.text, turn.errors) == (ANSWER, [])
    heard = asked.heard()
    assert NEXT in heard
    assert [text for text in keeps if text not in heard] == []
    again = await h.send_message("and now?")
    assert (again.text, again.errors) == (ANSWER, [])
    assert [text for text in keeps if text not in asked.heard()] == []


# --- the roads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("messages"))
async def test_a_chat_goes_on_with_a_broken_history_in_its_snapshot(name: str) -> None:
    """P-8, R-153."""
    broken = load("messages", name)
    asked = Asked()
    async with continuation(asked) as h:
        stored = {"version": 1, "savedAt": 1, "messages": broken["messages"]}
        await h.world.objects.put(SNAPSHOT, as_json(stored).encode())
        await h.start()
        await goes_on(h, asked, broken["keeps"])


@pytest.mark.parametrize("name", names("messages"))
async def test_a_chat_goes_on_with_a_broken_history_its_author_keeps(name: str) -> None:
    """P-8: `hydrate_messages` returns what some store of his holds."""
    broken = load("messages", name)
    asked = Asked()
    said_since: list[Json] = []

    @asked.agent.hydrate_messages
    def stored(event: Any) -> list[Any]:
        said_since.extend(event.incoming_messages)
        return [*load("messages", name)["messages"], *said_since]

    async with mock_chat_agent(asked.agent) as h:
        await goes_on(h, asked, broken["keeps"])


@pytest.mark.parametrize("name", names("messages"))
async def test_a_chat_goes_on_with_a_broken_history_that_a_hook_sets(name: str) -> None:
    """P-8: `chat.history.set`, `chat.set_messages`."""
    broken = load("messages", name)
    asked = Asked()

    @asked.agent.on_action
    def restore(event: Any) -> None:
        chat.history.set(broken["messages"])

    async with mock_chat_agent(asked.agent) as h:
        assert (await h.send_action({"restore": 1})).errors == []
        await goes_on(h, asked, broken["keeps"])


@pytest.mark.parametrize("name", names("messages"))
async def test_a_chat_goes_on_after_a_client_sent_a_broken_history(name: str) -> None:
    """P-8: message by message, whatever each of them is. One that is none fails visibly."""
    broken = load("messages", name)
    asked = Asked()
    async with mock_chat_agent(asked.agent) as h:
        sent = [m for m in broken["messages"] if not nesting.too_deep(as_json(m))]  # the door's
        for message in sent:
            await h.post(as_json(h.wire("submit-message", message=message)))
            await h.settled()
        turn = await h.send_message(NEXT)
        assert (turn.text, turn.errors) == (ANSWER, [])
        told = {error for found in await h.turns() for error in found.errors}
        assert told <= {NO_MESSAGE, NOTHING_SAID, NO_SUCH_CALL}
        assert len(await h.turns()) == len(sent) + 1


@pytest.mark.parametrize("name", names("messages"))
async def test_a_chat_goes_on_with_a_broken_history_of_a_head_start(name: str) -> None:
    """P-8: what the warm side says was said before."""
    broken = load("messages", name)
    asked = Asked()
    async with mock_chat_agent(asked.agent, start=False) as h:
        await h.send_head_start(lenient.decode(as_json(broken["messages"])))
        first = await h.send_handover([{"role": "assistant", "content": "warm"}], is_final=True)
        assert first.errors == []
        await goes_on(h, asked, broken["keeps"])


@pytest.mark.parametrize("name", names("messages"))
async def test_a_loop_of_the_authors_own_goes_on_with_a_broken_history(name: str) -> None:
    """P-8: `turn.set_messages`, as a continuation seeds what it stored."""
    broken = load("messages", name)
    model = strict_model(10)
    agent = Agent(model)

    @chat.custom_agent("own")
    async def own(payload: Any, ctx: Any) -> None:
        async with chat.create_session(payload) as session:
            async for turn in session:
                if turn.number == 0:
                    turn.set_messages([*broken["messages"], *turn.ui_messages])
                await turn.complete(chat.stream_agent(agent, messages=turn.messages))

    async with mock_chat_agent(own) as h:
        turn = await h.send_message(NEXT)
        assert (turn.text, turn.errors) == (ANSWER, [])
        heard = said(model.requests[-1])
        assert [text for text in [*broken["keeps"], NEXT] if text not in heard] == []


@pytest.mark.parametrize("name", names("logs"))
async def test_a_chat_goes_on_after_replaying_a_broken_log(name: str) -> None:
    """P-8, R-128."""
    broken = load("logs", name)
    asked = Asked()
    async with continuation(asked) as h:
        await h.seed_session_in_tail(broken["in"])
        await h.seed_out(*broken["out"])
        await h.start()
        await h.settled()
        await goes_on(h, asked, broken["keeps"])


@pytest.mark.parametrize("name", names("snapshots"))
async def test_a_chat_goes_on_without_a_snapshot_it_cannot_use(name: str) -> None:
    """P-8, R-023."""
    broken = load("snapshots", name)
    asked = Asked()
    async with continuation(asked) as h:
        stored = broken["stored"]
        whole = isinstance(stored, dict) and "$text" in stored
        data = stored["$text"] if whole else as_json(stored)
        await h.world.objects.put(SNAPSHOT, data.encode())
        await h.seed_session_in_tail(broken["in"])
        await h.seed_out(*broken["out"])
        await h.start()
        await goes_on(h, asked, broken["keeps"])
