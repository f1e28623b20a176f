"""A run's channels at the moments where a record could be in two places, or in none."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from test_channels import room

from everturn.errors import TooLarge
from everturn.protocol.records import Record, data_body
from everturn.rules import limits

pytestmark = pytest.mark.anyio


async def test_a_record_that_came_as_its_reader_left_does_not_count_as_consumed() -> None:
    """Rulings §1.16: a crash now would make the next run read on behind it, and it was not seen."""
    async with room() as r:
        await r.world.post('"first"')
        await r.in_.receive()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.in_.once, 60)
                await anyio.wait_all_tasks_blocked()
                r.in_.take(Record(1, 0, (), data_body(b'"second"', "p")))
                scope.cancel()

        assert r.in_.peek() == "second"
        assert r.in_.last_dispatched_seq_num() == 0
        await r.in_.settle()
        assert r.world.consumed == 0
        assert await r.in_.receive() == "second"
        assert r.in_.last_dispatched_seq_num() == 1


async def test_a_handler_that_empties_a_full_buffer_is_given_what_comes_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "INPUT_BUFFER_MAX", 2)
    async with room() as r:
        r.in_.open()
        for number in range(2):
            await r.world.post(str(number))
            await anyio.wait_all_tasks_blocked()
        seen: list[Any] = []
        r.in_.on(lambda value: seen.append(value) or True)
        await r.world.post("2")
        await anyio.wait_all_tasks_blocked()

        assert seen == [0, 1, 2]


async def test_handlers_go_on_after_a_wait_that_suspended() -> None:
    async with room() as r:
        seen: list[Any] = []
        r.in_.on(seen.append)
        r.tasks.start_soon(r.in_.wait)
        await anyio.wait_all_tasks_blocked()
        for number in range(2):
            await r.world.post(str(number))
            await anyio.wait_all_tasks_blocked()

        assert seen == [0, 1]


async def test_a_value_too_large_for_a_record_fails_the_pipe_that_carries_it() -> None:
    """Left out without a word, the readers would have a gap that nobody knows of."""
    async with room() as r:
        with pytest.raises(TooLarge) as refused:
            await r.out.pipe(["a", "x" * limits.RECORD_BYTES_MAX, "b"])
        assert refused.value.details["bytes_max"] == limits.RECORD_BYTES_MAX
        await r.runtime.flush()
        assert await r.out.stored() == ["a"]
