"""Batches from outside of runs: whoever began one may not have finished it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from client_stage import KEY, URL, Stage

from everturn.client import batches, config
from everturn.tasks import batches as batch

pytestmark = pytest.mark.anyio

ITEMS: list[batch.BatchItem] = [{"task": "agent", "payload": number} for number in range(3)]


def at(stage: Stage) -> AbstractContextManager[None]:
    """What runs inside talks to the stage's server."""
    return config.use(config.ClientConfig(url=URL, secret_key=KEY, transport=stage.transport))


async def test_a_batch_whose_maker_died_is_filled_by_whoever_asks_for_it_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key finds it, and without its items nobody would ever start them."""

    async def dies(*args: object, **options: object) -> None:
        raise ConnectionError("power cut")

    with at(stage):
        with monkeypatch.context() as patch:
            patch.setattr(batches, "fill", dies)
            with pytest.raises(ConnectionError):
                await batch.trigger(ITEMS, idempotency_key="nightly")
        handle = await batch.trigger(ITEMS, idempotency_key="nightly")
        found = await batch.retrieve(handle)
        again = await batch.trigger(ITEMS, idempotency_key="nightly")

        assert handle.is_cached
        assert (found.run_count, len(found.runs)) == (3, 3)
        assert (await batch.retrieve(again)).runs == found.runs


async def test_other_items_under_the_key_of_a_batch_change_nothing(stage: Stage) -> None:
    with at(stage):
        first = await batch.trigger(ITEMS, idempotency_key="nightly")
        second = await batch.trigger(ITEMS[:2], idempotency_key="nightly")

        assert second.id == first.id
        assert len((await batch.retrieve(second)).runs) == 3
