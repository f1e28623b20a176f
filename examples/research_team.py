"""An agent that delegates to another agent, and shows its progress while it works.

    everturn dev examples/research_team.py
    everturn chat lead                        # ask: "research the colour of owls"

The lead's tool opens the researcher's chat with `AgentChat` and yields every snapshot of its
answer: each reaches the lead's clients as a preliminary tool output, the last one is the result.
The lead's model sees only the text of it. Stopping the lead stops the researcher, because the
tool passes its signal on.
"""

from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import AgentChat, chat
from everturn.chat.adapters.offline import offline_model


class Question(BaseModel):
    """What the researcher is asked."""

    question: str


@chat.agent("researcher")
async def researcher(turn: chat.Turn):
    """Stands for an agent with tools and a model of its own."""
    question = chat.text_of(turn.ui_messages[-1])
    for sentence in (f"I looked into {question!r}. ", "Two sources agree. ", "The answer is 42."):
        yield sentence


@chat.streaming_tool(
    name="research",
    description="Ask the researcher.",
    input=Question,
    to_model_output=chat.text_of,
)
async def research(input: Question, ctx: chat.ToolContext):
    async with AgentChat("researcher", close_on_exit=True) as colleague:
        stream = await colleague.send_message(input.question, signal=ctx.signal)
        async for snapshot in stream.messages():
            yield snapshot


lead_agent = Agent(offline_model(), instructions="Delegate research, then summarise it.")


@chat.agent("lead", tools=[research])
async def lead(turn: chat.Turn):
    return turn.stream(lead_agent, **chat.run_options(tools=turn.tools))
