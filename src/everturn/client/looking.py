"""What happened on a session while this client was not reading.

A client reads `.out` only while somebody waits for an answer. Before it sends, and when the number
of what it sent tells that others have written, it looks at what is stored: which turns have ended
meanwhile, and which messages are still to be answered before its own. What it finds goes into its
`ChatState`; nothing here waits for an answer to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from everturn.client.api import Api
from everturn.client.follow import BACKOFF_S, BACKOFF_S_MAX, may_come_back, stored_records
from everturn.client.turns import ChatState
from everturn.errors import EverturnError, SessionNotFound
from everturn.protocol.records import TURN_COMPLETE, InputCursor, Record, open_envelope, parse_input

#: How long a message that was sent waits for what others wrote before it.
PATIENCE_S: Final = 60.0


async def look_first(api: Api, session: str, state: ChatState) -> None:
    """See where an existing session stands; the cursor moves to the end of what is stored.

    Raises what reading `.out` raises, but for a session that does not exist.
    """
    cursor = state.last_seq
    # The record a stored cursor names, too: the end of a turn says what it has answered.
    after = cursor - 1 if cursor else None
    try:
        records = await stored_records(api, session, "out", after=after)
        if after is not None and not any(map(_ends_a_turn, records)):
            # It names the middle of a turn: the end of the one before says what is answered.
            records = await stored_records(api, session, "out")
    except SessionNotFound:
        return
    under_way = _take_ends(state, records)
    if not any(map(_ends_a_turn, records)) and _is_whole(records, cursor):
        state.looked()
    if under_way and not await _find_open(api, session, state):
        state.turn_is_open()
    if records:
        state.saw(records[-1])


async def look_for_ends(
    api: Api, session: str, state: ChatState, *, before: int | None = None
) -> None:
    """See what is settled meanwhile; when all is, the cursor moves past it.

    With `before`, up to the turn that answers that message. Raises as `look_first` does.
    """
    try:
        records = await stored_records(api, session, "out", after=state.last_seq)
    except SessionNotFound:
        return
    _take_ends(state, records, before=before)


async def look_for_others(api: Api, session: str, state: ChatState, seq: int) -> None:
    """Somebody else wrote before our message: their answers come first, or came already."""
    known = state.known
    after = None if known is None or known < 0 else known
    try:
        records = await _patiently(api, session, after)
    except EverturnError:
        return  # a token or a proxy that reads answers only; then as if nobody had
    inputs = (parse_input(record) for record in records if record.seq_num < seq)
    state.others((i.seq_num for i in inputs if i.needs_answer), upto=seq - 1)
    # Our message is stored: an error now would be taken for one that is not. What has ended
    # already, the stream sees as well.
    with suppress(EverturnError):
        await look_for_ends(api, session, state, before=seq)


async def _patiently(api: Api, session: str, after: int | None) -> list[Record]:
    """What is stored on `.in`, also from a server that is away for a while.

    Not to know what others wrote is to show their answers as ours. The stream, which comes next,
    would wait for that server too. Raises what reading raises.
    """
    pause_s, until = BACKOFF_S, api.clock.monotonic() + PATIENCE_S
    while True:
        try:
            return await stored_records(api, session, "in", after=after)
        except EverturnError as error:
            if not may_come_back(error) or api.clock.monotonic() >= until:
                raise
        await api.clock.sleep(pause_s * api.ids.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, BACKOFF_S_MAX)


def _take_ends(state: ChatState, records: Sequence[Record], *, before: int | None = None) -> bool:
    """Take in ends of turns. True when something was written after the last of them."""
    under_way = False
    for record in records:
        if _ends_a_turn(record):
            cursor = InputCursor.of(record)
            if before is not None and cursor.covers(before):
                return False
            state.saw_turn_complete(cursor)
            under_way = False
            if state.is_settled:
                state.saw(record)
        elif record.is_data:
            under_way = True
    if under_way:
        state.opened = _start_chunk(records)
    return under_way


def _start_chunk(records: Sequence[Record]) -> dict[str, Any] | None:
    """The `start` chunk of the turn that the records end in the middle of."""
    for record in reversed(records):
        if _ends_a_turn(record):
            break
        # Most of an answer is text: what cannot be a start is not decoded.
        if record.is_data and b'"start"' in record.body:
            chunk, _ = open_envelope(record.body) or (None, "")
            if isinstance(chunk, dict) and chunk.get("type") == "start":
                return chunk
    return None


async def _find_open(api: Api, session: str, state: ChatState) -> bool:
    """Which messages what is under way may answer; False when that cannot be told.

    None at all is an answer too: not everything on `.out` belongs to a turn, and to skip up to
    the end of one that is not under way would be to skip the next answer.
    """
    if state.known is None:
        return False
    after = state.known if state.known >= 0 else None
    try:
        inputs = [parse_input(r) for r in await stored_records(api, session, "in", after=after)]
    except EverturnError:
        return False  # a token or a proxy that reads answers only
    if any(one.kind == "handover" for one in inputs):
        return False  # it answers a message that is not on `.in`
    if inputs:
        state.others((i.seq_num for i in inputs if i.needs_answer), upto=inputs[-1].seq_num)
    return True


def _is_whole(records: Sequence[Record], cursor: int | None) -> bool:
    """Whether nothing was forgotten before what was read, as far as that can be seen."""
    return records[0].seq_num == 0 if records else cursor is None


def _ends_a_turn(record: Record) -> bool:
    return record.control == TURN_COMPLETE
