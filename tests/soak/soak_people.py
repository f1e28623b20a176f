"""People of a soak: they talk to agents through the official Python client, as people do.

One conversation after another: a few messages to one agent, with pauses. Some answers are read to
the end, some are stopped, some are left in the middle and picked up again by another client object
from its cursor, some are never looked at again. Tools ask for approval and get it. Some people have
a second tab open, which knows nothing of the first. Beside each conversation a reader follows its
whole log, over as many connections as it takes.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from everturn.client.agent_chat import AgentChat
from everturn.client.api import Api
from everturn.client.chat_stream import ChatStream
from everturn.client.config import Target
from everturn.client.follow import Follower
from everturn.errors import EverturnError
from everturn.protocol.records import Io, Record
from everturn.testing.checker import Acknowledged
from everturn.testing.verdicts import Shown

#: Agents of `tests/apps/simulated.py`, as often as they are chosen.
AGENTS: Final = ("echo", "echo", "eager", "eager", "slow", "slow", "paying", "moving", "forgetful")
#: Messages of one conversation. Bounded, so that what grows with a conversation does not look like
#: memory that leaks.
MESSAGES: Final = (3, 12)
#: How long a person waits for an answer before saying something else.
PATIENCE_S: Final = 90.0
#: How long a client waits on a stream that is silent, such as after coming back to an answer that
#: was over already.
SILENCE_S: Final = 30


@dataclass
class Conversation:
    """One session, and everything its judge needs to know."""

    key: str
    agent: str
    acknowledged: list[Acknowledged] = field(default_factory=list)
    #: Texts that were sent, whether or not the client heard that they were stored.
    tried: list[str] = field(default_factory=list)
    seen: list[Record] = field(default_factory=list)
    #: Answers that were read to their ends.
    shown: list[Shown] = field(default_factory=list)


class NotingApi(Api):
    """Notes every append that was acknowledged."""

    conversation: Conversation
    #: The number of what this client had acknowledged last.
    newest = -1

    async def append(
        self, session: str, io: Io, text: str, *, part_id: str, base_url: str | None = None
    ) -> int | None:
        seq = await super().append(session, io, text, part_id=part_id, base_url=base_url)
        assert seq is not None
        told = Acknowledged(session, io, part_id, seq, text)
        self.conversation.acknowledged.append(told)
        self.newest = seq
        return seq


class Person:
    """Talks to one agent, in one tab of a conversation."""

    def __init__(
        self,
        conversation: Conversation,
        target: Target,
        chance: random.Random,
        happened: Counter[str],
        think_s: float,
        tab: str = "",
    ) -> None:
        self._conversation = conversation
        self._tab = tab
        self._target = target
        self._chance = chance
        self._happened = happened
        self._think_s = think_s
        self._chat = self._client()

    def _client(self, **options: Any) -> AgentChat:
        api = self._api = NotingApi(self._target)
        api.conversation = self._conversation
        return AgentChat(
            self._conversation.agent,
            self._conversation.key,
            api=api,
            stream_timeout=SILENCE_S,
            **options,
        )

    async def talk(self, over: anyio.Event) -> None:
        """The whole conversation; shorter when `over` is set meanwhile."""
        messages = self._chance.randint(*MESSAGES)
        for number in range(messages):
            if over.is_set():
                break
            try:
                with anyio.move_on_after(PATIENCE_S) as waiting:
                    await self._say(number)
                if waiting.cancelled_caught:
                    self._happened["gave up waiting"] += 1
            except EverturnError:
                self._happened["request failed"] += 1  # people try something else then
            with anyio.move_on_after(self._chance.expovariate(1 / self._think_s)):
                await over.wait()
        with anyio.move_on_after(10, shield=True):
            await self._chat.close()
            await self._chat.__aexit__(None, None, None)

    async def _say(self, number: int) -> None:
        agent, text = self._conversation.agent, f"{self._tab}m{number}"
        if agent == "forgetful" and self._chance.random() < 0.2:
            self._happened["actions"] += 1
            stream = await self._chat.send_action({"type": "forget"})
            await stream.text()
            return
        if agent == "paying" and self._chance.random() < 0.5:
            await self._pay(number)
            return
        self._conversation.tried.append(text)
        stream = await self._chat.send_message(text)
        self._happened["messages"] += 1
        sent = self._api.newest
        mood = self._chance.choice(("patient", "patient", "patient", "stops", "leaves", "is gone"))
        at = self._chance.randrange(1, 12)
        seen, said = 0, ""
        async for chunk in stream:
            seen += 1
            if chunk["type"] == stream.RESTARTED:
                said = ""
            said += str(chunk.get("delta", "")) if chunk["type"] == "text-delta" else ""
            if seen != at:
                continue
            if mood == "stops":
                self._happened["stops"] += 1
                await self._chat.stop()
            elif mood != "patient":
                await self._leave(stream, comes_back=mood == "leaves")
                return
        if stream.complete:
            self._conversation.shown.append(Shown(sent, said, stream.error))

    async def _leave(self, stream: ChatStream, *, comes_back: bool) -> None:
        """Close the tab; perhaps open another, which goes on where this one was."""
        await stream.aclose()
        if not comes_back:
            return
        self._happened["reconnects"] += 1
        await anyio.sleep(self._chance.uniform(0, 1))
        await self._chat.__aexit__(None, None, None)
        self._chat = self._client(session=self._chat.session)
        again = await self._chat.reconnect()
        if again is not None:
            await again.text()

    async def _pay(self, number: int) -> None:
        """Ask for something that needs approval, and approve it."""
        stream = await self._chat.send_message("pay")
        asked = (await stream.result()).message
        self._happened["messages"] += 1
        parts = asked["parts"] if asked is not None else []
        waiting = [p for p in parts if p.get("state") == "approval-requested"]
        if asked is None or not waiting:
            return
        self._happened["approvals"] += 1
        answered = {**waiting[0], "state": "approval-responded"}
        answered["approval"] = {**waiting[0]["approval"], "approved": True}
        stream = await self._chat.send_raw([{**asked, "parts": [answered]}])
        await stream.text()


async def read_along(conversation: Conversation, target: Target) -> None:
    """Follow the whole log of a conversation, until cancelled."""
    while True:
        after = conversation.seen[-1].seq_num if conversation.seen else None
        try:
            reader = Follower(Api(target), conversation.key, after=after, endless=True)
            async with reader:
                async for record in reader:
                    # One by one: the judge looks at the list while this waits.
                    conversation.seen.append(record)
        except EverturnError:
            await anyio.sleep(0.5)
