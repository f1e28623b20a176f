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

    async def test_a_forgotten_channel_is_not_there_after_reopening(
        self, durable_engine: StreamsEngine
    ) -> None:
        await write(durable_engine.streams, "a", "b")
        await durable_engine.streams.append(IN, [text("kept")])
        await durable_engine.streams.forget([OUT])

        reopened = await durable_engine.reopen()

        assert await reopened.bounds(OUT) == (0, 0, 0)
        assert [record.body for record in await everything(reopened, IN)] == [b"kept"]
        assert await write(reopened, "new") == (0,)


@pytest.mark.anyio
class TestForgetting:
    """Channels whose names are never used again."""

    async def test_nothing_is_left_of_a_forgotten_channel(self, engine: StreamsEngine) -> None:
        streams = engine.streams
        await streams.append(OUT, [text("a", "p"), text("b")])
        await streams.append(OUT, [text("c")], fence=3, first_part=0)
        await streams.append(OUT, [trim_record(1)])

        assert await streams.forget([OUT]) == {OUT}

        assert await streams.bounds(OUT) == (0, 0, 0)
        assert await everything(streams) == []
        assert list(await streams.read(OUT, after=None, include_trimmed=True)) == []
        assert await streams.part_seqs(OUT, 3, 0, 1) == [None]

    async def test_the_channels_beside_it_stay(self, engine: StreamsEngine) -> None:
        streams = engine.streams
        await write(streams, "a", "b")
        await streams.append(IN, [text("kept", "p")])
        await streams.raise_fence(IN, 2)

        await streams.forget([OUT])

        assert [record.body for record in await everything(streams, IN)] == [b"kept"]
        assert (await streams.append(IN, [text("kept", "p")])).seq_nums == (0,)
        with pytest.raises(Fenced):
            await streams.append(IN, [text("late")], fence=1, first_part=0)

    async def test_an_unknown_channel_is_forgotten_already(self, engine: StreamsEngine) -> None:
        assert await engine.streams.forget([IN, OUT]) == {IN, OUT}
        assert await engine.streams.forget([]) == frozenset()

    async def test_a_channel_that_somebody_waits_at_is_left(self, engine: StreamsEngine) -> None:
        streams = engine.streams
        await write(streams, "a")
        place = streams.subscribe(OUT, 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(place.next)
            await anyio.wait_all_tasks_blocked()

            assert await streams.forget([OUT]) == frozenset()

            await write(streams, "b")
        assert len(await everything(streams)) == 2
