"""Reading the log back: what is committed, what is open, what a dead run left behind.

Status is always derived from the log (P-7). Everything here only reads; the callers have raised
the fence, or set the run's state, before they ask, so that the answer cannot change under them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from everturn.errors import CursorTrimmed
from everturn.protocol.records import (
    TURN_COMPLETE,
    ChannelName,
    Input,
    InputCursor,
    Record,
    open_envelope,
    parse_input,
)
from everturn.rules.boot_records import is_failure_part
from everturn.storage.ports.rows import Run, Session

if TYPE_CHECKING:
    from everturn.storage.ports.streams import StreamStore

#: Records read at once. Most answers lie in the first page: a turn-complete is the newest or
#: the second newest record of an idle session.
_PAGE = 200


class OutTail(msgspec.Struct, frozen=True, kw_only=True):
    """The end of `.out` as one run left it."""

    #: The newest turn-complete, None when there is none.
    turn_complete: Record | None = None
    #: Data lies after it.
    open_data: bool = False
    #: Something in the newest group or after it carries the run's fence.
    wrote: bool = False
    #: The server has closed a turn of this run already.
    failed_already: bool = False

    @property
    def cursor(self) -> InputCursor:
        return InputCursor() if self.turn_complete is None else InputCursor.of(self.turn_complete)


class OpenInput(msgspec.Struct, frozen=True):
    """The first message that somebody waits for, and whether there is another behind it."""

    first: Input | None = None
    more: bool = False


def out_channel(session: Session) -> ChannelName:
    return ChannelName(session.environment_id, session.key, "out")


def in_channel(session: Session) -> ChannelName:
    return ChannelName(session.environment_id, session.key, "in")


async def newest_turn_complete(streams: StreamStore, channel: ChannelName) -> Record | None:
    """The newest turn-complete that is still visible."""
    async for record in _back(streams, channel):
        if record.control == TURN_COMPLETE:
            return record
    return None


async def out_tail(streams: StreamStore, session: Session, run: Run) -> OutTail:
    """What `run` left at the end of its session's `.out`.

    Reads back to the newest turn-complete, and one group further when the server itself wrote
    that one: the run's own records lie before it.
    """
    newest: Record | None = None
    open_data = wrote = failed_already = False
    async for record in _back(streams, out_channel(session)):
        wrote = wrote or (run.fence > 0 and record.fence == run.fence)
        if record.control == TURN_COMPLETE:
            if newest is not None:
                break
            newest = record
        elif record.is_data:
            opened = open_envelope(record.body) if record.fence == 0 else None
            if opened is not None and is_failure_part(opened[1], run.id):
                failed_already = True
            open_data = open_data or newest is None
        if newest is not None and (wrote or newest.fence > 0):
            break
    return OutTail(
        turn_complete=newest, open_data=open_data, wrote=wrote, failed_already=failed_already
    )


async def open_input(streams: StreamStore, session: Session, cursor: InputCursor) -> OpenInput:
    """The undecided records of `.in` that somebody waits for, as far as a decision needs them."""
    first: Input | None = None
    async for record in forward(streams, in_channel(session), cursor.seq_num):
        if cursor.covers(record.seq_num):
            continue
        entry = parse_input(record)
        if not entry.needs_answer:
            continue
        if first is not None:
            return OpenInput(first, True)
        first = entry
    return OpenInput(first, False)


async def forward(
    streams: StreamStore, channel: ChannelName, after: int | None
) -> AsyncIterator[Record]:
    """Visible records after a cursor, in pages. A cursor below the start begins at the start."""
    while True:
        try:
            page = await streams.read(channel, after=after, records_max=_PAGE)
        except CursorTrimmed as trimmed:
            # Rising every time, because the visible start only ever moves up.
            after = trimmed.first_seq_num - 1
            continue
        if not page:
            return
        for record in page:
            yield record
        after = page[-1].seq_num


async def _back(streams: StreamStore, channel: ChannelName) -> AsyncIterator[Record]:
    before: int | None = None
    while True:
        page = await streams.read_back(channel, before=before, records_max=_PAGE)
        for record in page:
            yield record
        if len(page) < _PAGE:
            return
        before = page[-1].seq_num
