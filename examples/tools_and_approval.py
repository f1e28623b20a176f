"""Four kinds of tools, and a person who decides.

    everturn dev examples/tools_and_approval.py
    python examples/tools_and_approval.py

The model may look up an order by itself, asks the customer where to send it, shows how packing
goes, and needs a yes before it refunds money. A call that waits for a person ends the turn: the
run costs nothing meanwhile, and the answer may come after a weekend, a deploy or a crash.
"""

import asyncio

import anyio
from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import AgentChat, ai, chat, task
from everturn.chat.adapters.offline import offline_model
from everturn.chat.reducer import MessageReducer


class Order(BaseModel):
    """An order, by its number."""

    number: int


@chat.tool(name="look_up")
async def look_up(order: Order) -> dict:
    """Look up an order."""
    return {"number": order.number, "status": "paid", "total": 40}


@chat.streaming_tool(name="pack", description="Pack an order.", input=Order)
async def pack(order: Order):
    for percent in (0, 50, 100):
        yield {"packed": percent}
        await anyio.sleep(0.1)


@task(id="refund")
async def refund_task(order: Order):
    """Refund an order. As a task it has retries and a run of its own."""
    return {"refunded": order.number}


refund = chat.tool(ai.tool_execute(refund_task), name="refund", needs_approval=True)
ask_address = chat.client_tool("ask_address", "Ask the customer for an address.", Order)

shop_agent = Agent(offline_model(), instructions="Help with orders.")


@chat.agent("shop", tools=[look_up, pack, refund, ask_address])
async def shop(turn: chat.Turn):
    return turn.stream(shop_agent, **chat.run_options(tools=turn.tools))


async def show(stream, message=None) -> dict:
    """Print an answer; returns the message it built, continuing `message`."""
    reducer = MessageReducer(message)
    async for chunk in stream:
        reducer.feed(chunk)
        if chunk["type"] in ("tool-output-available", "tool-approval-request"):
            print("  ", chunk)
    stream.raise_for_error()
    print(chat.text_of(reducer.message))
    return reducer.snapshot()


async def customer() -> None:
    async with AgentChat("shop") as shop_chat:
        await show(await shop_chat.send_message("look up order 7"))
        await show(await shop_chat.send_message("pack order 7"))

        # The call waits; a client shows it, and sends the message back with the decision in it.
        asked = await show(await shop_chat.send_message("refund order 7"))
        call = asked["parts"][-1]
        call.update(state="approval-responded", approval={**call["approval"], "approved": True})
        await show(await shop_chat.send_raw([asked]), asked)

        # A tool without code is answered in the same way, with its output.
        asked = await show(await shop_chat.send_message("ask address for order 7"))
        asked["parts"][-1].update(state="output-available", output="12 Owl Lane")
        await show(await shop_chat.send_raw([asked]), asked)


if __name__ == "__main__":
    asyncio.run(customer())
