"""A provider's own package, and nothing between it and the chat.

    everturn dev examples/plain_provider.py
    everturn chat plain

With OPENAI_API_KEY set (and `pip install openai`) the model answers through the package of its
provider; without one, events of the same shape are played. `openai_chunks` takes either, and the
events of chat completions and of the responses interface alike; `anthropic_chunks` is its sister.
"""

import os

from everturn import chat
from everturn.chat.adapters.plain import openai_chunks


def ask(conversation):
    """The events of one answer; the request goes out when the answer is read."""
    if not os.environ.get("OPENAI_API_KEY"):
        return played(conversation[-1]["content"])
    from openai import AsyncOpenAI

    return AsyncOpenAI().chat.completions.create(
        model="gpt-5",
        messages=conversation,
        stream=True,
        stream_options={"include_usage": True},
    )


async def played(question):
    for word in f"You asked: {question}".split(" "):
        yield {"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    yield {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}


@chat.agent("plain")
async def plain(turn: chat.Turn):
    conversation = [
        {"role": message["role"], "content": chat.text_of(message)} for message in turn.ui_messages
    ]
    return openai_chunks(ask(conversation))


@plain.on_turn_complete
def count(event: chat.TurnCompleteEvent):
    print("tokens so far:", event.total_usage.total_tokens if event.total_usage else 0)
