"""Agents with tools, for the tests with real processes.

Their model is scripted: it calls the tools that the newest message names, all in one step, and
then says what came back.
"""

import os
from pathlib import Path

import anyio
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from everturn import AgentChat, ai, chat, task


class Order(BaseModel):
    what: str = "tea"


def scripted(*names: str) -> Agent:
    async def model(messages, info):
        prompt, returned = "", {}
        for message in messages:
            for part in message.parts:
                if isinstance(part, UserPromptPart):
                    prompt, returned = str(part.content), {}
                elif isinstance(part, ToolReturnPart):
                    returned[part.tool_name] = part.model_response_str()
        wanted = [name for name in names if name in prompt]
        if returned or not wanted:
            yield "; ".join(f"{k}: {v}" for k, v in returned.items()) or f"you said {prompt}"
            return
        yield "One moment. "
        for place, name in enumerate(wanted):
            yield {place: DeltaToolCall(name=name, json_args="{}")}

    return Agent(FunctionModel(stream_function=model))


# --- people -------------------------------------------------------------------------------------


def note(line: str) -> None:
    with Path(os.environ["EVERTURN_TEST_LEDGER"]).open("a") as ledger:
        ledger.write(line + "\n")


@chat.tool(needs_approval=True)
async def pay(order: Order, ctx: chat.ToolContext) -> dict:
    """Pay for something."""
    note(f"pay {ctx.chat_id}")
    return {"paid": order.what}


@chat.tool(needs_approval=True)
async def erase(order: Order, ctx: chat.ToolContext) -> str:
    """Erase something."""
    note(f"erase {ctx.chat_id}")
    return "erased"


@chat.streaming_tool(name="count", description="Count to three.", input=Order)
async def count(order: Order):
    for number in (1, 2, 3):
        yield {"counted": number}
        await anyio.sleep(0.01)


people_tools = [pay, erase, count, chat.client_tool("ask", "Ask the person.", Order)]
people_model = scripted("pay", "erase", "count", "ask")


@chat.agent("people", tools=people_tools, idle_timeout=0)
async def people(turn: chat.Turn):
    return turn.stream(people_model, **chat.run_options(tools=turn.tools))


# --- tasks as tools -----------------------------------------------------------------------------


class Kitchen(BaseModel):
    cups: int = 0


kitchen = chat.local("kitchen", Kitchen)


@task(id="brew")
async def brew_task(order: Order, ctx):
    """Brew something."""
    async with chat.stream.writer() as writer:
        writer.write({"type": "data-brewing", "data": {"what": order.what}, "transient": True})
    context = ai.chat_context_or_raise()
    return {
        "brewed": order.what,
        "call": ai.tool_call_id(),
        "chat": context.chat_id,
        "user": context.client_data,
        "cups": kitchen.cups,
        "tags": list(ctx.run.tags),
    }


@task(id="simmer")
async def simmer_task(order: Order):
    """Never done."""
    await anyio.sleep_forever()


@task(id="grind")
async def grind_task(order: Order):
    """Another task that a tool call may run beside the first."""
    return "ground"


@task(id="roast")
async def roast_task(order: Order):
    """Takes a second."""
    await anyio.sleep(1)
    return "done"


cook_tools = [
    chat.tool(ai.tool_execute(grind_task), name="grind"),
    chat.tool(ai.tool_execute(roast_task), name="roast", needs_approval=True),
    chat.tool(ai.tool_execute(brew_task), name="brew"),
    chat.tool(ai.tool_execute(simmer_task), name="simmer"),
]
cook_model = scripted("brew", "grind", "simmer", "roast")


@chat.agent("cook", tools=cook_tools)
async def cook(turn: chat.Turn):
    return turn.stream(cook_model, **chat.run_options(tools=turn.tools))


@cook.on_boot
async def set_table(event):
    kitchen.init({"cups": 7})


# --- sub-agents ---------------------------------------------------------------------------------


@chat.agent("helper")
async def helper(turn: chat.Turn):
    """Counts the messages it was sent in this conversation; "slowly" takes twenty seconds."""
    said = sum(message["role"] == "user" for message in turn.ui_messages)
    yield f"answer {said}"
    if "slowly" in turn.text:
        for _ in range(400):
            yield "."
            await anyio.sleep(0.05)


@chat.streaming_tool(
    name="consult",
    description="Ask the helper, who remembers.",
    input=Order,
    to_model_output=chat.text_of,
)
async def consult(order: Order, ctx: chat.ToolContext):
    async with AgentChat("helper", id=f"{ctx.chat_id}-helper") as colleague:
        stream = await colleague.send_message(order.what, signal=ctx.signal)
        async for snapshot in stream.messages():
            yield snapshot


@chat.streaming_tool(name="dawdle", description="Ask the helper something long.", input=Order)
async def dawdle(order: Order, ctx: chat.ToolContext):
    async with AgentChat("helper", id=f"{ctx.chat_id}-helper") as colleague:
        stream = await colleague.send_message("slowly", signal=ctx.signal)
        async for snapshot in stream.messages():
            yield snapshot


@chat.streaming_tool(name="once", description="Ask a helper once.", input=Order)
async def once(order: Order, ctx: chat.ToolContext):
    async with AgentChat("helper", id=f"{ctx.chat_id}-once", close_on_exit=True) as colleague:
        stream = await colleague.send_message(order.what, signal=ctx.signal)
        async for snapshot in stream.messages():
            yield snapshot


lead_tools = [consult, dawdle, once]
lead_model = scripted("consult", "dawdle", "once")


@chat.agent("lead", tools=lead_tools)
async def lead(turn: chat.Turn):
    return turn.stream(lead_model, **chat.run_options(tools=turn.tools))
