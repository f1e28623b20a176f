"""Undo, edit and answer again: actions that change the history.

    everturn dev examples/history_actions.py
    python examples/history_actions.py

An action is no message: it has a type of its own, its own hook, and uses up no turn. What the
hook does to `chat.history` becomes the history before its turn-complete is written. It may return
something to stream, which is a new message. A crash in mid-action runs it again, so an action names
what it is about: undoing "the message u2" twice is undoing it once.
"""

import asyncio
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import AgentChat, chat
from everturn.chat.adapters.offline import offline_model


class Undo(BaseModel):
    """Forget this message of the user's, and all that came after it."""

    type: Literal["undo"] = "undo"
    message_id: str


class Edit(BaseModel):
    """Say something else instead, and have it answered."""

    type: Literal["edit"] = "edit"
    message_id: str
    text: str


talker = Agent(offline_model())


@chat.agent("editable", action=Undo | Edit)
async def editable(turn: chat.Turn):
    return turn.stream(talker)


@editable.on_action
def change(event: chat.ActionEvent):
    ids = [message["id"] for message in chat.history.all()]
    if event.action.message_id not in ids:
        return None  # it was done already
    chat.history.slice(0, ids.index(event.action.message_id))
    if isinstance(event.action, Undo):
        return None
    parts = [{"type": "text", "text": event.action.text}]
    edited = {"id": event.action.message_id, "role": "user", "parts": parts}
    chat.history.set([*chat.history.all(), edited])
    return chat.stream_agent(talker, messages=chat.history.all())


async def talk() -> None:
    async with AgentChat("editable") as agent:
        message = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "hullo"}]}
        print(await (await agent.send_raw([message])).text())
        print(await (await agent.send_action(Edit(message_id="u1", text="hello"))).text())
        await (await agent.send_action(Undo(message_id="u1"))).text()
        print(await (await agent.send_message("who are you?")).text())


if __name__ == "__main__":
    asyncio.run(talk())
