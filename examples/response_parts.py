"""What an answer holds besides text: progress, data for a page, sources, metadata.

    everturn dev examples/response_parts.py
    everturn chat stations

`chat.response.data` writes a `data-…` part from anywhere in a turn; the hooks before and after the
answer have an `event.writer` that does the same. A part of the same name and id takes the place of
the one before it. Parts join the stored message behind its text, transient ones are only shown.
"""

import anyio

from everturn import chat


def stamped(chunk):
    """Metadata of the message: asked when it begins, and again when it is finished."""
    return {"station": "Oslo"} if chunk["type"] == "start" else {"finished": True}


@chat.agent("stations", stream_options=chat.UIStreamOptions(message_metadata=stamped))
async def stations(turn: chat.Turn):
    for percent in (0, 50, 100):
        chat.response.data("progress", {"percent": percent}, id="measuring")
        await anyio.sleep(0.05)
    yield {"type": "source-url", "sourceId": "s1", "url": "https://example.org/oslo"}
    yield "It is 21 degrees, "
    yield "and the sky is clear."


@stations.on_turn_start
def say_hello(event: chat.TurnStartEvent):
    event.writer.data("status", {"text": "Asking the stations"}, transient=True)


@stations.on_before_turn_complete
def suggest(event: chat.BeforeTurnCompleteEvent):
    """The turn is still open: this part belongs to the answer, and to what is stored of it."""
    if not event.stopped:
        event.writer.data("suggestions", ["And tomorrow?", "And in Rome?"])
