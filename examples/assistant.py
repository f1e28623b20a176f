"""A chat agent in twenty lines.

    everturn dev examples/assistant.py
    everturn chat assistant

With OPENAI_API_KEY or ANTHROPIC_API_KEY set (and `pip install "everturn[openai]"` or
`"everturn[anthropic]"`) a real model answers; without one, a built-in offline model does.
"""

import os
from datetime import UTC, datetime

from pydantic_ai import Agent

from everturn import chat
from everturn.chat.adapters.offline import offline_model


def model():
    if os.environ.get("OPENAI_API_KEY"):
        return "openai:gpt-5"
    if os.environ.get("ANTHROPIC_API_KEY"):
        return "anthropic:claude-sonnet-4-5"
    return offline_model()


assistant = Agent(model(), instructions="Be brief and friendly.")


@assistant.tool_plain
def current_time() -> str:
    """The time right now, in UTC."""
    return datetime.now(UTC).strftime("%H:%M:%S UTC")


@chat.agent("assistant")
async def run(turn: chat.Turn):
    return turn.stream(assistant)
