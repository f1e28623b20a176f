"""Agents that the official clients' less common functions are tried on."""

import asyncio

from everturn import chat, task


def what_was_said(turn: chat.Turn):
    said = [chat.text_of(message) for message in turn.ui_messages if message["role"] == "user"]
    return f"{len(said)}: {' '.join(said)}; {turn.client_data}"


@chat.agent("remembering")
async def remembering(turn: chat.Turn):
    """Says how many messages of its user it knows, and whose turn this is."""
    return what_was_said(turn)


@remembering.on_action
async def forget(event: chat.ActionEvent):
    """{"type": "forget"} drops everything said so far."""
    chat.history.set([])


@chat.agent("counting")
async def counting(turn: chat.Turn):
    """Counts to twenty, over two seconds."""
    async for words in count(20):
        yield words


@chat.agent("patient")
async def patient(turn: chat.Turn):
    """Counts to sixty, over six seconds: longer than a short-lived token lives."""
    async for words in count(60):
        yield words


async def count(last: int):
    for number in range(1, last + 1):
        yield f"{number} "
        await asyncio.sleep(0.1)


@chat.agent("brief", access_token_ttl="1s")
async def brief(turn: chat.Turn):
    """Its turns hand out tokens that are gone before anybody could use them again."""
    return what_was_said(turn)


@task(id="echo")
async def echo(payload: dict):
    return payload
