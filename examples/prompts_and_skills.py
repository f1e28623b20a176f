"""Prompts with variables, skills a model reads when it needs them, and a cached beginning.

    everturn dev examples/prompts_and_skills.py
    everturn chat clerk

A prompt is declared once, with its settings, and filled in per run. A skill is a folder: the model
is told its name and what it is for, and has tools to read the rest. `chat.run_options` puts both
into the call of the model. Its `cache_control` marks the instructions as worth caching, for
providers that want to be told; so the prompt holds nothing that changes from turn to turn.
"""

from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import chat, prompts, skills
from everturn.chat.adapters.offline import offline_model


class Client(BaseModel):
    shop: str = "Owl & Sons"
    is_regular: bool = False


clerk_prompt = prompts.define(
    "clerk",
    "You are a clerk of {{shop}}.{{#is_regular}} You know this customer well.{{/is_regular}}",
    config={"temperature": 0.2},
    variables=Client,
)
refunds = skills.define("refunds", "skills/refunds")
clerk_model = Agent(offline_model())


@chat.agent("clerk", client_data=Client)
async def clerk(turn: chat.Turn[Client]):
    cached = {"type": "ephemeral", "ttl": "1h"}
    return turn.stream(clerk_model, **chat.run_options(tools=turn.tools, cache_control=cached))


@clerk.on_boot
async def equip(event: chat.BootEvent):
    """Once per run: what stands here is the same in every request, so it can be cached."""
    chat.prompt.set(await clerk_prompt.resolve(event.client_data))
    chat.skills.set([await refunds.local()])
