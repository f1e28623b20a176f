"""Records that a seeded chat must have had: what its snapshot and turn-completes say was there.

A snapshot names the last record of both channels that it covers. A harness numbers its records
from 0, so a message that is posted beside a snapshot of a longer conversation would have a number
that the snapshot covers: it would count as answered long ago, and its answer be waited for for
ever. So the missing records are made up. They mean nothing to anybody: used stops on `in`, and on
`out` commands that no reader is shown, with the turn-complete that the snapshot names at the end.
"""

from __future__ import annotations

from typing import Final

from everturn.chat import transcript
from everturn.protocol.records import (
    TURN_COMPLETE,
    InputCursor,
    Io,
    NewRecord,
    control_record,
    input_body,
)
from everturn.rules import limits
from everturn.testing.runtime import SNAPSHOT, World

#: More than a conversation has that somebody copies into a test; some 30 MiB of memory.
RECORDS_MAX: Final = 100_000
_STOP: Final = '{"kind":"stop"}'
#: A command no engine knows; commands are shown to no reader.
_COMMAND: Final = (("", "seeded"),)


async def cover_out(world: World) -> None:
    """See that the stored snapshot's turn-complete is on `out`.

    Raises ValueError when more than RECORDS_MAX records would have to be made up.
    """
    snapshot = transcript.decode(await world.objects.get(SNAPSHOT))
    last = snapshot.last_out if snapshot is not None else None
    missing = await _missing(world, "out", last)
    if snapshot is not None and missing:
        await _append(world, "out", [NewRecord(headers=_COMMAND) for _ in range(missing - 1)])
        end = control_record(TURN_COMPLETE, snapshot.cursor.headers())
        await _append(world, "out", [end])


async def cover_in(world: World) -> None:
    """See that everything a snapshot or a turn-complete covers of `in` is there.

    Raises ValueError when more than RECORDS_MAX records would have to be made up.
    """
    snapshot = transcript.decode(await world.objects.get(SNAPSHOT))
    known = [snapshot.cursor] if snapshot is not None else []
    for record in reversed(await world.read_all("out")):
        if record.control == TURN_COMPLETE:
            known.append(InputCursor.of(record))
            break
    last = max((c.seq_num for c in known if c.seq_num is not None), default=None)
    parts = [world.ids.part() for _ in range(await _missing(world, "in", last))]
    await _append(world, "in", [NewRecord(input_body(_STOP, part), (), part) for part in parts])


async def _missing(world: World, io: Io, last: int | None) -> int:
    """How many records a channel needs for the number `last` to be one of them."""
    if last is None:
        return 0
    missing = last + 1 - (await world.streams.bounds(world.channel(io))).tail
    if missing > RECORDS_MAX:
        raise ValueError(
            f"the seeded snapshot covers record {last} of `{io}`, and {missing} of these records "
            f"are not there; at most {RECORDS_MAX} are made up: seed smaller numbers"
        )
    return max(0, missing)


async def _append(world: World, io: Io, records: list[NewRecord]) -> None:
    for first in range(0, len(records), limits.BATCH_RECORDS_MAX):
        page = records[first : first + limits.BATCH_RECORDS_MAX]
        await world.streams.append(world.channel(io), page)
