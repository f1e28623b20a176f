"""A chat agent with a loop of its own: a guess-the-number game that remembers between messages.

    everturn dev examples/custom_agent.py
    everturn chat guess

`chat.agent` calls a function per turn. `chat.custom_agent` hands over the whole run: plain local
variables live as long as the conversation stays in memory, suspended or not. When the process goes
away the next message starts a new run; what must survive that belongs into a store of your own.
"""

import random

from everturn import chat


@chat.custom_agent("guess")
async def guess(payload, ctx):
    number = random.Random(payload["chatId"]).randint(1, 20)
    async with chat.create_session(payload, idle_timeout=30, timeout="1h") as session:
        async for turn in session:
            said = turn.text.strip()
            if not said.isdigit():
                await turn.complete("I think of a number from 1 to 20. Which one?")
            elif int(said) != number:
                hint = "larger" if int(said) < number else "smaller"
                await turn.complete(f"No, it is {hint}. That was guess {turn.number + 1}.")
            else:
                await turn.complete(f"Yes! {number} it is.")
                break


@chat.custom_agent("parrot")
async def parrot(payload, ctx):
    """The same without `create_session`: every step by hand."""
    async with chat.stop_signal() as stop:
        while payload is not None and payload.get("trigger") != "close":
            if "message" in payload:
                stop.reset()
                await chat.pipe(words(chat.text_of(payload["message"])), signal=stop.signal)
                await chat.write_turn_complete()
            payload = (await chat.messages.wait_with_idle_timeout(30, timeout="1h")).output


def words(text):
    yield from (f"{word} … " for word in text.split())
