"""What becomes of a message that arrives while the agent is still answering: one word.

    everturn dev examples/message_policy.py
    everturn chat search          # or: booking

| `on_busy` | a message in mid-answer |
|---|---|
| `queue` | has its turn afterwards (the default) |
| `steer` | joins the answer at its next step, see steering.py |
| `latest` | waits, and replaces others that wait |
| `interrupt` | as `latest`, and the answer in progress stops |
| `reject` | is refused |

It is kept whatever the word is, and what gets no answer is closed with a visible error.
"""

import anyio

from everturn import chat

WORD_S = 0.1


async def slowly(text):
    for word in text.split():
        yield f"{word} "
        await anyio.sleep(WORD_S)


@chat.agent("search", on_busy="interrupt")
async def search(turn: chat.Turn):
    """Only the newest question matters: who types on wants no answer to half a question."""
    return slowly(f"All about {turn.text}, page after page after page.")


@chat.agent("booking", on_busy="reject")
async def booking(turn: chat.Turn):
    """One booking at a time, and none by accident."""
    return slowly(f"Booked: {turn.text}.")
