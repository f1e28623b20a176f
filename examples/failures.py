"""When things go wrong: what the user is told, what is kept, what you hear of it.

    everturn dev examples/failures.py
    python examples/failures.py

An exception in the agent or one of its hooks fails the turn, and a failure of the model fails the
answer: either way the user sees an error, what was already said is kept, and the next message is
answered as if nothing had happened. A tool that fails is told to the model, which may get around
it. Nothing is tried twice by itself, because the user can see it and decide.
"""

import asyncio

from everturn import AgentChat, chat

REPORTED = []  # stands for your error tracker


class Refused(Exception):
    """Says something that a user may read."""


def shown(error: BaseException) -> str:
    """Only what was written for users; by default it is what the exception says."""
    return str(error) if isinstance(error, Refused) else "Something went wrong. Please try again."


@chat.agent("fragile", on_error=shown)
async def fragile(turn: chat.Turn):
    yield "Let me see. "
    if "password" in turn.text:
        raise Refused("I do not talk about passwords.")
    if "crash" in turn.text:
        raise KeyError("secret internals")
    yield "All is well."


@fragile.on_turn_complete
def report(event: chat.TurnCompleteEvent):
    """Also after a turn that failed; `error` is the exception itself."""
    if event.error is not None:
        REPORTED.append(repr(event.error))


async def talk() -> None:
    async with AgentChat("fragile") as agent:
        for text in ("my password is 1234", "crash, please", "how are you?"):
            result = await (await agent.send_message(text)).result()
            print({"said": result.text, "error": result.error})


if __name__ == "__main__":
    asyncio.run(talk())
