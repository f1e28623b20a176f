"""Agents and tasks that the tests with real processes talk to."""

import asyncio
import os
from pathlib import Path

from everturn import chat, sessions, task

SLOW_WORDS = 40


@chat.agent("echo")
async def echo(turn: chat.Turn):
    """Answers at once, with what it was sent."""
    return f"echo: {chat.text_of(turn.ui_messages[-1])}"


@chat.agent("slow")
async def slow(turn: chat.Turn):
    """Streams forty words over about two seconds, or one word for "short"."""
    if chat.text_of(turn.ui_messages[-1]) == "short":
        yield "short"
        return
    for word in range(SLOW_WORDS):
        yield f"w{word} "
        await asyncio.sleep(0.05)


@chat.agent("eager", idle_timeout=0)
async def eager(turn: chat.Turn):
    """Suspends directly after each answer."""
    return f"answer {len(turn.ui_messages)}"


@chat.agent("deadly")
async def deadly(turn: chat.Turn):
    """Kills its own process in the middle of every answer to "die"."""
    text = chat.text_of(turn.ui_messages[-1])
    yield "before "
    if text == "die":
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), 9)
    yield f"after {text}"


@chat.agent("counting")
async def counting(turn: chat.Turn):
    """Writes a line to a file for each turn it runs: the side effects a test counts."""
    text = chat.text_of(turn.ui_messages[-1])
    with Path(os.environ["EVERTURN_TEST_LEDGER"]).open("a") as ledger:
        ledger.write(f"{turn.chat_id} {text}\n")
    for word in ("you", " said ", text):
        yield word
        await asyncio.sleep(0.02)


@task("inbox")
async def inbox(payload):
    """Echoes whatever lands on its input, until "bye"."""
    session = sessions.open(payload["sessionId"])
    while True:
        result = await session.in_.wait_with_idle_timeout(idle_timeout=1, timeout="1h")
        if not result.ok or result.output == "bye":
            await session.out.append({"said": "goodbye"})
            return {"ended": True}
        await session.out.append({"echo": result.output})
