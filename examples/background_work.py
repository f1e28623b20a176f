"""Work beside the answer: a value per run, deferred work, and a word to the model.

    everturn dev examples/background_work.py
    everturn chat attentive

`chat.local` holds something for the run, set in `on_boot` because every run goes through that.
`chat.defer` starts work that the turn does not wait for until its end, and then for 5 seconds at
most. `chat.inject` tells the model something before its next request that no user sees: here a
review, made while the user reads the answer.
"""

from pydantic import BaseModel
from pydantic_ai import Agent

from everturn import chat
from everturn.chat.adapters.offline import offline_model

STATISTICS = []  # stands for a table of yours


class Customer(BaseModel):
    name: str
    complaints: int = 0


customer = chat.local("customer", Customer)
helper = Agent(offline_model())


@chat.agent("attentive")
async def attentive(turn: chat.Turn):
    chat.defer(count(turn.chat_id))  # already on its way while the model answers
    return turn.stream(helper, **chat.run_options())


@attentive.on_boot
def who_is_it(event: chat.BootEvent):
    customer.init(Customer(name=(event.client_data or {}).get("name", "nobody")))


async def count(chat_id):
    STATISTICS.append(chat_id)


@attentive.on_turn_complete
def afterwards(event: chat.TurnCompleteEvent):
    """The answer is out. What is deferred here runs in the idle time, and nobody waits for it."""
    chat.defer(review(event.new_ui_messages))


async def review(messages):
    if "refund" in chat.text_of(messages[0]):
        customer.complaints += 1
        word = f"{customer.name} asked for money back {customer.complaints} times. Be generous."
        chat.inject({"role": "system", "content": word})
