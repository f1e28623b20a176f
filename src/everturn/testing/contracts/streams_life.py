"""The contract of streams: closing a store, and what it knows when it is opened again."""

from __future__ import annotations

import anyio
import pytest

from everturn.errors import (
    Fenced,
    Unavailable,
)
from everturn.protocol.records import (
    trim_record,
)
from everturn.testing.contracts.streams_scene import (
    IN,
    OUT,
    StreamsEngine,
    everything,
    text,
    write,
)


@pytest.mark.anyio
class TestClose:
    async def test_calls_after_close_are_unavailable(self, engine: StreamsEngine) -> None:
        place = engine.streams.subscribe(OUT, None)
        await engine.streams.close()
        for call in (
            engine.streams.append(OUT, [text("a")]),
            engine.streams.raise_fence(OUT, 1),
            engine.streams.read(OUT, after=None),
            engine.streams.bounds(OUT),
            engine.streams.part_seqs(OUT, 1, 0, 1),
            place.next(),
        ):
            with pytest.raises(Unavailable):
                await call

    async def test_a_reader_that_waits_is_told(self, engine: StreamsEngine) -> None:
        place = engine.streams.subscribe(OUT, None)
        ended = anyio.Event()

        async def follow() -> None:
            with pytest.raises(Unavailable):
                await place.next()
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            await engine.streams.close()
            with anyio.fail_after(5):
                await ended.wait()


@pytest.mark.anyio
class TestAfterReopening:
    """What must be there again after a restart, for engines that survive one."""

    async def test_records_are_there_again_and_numbers_go_on(
        self, durable_engine: StreamsEngine
    ) -> None:
        await write(durable_engine.streams, "a", "b")
        before = await everything(durable_engine.streams)
        streams = await durable_engine.reopen()

        assert await everything(streams) == before
        assert await write(streams, "c") == (2,)

    async def test_repeated_part_ids_are_known(self, durable_engine: StreamsEngine) -> None:
        first = await durable_engine.streams.append(IN, [text("a", part_id="p")])
        streams = await durable_engine.reopen()
        again = await streams.append(IN, [text("a", part_id="p"), text("b", part_id="q")])

        assert again.seq_nums == (*first.seq_nums, 1)
        assert again.new == 1

    async def test_repeated_parts_are_known(self, durable_engine: StreamsEngine) -> None:
        await durable_engine.streams.append(OUT, [text("a"), text("b")], fence=3, first_part=0)
        streams = await durable_engine.reopen()
        again = await streams.append(OUT, [text("b"), text("c")], fence=3, first_part=1)

        assert again.seq_nums == (1, 2)
        assert await streams.part_seqs(OUT, 3, 0, 4) == [0, 1, 2, None]

    async def test_a_raised_fence_still_holds(self, durable_engine: StreamsEngine) -> None:
        await durable_engine.streams.raise_fence(OUT, 4)
        streams = await durable_engine.reopen()
        with pytest.raises(Fenced):
            await streams.append(OUT, [text("late")], fence=3, first_part=0)

    async def test_a_fence_raised_by_an_append_still_holds(
        self, durable_engine: StreamsEngine
    ) -> None:
        await durable_engine.streams.append(OUT, [text("a")], fence=4, first_part=0)
        streams = await durable_engine.reopen()
        with pytest.raises(Fenced):
            await streams.append(OUT, [text("late")], fence=3, first_part=0)

    async def test_the_visible_start_is_where_it_was(self, durable_engine: StreamsEngine) -> None:
        await write(durable_engine.streams, "a", "b", "c")
        await durable_engine.streams.append(OUT, [trim_record(2)])
        before = await durable_engine.streams.bounds(OUT)
        streams = await durable_engine.reopen()

        assert await streams.bounds(OUT) == before
        assert [r.seq_num for r in await everything(streams)] == [2, 3]

    async def test_timestamps_do_not_go_back_either(self, durable_engine: StreamsEngine) -> None:
        await write(durable_engine.streams, "a")
        durable_engine.clock.ms -= 5_000
        streams = await durable_engine.reopen()
        await write(streams, "b")

        first, second = await everything(streams)
        assert second.timestamp_ms >= first.timestamp_ms

    async def test_channels_written_shortly_before_are_named(
        self, durable_engine: StreamsEngine
    ) -> None:
        await write(durable_engine.streams, "a")
        streams = await durable_engine.reopen()
        assert OUT in set(await streams.recent_channels())
