"""Agents of the OpenAI Agents SDK: tools, a handoff, and a person who is asked first.

    pip install 'everturn[openai-agents]'
    everturn dev examples/openai_agents.py
    everturn chat desk

`run_agent` gives the SDK the chat's history and streams what it does. "I want a refund for order 7"
is handed over to another agent, whose tool waits for a person's yes; the conversation stays with
that agent. With OPENAI_API_KEY set a model of OpenAI answers, without one a script is played.
"""

import os

from agents import Agent, ModelSettings, RunConfig, function_tool, set_tracing_disabled
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from everturn import chat
from everturn.chat.adapters.openai_agents import run_agent


@function_tool
def order_status(order: int) -> str:
    """Where an order is."""
    return f"order {order} is on its way"


@function_tool(needs_approval=True)
def refund(order: int) -> str:
    """Pay an order back."""
    return f"order {order} is paid back"


refunds = Agent(name="Refunds", instructions="Pay back what was asked for.", tools=[refund])
front = Agent(
    name="Desk",
    instructions="Answer questions about orders; hand refunds over.",
    tools=[order_status],
    handoffs=[refunds],
)


def play(call):
    """What the script answers: it looks at the newest item of the conversation only."""
    last, call_id = call.input[-1], f"call-{len(call.input)}"
    if last.get("type") == "function_call_output":
        if last["output"] == '{"assistant": "Refunds"}':
            return [function_call("refund", {"order": 7}, call_id=call_id)]
        return [say(last["output"])]
    said = last["content"][0]["text"]
    if "refund" in said:
        return [function_call("transfer_to_refunds", {}, call_id=call_id)]
    if "order" in said:
        return [function_call("order_status", {"order": 7}, call_id=call_id)]
    return [say(f"you said: {said}")]


def say(words):
    return assistant_message(f"Well, {words}.")


config = RunConfig(model_settings=ModelSettings(include_usage=True))
if not os.environ.get("OPENAI_API_KEY"):
    set_tracing_disabled(True)
    config = RunConfig(model=ScriptedModel([ModelStep.respond(play)] * 1000))


@chat.agent("desk")
async def desk(turn: chat.Turn):
    return run_agent(front, turn, run_config=config)
