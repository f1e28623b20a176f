"""The agent behind the React example: tools, an approval, slow answers, messages in mid-answer.

    everturn dev agent.py

It needs no key: its model is the built-in offline one. Say "count to 30" for a long answer, "what
is the weather in Rome" for a tool, "send email to Ada" for one that needs a yes, or attach a file.

The page finds its history in `history.py`. Both of its writes keep messages and cursor consistent:
at the start of a turn the messages, with the cursor of the turn before, so that a page which is
loaded in mid-answer shows the question and reads the answer from its first word; at the end both.
"""

import os

import anyio
import history
from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import chat
from everturn.chat.adapters.offline import offline_model

#: A pause between two words of a long answer.
WORD_S = 0.1


class Question(BaseModel):
    question: str


class Email(BaseModel):
    to: str = "ada@example.com"


@chat.streaming_tool(name="weather", description="Answers about the weather.", input=Question)
async def weather(asked: Question):
    for source in ("satellite", "radar"):
        yield {"looking at": source}
        await anyio.sleep(5 * WORD_S)
    yield {"sky": "clear", "celsius": 21}


@chat.tool(name="send_email", needs_approval=True)
async def send_email(email: Email) -> dict:
    """Send an email. A person has to approve it."""
    return {"sent to": email.to}


TOOLS = [weather, send_email]
model = Agent(offline_model(), instructions="Be brief and friendly.")


@chat.agent(
    "assistant",
    tools=TOOLS,
    access_token_ttl=os.environ.get("CHAT_TOKEN_TTL", "1h"),
    # `usePendingMessages` sends again, as a turn of its own, what could not join the answer.
    pending_messages=chat.PendingMessages(should_inject=lambda batch: True, unconsumed="drop"),
)
async def run(turn: chat.Turn):
    asked = turn.ui_messages[-1]  # also when an answer is made again
    files = [part for part in asked["parts"] if part["type"] == "file"]
    words = chat.text_of(asked).split()
    if files:
        names = ", ".join(f"{file.get('filename')} ({file['mediaType']})" for file in files)
        return f"You sent me {names}."
    if words[:2] == ["count", "to"] and words[-1].isdigit():
        return count(int(words[-1]))
    return turn.stream(model, **chat.run_options(tools=turn.tools))


async def count(last: int):
    for number in range(1, min(last, 1000) + 1):
        yield f"{number} "
        await anyio.sleep(WORD_S)


@run.on_turn_start
async def keep_question(event: chat.TurnStartEvent):
    await history.save(event.chat_id, event.ui_messages)


@run.on_turn_complete
async def keep_answer(event: chat.TurnCompleteEvent):
    await history.save(event.chat_id, event.ui_messages, last_event_id=event.last_event_id)
