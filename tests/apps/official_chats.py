"""Agents that the official clients' less common functions are tried on."""

import asyncio

from everturn import chat


@chat.agent("remembering")
async def remembering(turn: chat.Turn):
    """Says how many messages of its user it knows, and whose turn this is."""
    said = [chat.text_of(message) for message in turn.ui_messages if message["role"] == "user"]
    return f"{len(said)}: {' '.join(said)}; {turn.client_data}"


@remembering.on_action
async def forget(event: chat.ActionEvent):
    """{"type": "forget"} drops everything said so far."""
    chat.history.set([])


@chat.agent("counting")
async def counting(turn: chat.Turn):
    """Counts to twenty, over two seconds."""
    for number in range(1, 21):
        yield f"{number} "
        await asyncio.sleep(0.1)
