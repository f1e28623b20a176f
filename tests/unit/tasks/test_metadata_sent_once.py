"""Metadata that is sent again: increments and appends count once (tasks-and-runs §13)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import pytest

from everturn.errors import TooLarge, Unavailable
from everturn.ids import RandomIds
from everturn.rules import metadata as rules
from everturn.tasks.metadata import MetadataBuffer

pytestmark = pytest.mark.anyio

COUNT = {"type": "increment", "key": "n", "value": 1}


class Keeper:
    """Keeps metadata as a server does: a key it has seen is answered and not carried out."""

    def __init__(self) -> None:
        self.ids = RandomIds()
        self.stored: bytes | None = None
        self.keys: list[str] = []
        #: Called after a change was stored, and before it is answered.
        self.answers: Callable[[], Any] = lambda: None

    async def change_metadata(
        self, operations: Sequence[Mapping[str, Any]], key: str | None = None
    ) -> None:
        assert key is not None
        if key not in self.keys:
            changes = [rules.Operation(**one) for one in operations]
            self.stored = rules.change(changes)(self.stored)
        self.keys.append(key)
        answered = self.answers()
        if answered is not None:
            await answered


async def test_a_cancelled_flush_is_sent_again_as_it_was() -> None:
    keeper, buffer = Keeper(), MetadataBuffer(None)
    buffer.apply(COUNT)
    stored = anyio.Event()

    async def never() -> None:
        stored.set()
        await anyio.sleep_forever()

    keeper.answers = never
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(buffer.flush, keeper)
        await stored.wait()
        buffer.apply(COUNT)  # meanwhile; it must not become part of what was sent
        tasks.cancel_scope.cancel()
    keeper.answers = lambda: None
    assert buffer.dirty
    await buffer.flush(keeper)

    assert keeper.stored == b'{"n":2}'
    assert len(set(keeper.keys)) == 2
    assert not buffer.dirty


async def test_what_a_server_that_is_away_may_have_stored_is_sent_again_as_it_was() -> None:
    keeper, buffer = Keeper(), MetadataBuffer(None)
    buffer.apply(COUNT)

    async def away() -> None:
        raise Unavailable("the answer was lost")

    keeper.answers = away
    for _ in range(2):
        with pytest.raises(Unavailable):
            await buffer.flush(keeper)
        buffer.apply({"type": "append", "key": "list", "value": "x"})
    keeper.answers = lambda: None
    await buffer.flush(keeper)

    assert keeper.stored == b'{"n":1,"list":["x","x"]}'


async def test_what_was_refused_goes_with_what_is_written_next() -> None:
    """Another process has filled the object; the run makes room, and loses nothing."""
    keeper, buffer = Keeper(), MetadataBuffer(None)
    keeper.stored = b'{"big":"%s"}' % (b"x" * 200_000)
    buffer.apply({"type": "set", "key": "more", "value": "y" * 100_000})
    with pytest.raises(TooLarge):
        await buffer.flush(keeper)
    buffer.apply({"type": "set", "key": "big", "value": ""})
    await buffer.flush(keeper)

    assert keeper.stored == b'{"big":"","more":"%s"}' % (b"y" * 100_000)
