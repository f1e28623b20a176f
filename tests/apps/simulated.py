"""Agents for tests in virtual time. Nothing here looks at a real clock, or at the machine."""

import anyio
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelResponse,
    RetryPromptPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from everturn import AgentChat, chat


def newest(turn: chat.Turn) -> str:
    return chat.text_of(turn.ui_messages[-1])


@chat.agent("echo")
async def echo(turn: chat.Turn):
    """Answers in three pieces."""
    for piece in ("you", " said ", newest(turn)):
        yield piece
        await anyio.sleep(0.02)


@chat.agent("slow")
async def slow(turn: chat.Turn):
    """Sixty words over three seconds; one for "short", and 200 seconds of them for "long"."""
    if newest(turn) == "short":
        yield "short"
        return
    for word in range(4000 if newest(turn) == "long" else 60):
        yield f"w{word} "
        await anyio.sleep(0.05)


@chat.agent("eager", idle_timeout=0)
async def eager(turn: chat.Turn):
    """Suspends directly after each answer; says how many messages it knows of."""
    yield f"answer {len(turn.ui_messages)}"


@chat.agent("asking")
async def asking(turn: chat.Turn):
    """Asks another agent, in a chat of its own for each message."""
    helper = f"{turn.chat_id}-helper-{newest(turn)}"
    async with AgentChat("echo", helper) as other:
        answer = await other.send_message(newest(turn))
        yield f"it says: {await answer.text()}"


@chat.agent("moving")
async def moving(turn: chat.Turn):
    """Its first run hands over before it answers."""
    yield f"answer {len(turn.ui_messages)}"


@moving.on_turn_start
def hand_over(event):
    if not event.continuation:
        chat.request_upgrade()


@chat.agent("forgetful")
async def forgetful(turn: chat.Turn):
    yield f"knows {len(turn.ui_messages)}"


@forgetful.on_action
async def forget(event):
    """Drops everything said so far."""
    chat.history.set([])


class Order(BaseModel):
    what: str = "tea"


@chat.tool(needs_approval=True)
async def pay(order: Order) -> dict:
    """Pay for something."""
    return {"paid": order.what}


@chat.tool
async def look(order: Order) -> dict:
    """Takes a while to look for something."""
    await anyio.sleep(0.5)
    return {"found": order.what}


def scripted(*tools: str) -> Agent:
    """A model that calls the tool its prompt names, and then says what it was told."""

    async def script(messages, info):
        prompts, returned = [], ""
        for message in messages:
            for part in message.parts:
                if isinstance(part, UserPromptPart):
                    prompts.append(str(part.content))
                    if part.content in tools:
                        returned = ""
                elif isinstance(part, ToolReturnPart):
                    returned = part.model_response_str()
        if prompts[-1] in tools and not returned:
            # The library's own ids come from the machine's randomness.
            call_id = f"{prompts[-1]}-{len(messages)}"
            yield {0: DeltaToolCall(prompts[-1], "{}", tool_call_id=call_id)}
        else:
            yield f"{prompts[-1]}: {returned}"

    return Agent(FunctionModel(stream_function=script))


_pays, _looks = scripted("pay"), scripted("look")


@chat.agent("paying", tools=[pay])
async def paying(turn: chat.Turn):
    return turn.stream(_pays, **chat.run_options(tools=turn.tools))


@chat.agent("looking", tools=[look], on_busy="steer")
async def looking(turn: chat.Turn):
    return turn.stream(_looks, **chat.run_options(tools=turn.tools))


async def _audit(messages, info):
    """A model that looks for something, and refuses a history as real ones do.

    Providers answer 400 to a tool call without its result; every later message of the
    conversation then fails, which is what a poisoned history is.
    """
    parts = [part for message in messages for part in message.parts]
    called = {part.tool_call_id for part in parts if isinstance(part, ToolCallPart)}
    returned = {
        part.tool_call_id for part in parts if isinstance(part, ToolReturnPart | RetryPromptPart)
    }
    if called != returned:
        raise ValueError(f"calls {sorted(called)} and results {sorted(returned)}")
    prompts = [part for part in parts if isinstance(part, UserPromptPart)]
    if prompts[-1].content == "look" and not isinstance(parts[-1], ToolReturnPart):
        yield "let me see"
        yield {1: DeltaToolCall("look", "{}", tool_call_id=f"look-{len(messages)}")}
        return
    answers = sum(isinstance(message, ModelResponse) for message in messages)
    yield f"{len(prompts)} prompts and {'some' if answers else 'no'} answers"


_audits = Agent(FunctionModel(stream_function=_audit))


@chat.agent("strict", tools=[look])
async def strict(turn: chat.Turn):
    return turn.stream(_audits, **chat.run_options(tools=turn.tools))
