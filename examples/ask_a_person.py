"""A question that may take days: the call waits in the log, and nothing else waits.

    everturn dev examples/ask_a_person.py
    everturn chat planner                     # ask: "ask_person, please"

The model calls a tool that has no code. The turn ends there; with `idle_timeout=0` the run gives up
its slot at once. Whoever answers sends the assistant's message back with the output in it: a page,
a form in an email, another service, hours later, after a deploy or a crash. The answer goes on in
the same message. `tools_and_approval.py` shows the same with approvals.
"""

from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import AgentChat, chat
from everturn.chat.adapters.offline import offline_model

OUTBOX = []  # stands for the mail you send


class Question(BaseModel):
    question: str


planner_model = Agent(offline_model())
ask_person = chat.client_tool("ask_person", "Ask the person in charge; may take days.", Question)


@chat.agent("planner", tools=[ask_person], idle_timeout=0, turn_timeout="7d")
async def planner(turn: chat.Turn):
    return turn.stream(planner_model, **chat.run_options(tools=turn.tools))


@planner.on_turn_complete
def notify(event: chat.TurnCompleteEvent):
    """The turn is durable: whoever is told now can answer at once."""
    calls = chat.history.get_pending_tool_calls()
    OUTBOX.extend({"chat": event.chat_id, **call} for call in calls)


async def answer(waiting: dict, text: str) -> str:
    """What a form's handler does: only the part that is new has to be sent."""
    part = {
        "type": f"tool-{waiting['tool_name']}",
        "toolCallId": waiting["tool_call_id"],
        "state": "output-available",
        "output": text,
    }
    message = {"id": waiting["message_id"], "role": "assistant", "parts": [part]}
    async with AgentChat("planner", id=waiting["chat"]) as agent:
        return await (await agent.send_raw([message])).text()
