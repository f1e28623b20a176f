"""The contract of streams: what readers and subscribers see, before and after a trim."""

from __future__ import annotations

import anyio
import pytest

from everturn.errors import (
    CursorTrimmed,
)
from everturn.protocol.records import (
    NewRecord,
    metered_bytes,
    trim_record,
)
from everturn.rules import limits
from everturn.storage.ports.streams import Bounds
from everturn.testing.contracts.streams_scene import (
    IN,
    OUT,
    StreamsEngine,
    bodies,
    everything,
    text,
    write,
)


@pytest.mark.anyio
class TestTrims:
    async def test_a_trim_moves_the_visible_start_to_its_target(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a", "b", "c")
        await engine.streams.append(OUT, [trim_record(2)])

        assert (await engine.streams.bounds(OUT))[:2] == (2, 4)
        assert [r.seq_num for r in await everything(engine.streams)] == [2, 3]

    async def test_the_start_never_moves_back(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c")
        await engine.streams.append(OUT, [trim_record(2)])
        await engine.streams.append(OUT, [trim_record(1)])

        assert (await engine.streams.bounds(OUT)).first == 2

    async def test_the_start_never_moves_past_the_command_itself(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a")
        await engine.streams.append(OUT, [trim_record(1000), text("after")])

        assert (await engine.streams.bounds(OUT))[:2] == (1, 3)

    async def test_of_two_trims_in_one_append_the_lower_takes_nothing_back(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(OUT, [text("a"), text("b"), text("c")])
        await engine.streams.append(OUT, [trim_record(2), trim_record(1)])
        assert (await engine.streams.bounds(OUT)).first == 2

    async def test_a_malformed_trim_is_a_record_like_any_other(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a")
        await engine.streams.append(OUT, [NewRecord(b"short", headers=(("", "trim"),))])

        assert (await engine.streams.bounds(OUT))[:2] == (0, 2)

    async def test_reading_below_the_start_names_the_first_visible_record(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a", "b", "c")
        await engine.streams.append(OUT, [trim_record(2)])

        with pytest.raises(CursorTrimmed) as trimmed:
            await engine.streams.read(OUT, after=0)
        assert trimmed.value.first_seq_num == 2
        assert [r.seq_num for r in await engine.streams.read(OUT, after=1)] == [2, 3]

    async def test_what_is_retained_can_still_be_read(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c")
        await engine.streams.append(OUT, [trim_record(2)])

        found = await engine.streams.read(OUT, after=None, include_trimmed=True)
        assert bodies(found)[:3] == ["a", "b", "c"]
        found = await engine.streams.read(OUT, after=0, include_trimmed=True)
        assert bodies(found)[:2] == ["b", "c"]

    async def test_numbers_go_on_rising_after_a_trim(self, engine: StreamsEngine) -> None:
        before = await write(engine.streams, "a", "b")
        await engine.streams.append(OUT, [trim_record(2)])
        assert (await write(engine.streams, "c"))[0] > before[-1]

    async def test_a_trimmed_part_id_is_still_known(self, engine: StreamsEngine) -> None:
        await engine.streams.append(IN, [text("a", part_id="p")])
        await engine.streams.append(IN, [trim_record(1)])
        assert (await engine.streams.append(IN, [text("a", part_id="p")])).new == 0


@pytest.mark.anyio
class TestReads:
    async def test_an_unknown_channel_is_empty(self, engine: StreamsEngine) -> None:
        assert await engine.streams.bounds(OUT) == Bounds(0, 0, 0)
        assert list(await engine.streams.read(OUT, after=None)) == []
        assert list(await engine.streams.read(OUT, after=12)) == []
        assert list(await engine.streams.read_back(OUT, before=None, records_max=5)) == []

    async def test_a_read_goes_on_right_after_its_cursor(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c")
        assert bodies(await engine.streams.read(OUT, after=0)) == ["b", "c"]
        assert bodies(await engine.streams.read(OUT, after=2)) == []
        assert bodies(await engine.streams.read(OUT, after=77)) == []

    async def test_pages_stop_at_the_number_of_records(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c")
        assert bodies(await engine.streams.read(OUT, after=None, records_max=2)) == ["a", "b"]

    async def test_pages_stop_at_the_number_of_bytes_but_hold_at_least_one_record(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a" * 100, "b" * 100, "c" * 100)
        size = metered_bytes((), b"a" * 100)

        read = engine.streams.read
        assert len(await read(OUT, after=None, bytes_max=2 * size)) == 2
        assert len(await read(OUT, after=None, bytes_max=2 * size - 1)) == 1
        assert len(await read(OUT, after=None, bytes_max=1)) == 1

    async def test_reading_back_starts_at_the_newest(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c", "d")
        back = engine.streams.read_back
        assert bodies(await back(OUT, before=None, records_max=2)) == ["d", "c"]
        assert bodies(await back(OUT, before=2, records_max=5)) == ["b", "a"]
        assert bodies(await back(OUT, before=0, records_max=5)) == []
        assert bodies(await back(OUT, before=99, records_max=1)) == ["d"]

    async def test_reading_back_ends_at_the_visible_start(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c")
        await engine.streams.append(OUT, [trim_record(1)])
        found = await engine.streams.read_back(OUT, before=3, records_max=9)
        assert bodies(found) == ["c", "b"]

    async def test_reading_back_is_bounded_in_bytes_but_holds_at_least_one_record(
        self, engine: StreamsEngine
    ) -> None:
        large = b"x" * (limits.RECORD_BYTES_MAX - 100)
        for _ in range(3):
            await engine.streams.append(OUT, [NewRecord(large)])
        assert len(await engine.streams.read_back(OUT, before=None, records_max=3)) == 1

    async def test_channels_written_lately_are_named(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a")
        assert OUT in set(await engine.streams.recent_channels())
        assert IN not in set(await engine.streams.recent_channels())


@pytest.mark.anyio
class TestSubscriptions:
    async def test_a_reader_gets_what_is_there_and_then_what_comes(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a", "b")
        place = engine.streams.subscribe(OUT, None)
        assert bodies(await place.next()) == ["a", "b"]
        assert place.cursor == 1
        assert place.caught_up

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, engine.streams, "c")
            assert bodies(await place.next()) == ["c"]

    async def test_a_reader_resumes_exactly_after_its_cursor(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a", "b", "c")
        place = engine.streams.subscribe(OUT, 0)
        assert not place.caught_up
        assert bodies(await place.next(records_max=1)) == ["b"]
        assert bodies(await place.next()) == ["c"]

    async def test_a_cursor_past_the_tail_means_from_the_tail_as_it_is_now(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a")
        place = engine.streams.subscribe(OUT, 40)
        assert place.cursor == 0
        await write(engine.streams, "b")
        assert bodies(await place.next()) == ["b"]

    async def test_a_cursor_below_the_start_means_the_first_visible_record(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a", "b", "c")
        await engine.streams.append(OUT, [trim_record(2)])
        for after in (None, 0):
            place = engine.streams.subscribe(OUT, after)
            assert [r.seq_num for r in await place.next()] == [2, 3]

    async def test_records_trimmed_before_they_were_handed_out_are_skipped(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a", "b", "c")
        place = engine.streams.subscribe(OUT, None)
        await place.next(records_max=1)
        await engine.streams.append(OUT, [trim_record(2)])
        assert [r.seq_num for r in await place.next()] == [2, 3]

    async def test_a_channel_that_does_not_exist_yet_can_be_waited_for(
        self, engine: StreamsEngine
    ) -> None:
        place = engine.streams.subscribe(OUT, 7)
        assert place.caught_up
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, engine.streams, "first")
            assert bodies(await place.next()) == ["first"]

    async def test_cancelling_a_wait_loses_nothing(self, engine: StreamsEngine) -> None:
        await write(engine.streams, "a")
        place = engine.streams.subscribe(OUT, None)
        await place.next()
        with anyio.move_on_after(0.01) as scope:
            await place.next()
        assert scope.cancelled_caught
        await write(engine.streams, "b")
        assert bodies(await place.next()) == ["b"]

    async def test_pages_are_bounded_in_bytes_but_hold_at_least_one_record(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a" * 100, "b" * 100)
        place = engine.streams.subscribe(OUT, None)
        assert len(await place.next(bytes_max=1)) == 1
        assert len(await place.next(bytes_max=1)) == 1
        assert place.caught_up

    async def test_many_readers_of_one_channel_each_get_every_record_once(
        self, engine: StreamsEngine
    ) -> None:
        got: dict[int, list[str]] = {}

        async def follow(number: int) -> None:
            place = engine.streams.subscribe(OUT, None)
            seen = got[number] = []
            while len(seen) < 50:
                seen.extend(bodies(await place.next()))

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(follow, number)
            for step in range(50):
                await write(engine.streams, str(step))

        assert all(seen == [str(step) for step in range(50)] for seen in got.values())

    async def test_nothing_is_seen_before_its_writer_could_be_answered(
        self, engine: StreamsEngine
    ) -> None:
        place = engine.streams.subscribe(OUT, None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, engine.streams, "a")
            seen = await place.next()
        assert list(await engine.streams.read(OUT, after=None)) == list(seen)
