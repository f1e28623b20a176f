"""The contract of streams: appends, repeated ones, parts of a whole, fences."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from everturn.errors import (
    Fenced,
    InvalidRequest,
    ProtocolError,
    TooLarge,
)
from everturn.protocol.records import (
    ChannelName,
    NewRecord,
    metered_bytes,
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
class TestAppend:
    async def test_records_are_read_back_in_the_order_they_were_appended(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "a", "b")
        await write(engine.streams, "c")

        found = await everything(engine.streams)

        assert bodies(found) == ["a", "b", "c"]
        assert [r.seq_num for r in found] == sorted({r.seq_num for r in found})

    async def test_an_append_answers_with_the_numbers_of_its_records(
        self, engine: StreamsEngine
    ) -> None:
        first = await engine.streams.append(OUT, [text("a"), text("b")])
        second = await engine.streams.append(OUT, [text("c")])

        assert first.seq_nums + second.seq_nums == (0, 1, 2)
        assert (first.new, second.new) == (2, 1)

    async def test_channels_are_apart_even_when_their_names_look_alike(
        self, engine: StreamsEngine
    ) -> None:
        names = [
            ChannelName("e", "s", "in"),
            ChannelName("e", "s", "out"),
            ChannelName("f", "s", "in"),
            ChannelName("e", "ß/ü 会", "in"),
        ]
        for name in names:
            await write(engine.streams, str(name), channel=name)

        assert [bodies(await everything(engine.streams, n)) for n in names] == [
            [str(n)] for n in names
        ]

    async def test_headers_and_bodies_come_back_byte_for_byte(self, engine: StreamsEngine) -> None:
        new = [
            NewRecord(body="snö ☃ 𝄞 \x00".encode(), headers=(("trigger-control", "x"), ("ü", ""))),
            NewRecord(body=b"\xff\xfe\x00raw"),
            NewRecord(),
        ]
        await engine.streams.append(OUT, new)

        found = await everything(engine.streams)

        assert [(r.headers, r.body) for r in found] == [(n.headers, n.body) for n in new]

    async def test_a_record_of_exactly_the_limit_is_stored(self, engine: StreamsEngine) -> None:
        body = b"x" * (limits.RECORD_BYTES_MAX - metered_bytes((), b""))
        await engine.streams.append(OUT, [NewRecord(body)])

        assert [r.body for r in await everything(engine.streams)] == [body]

    async def test_a_record_one_byte_over_the_limit_is_refused_with_its_whole_batch(
        self, engine: StreamsEngine
    ) -> None:
        body = b"x" * (limits.RECORD_BYTES_MAX - metered_bytes((), b"") + 1)
        with pytest.raises(TooLarge, match=f"record 1 is {limits.RECORD_BYTES_MAX + 1} bytes"):
            await engine.streams.append(OUT, [text("a"), NewRecord(body)])

        assert await everything(engine.streams) == []

    async def test_a_full_batch_is_stored_and_one_record_more_is_refused(
        self, engine: StreamsEngine
    ) -> None:
        full = [text(str(n)) for n in range(limits.BATCH_RECORDS_MAX)]
        assert (await engine.streams.append(OUT, full)).new == len(full)
        with pytest.raises(TooLarge):
            await engine.streams.append(OUT, [*full, text("one more")])

    @pytest.mark.parametrize(
        ("records", "fence", "first_part"),
        [
            ([], None, None),
            ([text("a")], 1, None),
            ([text("a")], None, 0),
            ([text("a")], 0, 0),
            ([text("a")], 1, -1),
            ([text("a", part_id="p" * (limits.PART_ID_CHARS_MAX + 1))], None, None),
            ([text("a", part_id="\ud800")], None, None),
            ([NewRecord(headers=(("\ud800", ""),))], None, None),
        ],
        ids=str,
    )
    async def test_an_append_that_makes_no_sense_is_refused(
        self,
        engine: StreamsEngine,
        records: list[NewRecord],
        fence: int | None,
        first_part: int | None,
    ) -> None:
        with pytest.raises(InvalidRequest):
            await engine.streams.append(OUT, records, fence=fence, first_part=first_part)

        assert await engine.streams.bounds(OUT) == Bounds(0, 0, 0)

    async def test_appends_of_many_tasks_are_all_stored_once_and_in_one_order(
        self, engine: StreamsEngine
    ) -> None:
        async def appender(number: int) -> None:
            for step in range(10):
                await write(engine.streams, f"{number}:{step}")

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(appender, number)

        found = bodies(await everything(engine.streams))
        assert len(found) == len(set(found)) == 300
        for number in range(30):
            mine = [body for body in found if body.startswith(f"{number}:")]
            assert mine == [f"{number}:{step}" for step in range(10)]

    async def test_timestamps_never_go_back_when_the_clock_does(
        self, engine: StreamsEngine
    ) -> None:
        for step_ms in (5, -1000, 0, 2000, -1):
            engine.clock.ms += step_ms
            await write(engine.streams, "x")

        times = [r.timestamp_ms for r in await everything(engine.streams)]
        assert times == sorted(times)
        assert (await engine.streams.bounds(OUT)).timestamp_ms == times[-1]


@pytest.mark.anyio
class TestPartIds:
    async def test_a_repeated_part_id_is_kept_once(self, engine: StreamsEngine) -> None:
        first = await engine.streams.append(IN, [text("hello", part_id="p1")])
        again = await engine.streams.append(IN, [text("hello", part_id="p1")])

        assert again.seq_nums == first.seq_nums
        assert (first.new, again.new) == (1, 0)
        assert bodies(await everything(engine.streams, IN)) == ["hello"]

    async def test_a_batch_of_known_and_new_ids_stores_the_new_and_answers_for_all(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(IN, [text("a", part_id="a"), text("b", part_id="b")])
        mixed = await engine.streams.append(
            IN, [text("b", part_id="b"), text("c", part_id="c"), text("a", part_id="a"), text("d")]
        )

        assert mixed.seq_nums == (1, 2, 0, 3)
        assert mixed.new == 2
        assert bodies(await everything(engine.streams, IN)) == ["a", "b", "c", "d"]

    async def test_an_id_twice_in_one_batch_is_kept_once(self, engine: StreamsEngine) -> None:
        answer = await engine.streams.append(IN, [text("a", part_id="p"), text("b", part_id="p")])

        assert answer.seq_nums == (0, 0)
        assert answer.new == 1

    async def test_the_same_id_sent_by_many_tasks_at_once_is_kept_once(
        self, engine: StreamsEngine
    ) -> None:
        answers = await asyncio.gather(
            *[engine.streams.append(IN, [text("a", part_id="p")]) for _ in range(20)]
        )

        assert {a.seq_nums for a in answers} == {(0,)}
        assert sum(a.new for a in answers) == 1

    async def test_ids_of_one_channel_mean_nothing_in_another(self, engine: StreamsEngine) -> None:
        await engine.streams.append(IN, [text("a", part_id="p")])
        assert (await engine.streams.append(OUT, [text("b", part_id="p")])).new == 1


@pytest.mark.anyio
class TestParts:
    async def test_repeated_parts_of_a_lease_are_kept_once(self, engine: StreamsEngine) -> None:
        batch = [text("a"), text("b")]
        first = await engine.streams.append(OUT, batch, fence=1, first_part=0)
        again = await engine.streams.append(OUT, batch, fence=1, first_part=0)

        assert again.seq_nums == first.seq_nums
        assert again.new == 0
        assert bodies(await everything(engine.streams)) == ["a", "b"]

    async def test_a_resent_batch_that_goes_on_stores_only_what_is_new(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(OUT, [text("a"), text("b")], fence=1, first_part=0)
        await write(engine.streams, "guest")
        answer = await engine.streams.append(
            OUT, [text("b"), text("c"), text("d")], fence=1, first_part=1
        )

        assert answer.seq_nums == (1, 3, 4)
        assert answer.new == 2
        assert bodies(await everything(engine.streams)) == ["a", "b", "guest", "c", "d"]

    async def test_a_part_that_leaves_a_gap_is_refused(self, engine: StreamsEngine) -> None:
        await engine.streams.append(OUT, [text("a")], fence=1, first_part=0)
        with pytest.raises(ProtocolError):
            await engine.streams.append(OUT, [text("c")], fence=1, first_part=2)
        with pytest.raises(ProtocolError):
            await engine.streams.append(OUT, [text("c")], fence=2, first_part=1)

        assert bodies(await everything(engine.streams)) == ["a"]

    async def test_a_refused_gap_does_not_raise_the_fence(self, engine: StreamsEngine) -> None:
        with pytest.raises(ProtocolError):
            await engine.streams.append(OUT, [text("c")], fence=9, first_part=1)
        assert (await engine.streams.append(OUT, [text("a")], fence=1, first_part=0)).new == 1

    async def test_part_ids_of_a_lease_holders_records_are_ignored(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(OUT, [text("a", part_id="p")], fence=1, first_part=0)
        assert (
            await engine.streams.append(OUT, [text("b", part_id="p")], fence=1, first_part=1)
        ).new == 1
        assert (await engine.streams.append(OUT, [text("c", part_id="p")])).new == 1

    async def test_the_numbers_of_stored_parts_can_be_asked_for(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(OUT, [text("a")], fence=1, first_part=0)
        await write(engine.streams, "guest")
        await engine.streams.append(OUT, [text("b"), text("c")], fence=1, first_part=1)
        await engine.streams.append(OUT, [text("d")], fence=2, first_part=0)

        ask = engine.streams.part_seqs
        assert await ask(OUT, 1, 0, 5) == [0, 2, 3, None, None]
        assert await ask(OUT, 1, 2, 1) == [3]
        assert await ask(OUT, 2, 0, 2) == [4, None]
        assert await ask(OUT, 3, 0, 1) == [None]
        assert await ask(IN, 1, 0, 2) == [None, None]
        assert await ask(OUT, 1, 0, 0) == []

    async def test_records_carry_the_fence_and_part_they_were_written_under(
        self, engine: StreamsEngine
    ) -> None:
        await write(engine.streams, "guest")
        await engine.streams.append(OUT, [text("a"), text("b")], fence=7, first_part=0)

        found = await everything(engine.streams)
        assert [(r.fence, r.part) for r in found] == [(0, -1), (7, 0), (7, 1)]


@pytest.mark.anyio
class TestFences:
    async def test_an_append_below_the_fence_is_refused(self, engine: StreamsEngine) -> None:
        await engine.streams.append(OUT, [text("old")], fence=1, first_part=0)
        await engine.streams.raise_fence(OUT, 2)
        with pytest.raises(Fenced):
            await engine.streams.append(OUT, [text("late")], fence=1, first_part=1)

        assert bodies(await everything(engine.streams)) == ["old"]

    async def test_not_even_a_repeated_part_is_answered_below_the_fence(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(OUT, [text("old")], fence=1, first_part=0)
        await engine.streams.raise_fence(OUT, 2)
        with pytest.raises(Fenced):
            await engine.streams.append(OUT, [text("old")], fence=1, first_part=0)

    async def test_an_append_at_the_fence_is_stored(self, engine: StreamsEngine) -> None:
        await engine.streams.raise_fence(OUT, 2)
        assert (await engine.streams.append(OUT, [text("a")], fence=2, first_part=0)).new == 1

    async def test_an_append_above_the_fence_raises_it(self, engine: StreamsEngine) -> None:
        await engine.streams.append(OUT, [text("new")], fence=5, first_part=0)
        with pytest.raises(Fenced):
            await engine.streams.append(OUT, [text("late")], fence=4, first_part=0)

    async def test_a_fence_is_never_lowered(self, engine: StreamsEngine) -> None:
        await engine.streams.raise_fence(OUT, 5)
        await engine.streams.raise_fence(OUT, 3)
        with pytest.raises(Fenced):
            await engine.streams.append(OUT, [text("late")], fence=4, first_part=0)

    async def test_raising_a_fence_again_keeps_the_parts_written_under_it(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.append(OUT, [text("a")], fence=2, first_part=0)
        await engine.streams.raise_fence(OUT, 2)
        assert (await engine.streams.append(OUT, [text("a")], fence=2, first_part=0)).new == 0

    async def test_guests_are_not_asked_for_a_fence(self, engine: StreamsEngine) -> None:
        """Rulings §1.3: one lease holder at a time writes parts; guests write beside it."""
        await engine.streams.raise_fence(OUT, 9)
        await write(engine.streams, "guest")
        assert bodies(await everything(engine.streams)) == ["guest"]

    async def test_a_raised_fence_takes_no_number(self, engine: StreamsEngine) -> None:
        await engine.streams.raise_fence(OUT, 2)
        assert await engine.streams.bounds(OUT) == Bounds(0, 0, 0)
        assert await write(engine.streams, "a") == (0,)

    async def test_a_fence_of_one_channel_does_not_touch_the_other(
        self, engine: StreamsEngine
    ) -> None:
        await engine.streams.raise_fence(OUT, 9)
        assert (await engine.streams.append(IN, [text("a")], fence=1, first_part=0)).new == 1
