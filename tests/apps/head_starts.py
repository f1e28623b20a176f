"""Agents whose first answer may begin elsewhere."""

from pydantic_ai import Agent

from everturn import chat
from everturn.chat.adapters.offline import offline_model


def current_time() -> str:
    """The time, as this side knows it."""
    return "noon"


model = Agent(offline_model(), tools=[current_time])


@chat.agent("timekeeper")
async def timekeeper(turn: chat.Turn):
    """Runs its tools here, whoever asked for them."""
    return turn.stream(model)


@chat.custom_agent("own-loop")
async def own_loop(payload):
    """The same in a loop of its own."""
    async with chat.create_session(payload) as session:
        async for turn in session:
            if turn.handover is not None and turn.handover.is_final:
                await turn.complete()
            else:
                await turn.complete(turn.stream(model))
