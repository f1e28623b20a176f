"""Agents for the benchmarks: no model, so that what is measured is everturn."""

import asyncio

from everturn import chat


@chat.agent("ping")
async def ping(turn: chat.Turn):
    yield "pong"


@chat.agent("parked", idle_timeout=0)
async def parked(turn: chat.Turn):
    return "here"


@chat.agent("paced", idle_timeout=60)
async def paced(turn: chat.Turn):
    """Tokens at a rate: "20 100" is twenty a second, a hundred of them."""
    rate, count = chat.text_of(turn.ui_messages[-1]).split()
    loop = asyncio.get_running_loop()
    due = loop.time()
    for _ in range(int(count)):
        due += 1 / float(rate)
        await asyncio.sleep(max(0.0, due - loop.time()))
        yield f"{loop.time():.6f} "


@chat.agent("echo", max_turns=100_000)
async def echo(turn: chat.Turn):
    return "You said: " + chat.text_of(turn.ui_messages[-1])
