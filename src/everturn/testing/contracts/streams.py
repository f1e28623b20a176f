"""The contract of `storage.ports.streams`, as test classes any engine can be put through.

A test module provides two fixtures and imports the classes:

* `engine`: a `StreamsEngine` holding an empty, open store;
* `durable_engine`: the same, but only for engines whose capabilities say `survives_reopen`.

The suite never asks which engine it has. What an engine lacks it says in `Capabilities`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio
import pytest

from everturn.errors import (
    CursorTrimmed,
    Fenced,
    InvalidRequest,
    ProtocolError,
    TooLarge,
    Unavailable,
)
from everturn.protocol.records import (
    ChannelName,
    NewRecord,
    Record,
    metered_bytes,
    trim_record,
)
from everturn.rules import limits
from everturn.storage.ports.streams import Bounds, StreamStore

IN = ChannelName("env_a", "session_a", "in")
OUT = ChannelName("env_a", "session_a", "out")


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond the port's every-day promises."""

    #: Records, parts and fences are there again after `reopen`.
    survives_reopen: bool = True


class SteppedClock:
    """Time that moves when a test says so, also backwards."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


class StreamsEngine(Protocol):
    """One engine under test."""

    capabilities: Capabilities
    clock: SteppedClock
    streams: StreamStore

    async def reopen(self) -> StreamStore:
        """Close the store and open what it left behind; `streams` is the new one."""
        ...


def text(body: str, part_id: str | None = None) -> NewRecord:
    """A record whose body is this text."""
    return NewRecord(body.encode(), part_id=part_id)


def bodies(records: Sequence[Record]) -> list[str]:
    """What the records say."""
    return [record.body.decode() for record in records]


async def everything(streams: StreamStore, channel: ChannelName = OUT) -> list[Record]:
    """All visible records, read page by page."""
    found: list[Record] = []
    after: int | None = None
    while page := await streams.read(channel, after=after, records_max=100):
        found.extend(page)
        after = page[-1].seq_num
    return found


async def write(streams: StreamStore, *texts: str, channel: ChannelName = OUT) -> tuple[int, ...]:
    """Append texts as a guest, in one call."""
    return (await streams.append(channel, [text(t) for t in texts])).seq_nums


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
