"""The judge of a soak: every session's whole log, against what its person and its reader saw.

Each conversation is judged when its person has left, under whatever weather there is, and once
more at the end: what was stored then must still be there, in the same places, and nothing may have
been answered again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import anyio
import httpx2
from soak_people import Conversation

from everturn.client.api import Api
from everturn.client.config import Target
from everturn.errors import EverturnError
from everturn.protocol.records import Record, parse_input
from everturn.testing.checker import (
    PromiseBroken,
    check_acknowledged,
    check_history,
    check_reader,
    check_stops,
)
from everturn.testing.stored import read_history, read_stored
from everturn.testing.verdicts import check_answers, check_shown, check_stored_history, text_of

#: Two leases, the tries of a refused client, and the weather meanwhile.
SETTLE_S: Final = 180.0
#: A server that cannot be reached for this long is not merely being restarted.
READ_S: Final = 60.0


class Judged(NamedTuple):
    """A session whose log was in order."""

    key: str
    agent: str
    #: Of each channel: how many records, and a hash over them.
    inputs: tuple[int, str]
    outputs: tuple[int, str]
    turns: int
    counts: Counter[str]


class Judge:
    """Reads logs over HTTP, as often as it takes to be answered."""

    def __init__(self, target: Target) -> None:
        self._api = Api(target)

    async def settled(self, conversation: Conversation) -> Judged:
        """Wait until everything is answered and read; then look at all of it.

        Raises PromiseBroken, also for what stays open.
        """
        key = conversation.key
        with anyio.move_on_after(SETTLE_S):
            while True:
                inputs, outputs = await self._logs(key)
                with suppress(PromiseBroken):
                    check_history(inputs, outputs)
                    if _has_seen(conversation, outputs):
                        break
                await anyio.sleep(1)
        inputs, outputs = await self._logs(key)
        turns = check_history(inputs, outputs)
        check_acknowledged(inputs, conversation.acknowledged)
        check_reader(_up_to(conversation.seen, outputs), outputs)
        check_stops(inputs, turns)
        check_sent_once(conversation, inputs)
        check_answers(conversation.agent, inputs, turns)
        check_shown(conversation.shown, turns)
        await self._check_history(key, inputs)
        counts = Counter(records=len(inputs) + len(outputs), sessions=1)
        for turn in turns:
            counts["failed visibly" if turn.error else "answered"] += 1
            counts["interrupted and answered again"] += turn.restarts > 0
            counts["stopped"] += turn.stopped
        return Judged(
            key, conversation.agent, _digest(inputs), _digest(outputs), len(turns), counts
        )

    async def again(self, before: Judged) -> None:
        """What was judged is still there, and was not answered again. Raises PromiseBroken."""
        inputs, outputs = await self._logs(before.key)
        for io, records, (count, digest) in (
            ("in", inputs, before.inputs),
            ("out", outputs, before.outputs),
        ):
            if _digest(records[:count]) != (count, digest):
                raise PromiseBroken(f"P-1: {io} of {before.key} is not what it was")
        turns = check_history(inputs, outputs)
        if len(turns) != before.turns:
            raise PromiseBroken(f"P-3: {before.key} has {len(turns)} turns, and had {before.turns}")

    async def _check_history(self, key: str, inputs: Sequence[Record]) -> None:
        """The history covers what is trimmed; read in this order, it may cover more."""
        with anyio.move_on_after(READ_S):
            while True:
                with suppress(EverturnError, httpx2.TransportError):
                    outputs = await read_stored(self._api, key, "out")
                    history = await read_history(self._api, key)
                    break
                await anyio.sleep(0.5)
            check_stored_history(inputs, outputs, history)
            return
        raise PromiseBroken(f"the history of {key} could not be read for {READ_S} s")

    async def _logs(self, key: str) -> tuple[list[Record], list[Record]]:
        with anyio.move_on_after(READ_S):
            while True:
                with suppress(EverturnError, httpx2.TransportError):
                    # `in` first: what it holds then, `out` may already have answered.
                    inputs = await read_stored(self._api, key, "in")
                    return inputs, await read_stored(self._api, key, "out")
                await anyio.sleep(0.5)
        raise PromiseBroken(f"the logs of {key} could not be read for {READ_S} s")


def check_sent_once(conversation: Conversation, inputs: Sequence[Record]) -> None:
    """A text that was sent is stored once, or not at all where nobody said it was (P-5)."""
    stored = Counter(text_of(parse_input(record)) for record in inputs)
    for text in conversation.tried:
        if stored[text] > 1:
            raise PromiseBroken(f"P-5: {text!r} was sent once and is stored {stored[text]} times")


def _has_seen(conversation: Conversation, outputs: Sequence[Record]) -> bool:
    if not outputs:
        return True
    return bool(conversation.seen) and conversation.seen[-1].seq_num >= outputs[-1].seq_num


def _up_to(seen: Sequence[Record], outputs: Sequence[Record]) -> list[Record]:
    """What was seen of the log as it was read; more may have come since."""
    newest = outputs[-1].seq_num if outputs else -1
    return [record for record in seen if record.seq_num <= newest]


def _digest(records: Sequence[Record]) -> tuple[int, str]:
    digest = hashlib.sha256()
    for record in records:
        digest.update(record.wire)
    return len(records), digest.hexdigest()
