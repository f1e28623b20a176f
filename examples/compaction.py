"""A conversation that outgrows its model goes on from a summary.

    everturn dev examples/compaction.py
    everturn chat compacting

Compaction happens between two steps of an answer or between two turns, whenever `should_compact`
says so. Only what the model is sent shrinks: clients, and the stored history, keep every message.
Clients are told while it happens (`data-compaction`, transient).
"""

from pydantic_ai import Agent

from everturn import Compaction, chat
from everturn.chat.adapters.offline import offline_model

TOKENS_MAX = 100_000
MESSAGES_MAX = 6


def too_long(event: chat.ShouldCompactEvent) -> bool:
    """By what the last answer cost; and by number, for models that do not say."""
    return (event.total_tokens or 0) > TOKENS_MAX or len(event.messages) > MESSAGES_MAX


async def summarise(event: chat.SummarizeEvent) -> str:
    """Usually a request to a small model; `event.messages` is what it should summarise."""
    return f"{len(event.messages)} messages were exchanged."


talker = Agent(offline_model())


@chat.agent("compacting", compaction=Compaction(should_compact=too_long, summarize=summarise))
async def compacting(turn: chat.Turn):
    return turn.stream(talker)


@compacting.on_compacted
def say_so(event: chat.CompactedEvent):
    event.writer.data("summary", {"text": event.summary, "of": event.message_count})
