"""Talking to an agent while it works: what users say meanwhile joins the turn.

    everturn dev examples/steering.py
    python examples/steering.py

Before each request to the model, messages that wait are offered to the agent. Here those that begin
with "also" are taken in: the next request of the same turn contains them, and the answer holds a
mark where they joined. Anything else is left alone and becomes a turn of its own, in order.
"""

import asyncio

import anyio
from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import AgentChat, PendingMessages, chat
from everturn.chat.adapters.offline import offline_model


class Subject(BaseModel):
    """What to look into."""

    number: int


@chat.tool(name="research")
async def research(subject: Subject) -> str:
    """Look into something; takes a while."""
    await anyio.sleep(1)
    return f"{subject.number} is a fine number"


def concerns_this_turn(batch: chat.PendingBatch) -> bool:
    """Asked about all that waits: they are taken together, or not at all."""
    return all(chat.text_of(message).startswith("also") for message in batch.messages)


researcher = Agent(offline_model(), instructions="Research, then answer all that was asked.")


@chat.agent(
    "steerable",
    tools=[research],
    pending_messages=PendingMessages(should_inject=concerns_this_turn),
)
async def steerable(turn: chat.Turn):
    return turn.stream(researcher, **chat.run_options(tools=turn.tools))


async def talk() -> None:
    async with AgentChat("steerable") as agent:
        stream = await agent.send_message("research number 7")
        async for chunk in stream:
            if chunk["type"] == "tool-input-available":
                await agent.steer("also say who told you")
            if chunk["type"] == chat.PENDING_MESSAGE_INJECTED_TYPE:
                print("joined:", [message["text"] for message in chunk["data"]["messages"]])
        print("complete:", stream.complete)


if __name__ == "__main__":
    asyncio.run(talk())
