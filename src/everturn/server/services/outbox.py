"""Writing `.out`: chunks of runs under their fence, guests, and the server's own last word."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from everturn.errors import Fenced, InvalidRequest
from everturn.protocol.records import (
    TURN_COMPLETE,
    ChannelName,
    Input,
    InputCursor,
    NewRecord,
    control_record,
    data_body,
    trim_record,
)
from everturn.rules import limits
from everturn.rules.boot_records import failure_part_id
from everturn.server.services.readback import in_channel, newest_turn_complete, out_channel
from everturn.storage.ports.rows import Run, Session

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.streams import Appended

log = logging.getLogger("everturn.outbox")

#: Channels of runs kept in memory; a miss costs one look at the state store.
_CHANNELS_KEPT: Final = 10_000
#: Records by which the visible start of `in` moves at once.
_TRIM_STEP: Final = 1_000


class Outbox:
    """Appends to `.out`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._channels: OrderedDict[str, ChannelName] = OrderedDict()

    def bind(self, run_id: str, channel: ChannelName) -> None:
        """Remember which channel a run writes to, so that no append has to look it up."""
        self._channels[run_id] = channel
        self._channels.move_to_end(run_id)
        if len(self._channels) > _CHANNELS_KEPT:
            self._channels.popitem(last=False)

    async def append_run(
        self, run_id: str, fence: int, first_part: int, records: Sequence[NewRecord]
    ) -> Appended:
        """Store parts `first_part …` of a run under its fence; return once they are durable.

        Raises Fenced when another run owns the session by now, TooLarge for a record over its
        limit (nothing is stored then), ProtocolError when earlier parts are missing, and
        InvalidRequest for a run without a session.
        """
        channel = self._channels.get(run_id) or await self._look_up(run_id)
        return await self._services.streams.append(
            channel, records, fence=fence, first_part=first_part
        )

    async def append_guest(self, channel: ChannelName, records: Sequence[NewRecord]) -> Appended:
        """Store records of somebody who holds no lease (rulings §1.3)."""
        return await self._services.streams.append(channel, records)

    async def committed(self, session: Session) -> InputCursor:
        """What of `.in` is decided: the later of the newest turn-complete and the session row.

        The snapshot is not read: it runs ahead of the log only between the two writes of an
        action, and there a run that boots writes the missing turn-complete (rulings §1.13).
        """
        record = await newest_turn_complete(self._services.streams, out_channel(session))
        if record is None:
            return session.cursor
        return session.cursor.newest(InputCursor.of(record))

    async def fence_off(self, session: Session, run: Run) -> None:
        """Let nothing more of `run` onto `.out`. The next claim's fence may still write."""
        await self._services.streams.raise_fence(out_channel(session), run.fence + 1)

    async def fail_open_turn(
        self,
        session: Session,
        run: Run,
        message: str,
        *,
        first: Input | None = None,
        committed: InputCursor | None = None,
    ) -> InputCursor:
        """End the turn that a dead run left open: an error chunk and a turn-complete.

        The caller has fenced the run off, so that nothing of it follows them. Both are one append: a browser that sees the first without the second may send again and
        then show an empty answer (rulings §1.21). The partial text before them stays. Repeating
        the call adds nothing, because the parts are named after run and message.

        Args:
            message: what the reader sees; holds nothing of the author's code.
            first: the open message whose turn it was; None when the log names none.
            committed: the cursor so far, read when not given.

        Returns:
            The cursor the turn-complete carries: everything up to the failed message.
        """
        before = committed if committed is not None else await self.committed(session)
        after = before if first is None else _decide(before, first.seq_num)
        seq_num = None if first is None else first.seq_num
        error_id = failure_part_id(run.id, seq_num, "error")
        chunk = msgspec.json.encode({"type": "error", "errorText": message})
        done = control_record(TURN_COMPLETE, after.headers())
        await self.append_guest(
            out_channel(session),
            [
                NewRecord(data_body(chunk, error_id), (), error_id),
                NewRecord(done.body, done.headers, failure_part_id(run.id, seq_num, "tc")),
            ],
        )
        log.warning(
            "turn.failed_by_server",
            extra={"session_id": session.id, "run_id": run.id, "in_seq_num": seq_num},
        )
        return after

    async def trim_input(self, session: Session, committed: InputCursor) -> bool:
        """Forget old records of `in`: those far enough below what is committed.

        The start follows the committed cursor at a distance of limits.INPUT_KEPT records and in
        steps, so that most calls only look. Everything at or below the cursor is decided, so an
        undecided record is never passed (rulings §1.17). True when it was moved.
        """
        if committed.seq_num is None or committed.seq_num <= limits.INPUT_KEPT + _TRIM_STEP:
            return False
        target = committed.seq_num - limits.INPUT_KEPT
        bounds = await self._services.streams.bounds(in_channel(session))
        if target - bounds.first < _TRIM_STEP:
            return False
        await self._services.streams.append(in_channel(session), [trim_record(target)])
        return True

    async def _look_up(self, run_id: str) -> ChannelName:
        state = self._services.state
        run = await state.run(None, run_id)
        if run is None:
            raise Fenced(f"run {run_id} is not known", run_id=run_id)
        if run.session_id is None:
            raise InvalidRequest(f"run {run_id} has no session to write to", run_id=run_id)
        session = await state.session(run.environment_id, run.session_id)
        if session is None:
            raise Fenced(f"the session of run {run_id} is gone", run_id=run_id)
        channel = out_channel(session)
        self.bind(run_id, channel)
        return channel


def _decide(cursor: InputCursor, seq_num: int) -> InputCursor:
    """The cursor after the first open message was decided too.

    It is the first open one, so nothing undecided that waits for an answer lies below it; the
    numbers above it that were decided before stay decided.
    """
    return InputCursor(seq_num, frozenset(n for n in cursor.decided if n > seq_num))
