"""Which records of `.out` belong to the turn somebody asked for.

`.out` is one log for all turns, so whoever sends a message must know where its answer begins and
ends. The end is exact: every turn-complete names what of `.in` it has decided, and the append told
the number of our record, so our turn is over when a turn-complete covers that number (X-01). A
turn-complete that does not is the end of somebody else's turn, and reading goes on.

The beginning matters only while something that this client sent before is *unsettled*: no
turn-complete that covers it was seen. Its stream was aborted or left early, the new message was
sent before the answer to it was over, or it was a steered message, which has no stream at all and
may have joined a turn or be answered in one of its own. Messages are answered in the order of
`.in`, so everything that arrives until all of them are covered is not ours, and is skipped.

A message may also join a turn that is under way (steering): then one turn-complete covers it and
what came before it. A marker in the answer names the messages that joined; from it on the turn is
theirs too, so the skipping ends there, and the `start` that the reader skipped comes first. When
that turn is answered anew after a crash, it has joined nothing yet.

Others may write to the same session: another tab, another process. A number that an append answers
is then higher than the next one this client knows of, and what lies between is looked up
(`ChatState.misses`, `others`): the messages among it are unsettled too.

Servers that answer an append without a number still work: the first turn-complete ends the turn,
or, while skipping, ends the skipping.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import anyio

from everturn.client.follow import Arrived, Follower
from everturn.protocol.chunks import INJECTED_CHUNK
from everturn.protocol.records import RESTARTED_CHUNK, TURN_COMPLETE, InputCursor, Record
from everturn.rules import limits

#: Spelling of control records in logs of old writers: data chunks of these types.
_LEGACY: Final = "trigger:"
_LEGACY_TURN_COMPLETE: Final = "trigger:turn-complete"
#: A stop is worth waiting for, but not for long: the server may be gone.
STOP_S_MAX: Final = 10.0


class AbortSignal(Protocol):
    """What a caller stops an answer with; `everturn.Signal` is one."""

    @property
    def aborted(self) -> bool: ...

    def on_abort(self, callback: Callable[[str], object]) -> Callable[[], None]: ...


class Boundary:
    """Tells, record by record, what to skip and when the turn is over.

    Args:
        target: `.in` number of the message whose turn is wanted; None if unknown.
        skipping: whether turns that are not wanted come first.
        earlier: the `.in` numbers those turns answer, as far as they are known.
        message_id: of the message; empty for what can join no turn.
    """

    __slots__ = ("_earlier", "_joined", "_message_id", "skipping", "target")

    def __init__(
        self,
        target: int | None,
        *,
        skipping: bool = False,
        earlier: Iterable[int] = (),
        message_id: str = "",
    ) -> None:
        self.target = target
        self.skipping = skipping
        self._earlier = frozenset(earlier)
        self._message_id = message_id
        #: Whether it was in the turn of another message that the skipping ended.
        self._joined = False

    def joins(self, chunk: Mapping[str, Any]) -> bool:
        """Whether the message joins, here, a turn that was skipped so far."""
        if not (self.skipping and self._message_id and chunk["type"] == INJECTED_CHUNK):
            return False
        data = chunk.get("data")
        ids = data.get("messageIds") if isinstance(data, dict) else None
        self._joined = isinstance(ids, list) and self._message_id in ids
        self.skipping = not self._joined
        return self._joined

    def restarted(self) -> None:
        """The turn is answered anew, and what had joined it waits once more."""
        self.skipping = self.skipping or self._joined
        self._joined = False

    def turn_complete(self, cursor: InputCursor) -> bool:
        """A turn ended with this cursor. True when it was the one wanted."""
        if self.target is not None and is_known(cursor):
            ours = cursor.covers(self.target)
        else:
            ours = not self.skipping
        if not is_known(cursor) or all(map(cursor.covers, self._earlier)):
            self.skipping = False
        self._joined = False
        return ours


def is_known(cursor: InputCursor) -> bool:
    """Whether a turn-complete says at all what it has decided; those of old writers do not."""
    return cursor.seq_num is not None or bool(cursor.decided)


class ChatState:
    """What a chat client knows of its chat; shared by the streams it hands out."""

    __slots__ = ("_known", "_open_turn", "_settled", "_unsettled", "last_seq", "opened", "started")

    def __init__(self, *, started: bool, last_seq: int | None) -> None:
        self.started = started
        #: The newest `.out` record seen: where the next stream begins.
        self.last_seq = last_seq
        #: Numbers of what this client sent and no turn-complete seen so far covers, in order.
        self._unsettled: dict[int, None] = {}
        #: What the newest turn-complete seen has decided. The answer to an append may come after
        #: it: its first try was stored, and only the second was answered.
        self._settled = InputCursor()
        #: Whether a turn is under way of which only that is known.
        self._open_turn = False
        #: The `start` chunk of the turn under way, as far as it was seen.
        self.opened: dict[str, Any] | None = None
        #: Up to here everything on `.in` is either settled or unsettled; None when nobody looked.
        self._known: int | None = None

    @property
    def unsettled(self) -> tuple[int, ...]:
        """The `.in` numbers of what was sent and not seen to be settled, in order."""
        return tuple(self._unsettled)

    @property
    def is_settled(self) -> bool:
        """Whether no turn is awaited or known to be under way."""
        return not (self._unsettled or self._open_turn)

    @property
    def known(self) -> int | None:
        """The `.in` number up to which this client knows of everything; None if it never looked."""
        return self._known

    def looked(self) -> None:
        """`.out` was read up to its end: what no turn-complete covered is still to come."""
        if self._known is None:
            self._known = -1

    def misses(self, seq: int) -> bool:
        """Whether somebody else wrote between what is known and this number."""
        return self._known is not None and seq > self._known + 1

    def wrote(self, seq: int | None) -> None:
        """A record of this client was stored."""
        if seq is not None and not self.misses(seq):
            self._knows(seq)

    def others(self, seqs: Iterable[int], *, upto: int) -> None:
        """Messages of others below `upto`, which are answered before what comes there."""
        for seq in seqs:
            self._expect(seq)
        self._knows(upto)

    def turn_is_open(self) -> None:
        """Somebody's turn is under way; its end was not seen."""
        self._open_turn = True

    def awaits(self, seq: int | None, message_id: str = "") -> Boundary:
        """A message was appended; the boundary of its turn, behind all that is unsettled."""
        earlier = [number for number in self._unsettled if seq is None or number < seq]
        skipping = bool(earlier) or self._open_turn
        boundary = Boundary(seq, skipping=skipping, earlier=earlier, message_id=message_id)
        self.sent(seq)
        return boundary

    def sent(self, seq: int | None) -> None:
        """A message was appended that some turn will answer.

        Of more than limits.INPUT_BUFFER_MAX the first are forgotten: they are answered before
        the others, so that skipping up to those skips them too.
        """
        if seq is None:
            self._open_turn = True
            return
        self.wrote(seq)
        self._expect(seq)

    def _expect(self, seq: int) -> None:
        """A turn-complete that covers this number is still to come, if none was seen."""
        if self._settled.covers(seq):
            return
        self._unsettled[seq] = None
        if len(self._unsettled) > limits.INPUT_BUFFER_MAX:
            del self._unsettled[next(iter(self._unsettled))]

    def _knows(self, seq: int) -> None:
        """Never less than before: answers to appends may come in another order than they."""
        self._known = seq if self._known is None else max(seq, self._known)

    def saw(self, record: Record) -> None:
        if self.last_seq is None or record.seq_num > self.last_seq:
            self.last_seq = record.seq_num

    def saw_turn_complete(self, cursor: InputCursor) -> None:
        self._open_turn = False
        self.opened = None
        self._settled = self._settled.newest(cursor)
        if cursor.seq_num is not None:
            self._knows(cursor.seq_num)
        for seq in self.unsettled:
            if not is_known(cursor) or cursor.covers(seq):
                del self._unsettled[seq]


class TurnReader:
    """Reads one turn's chunks: what `ChatStream` stands on.

    Args:
        on_stop: called once if `signal` is aborted; appends the stop record.
        on_turn_complete: called at each turn-complete, with its number.
    """

    def __init__(
        self,
        follower: Follower,
        state: ChatState,
        boundary: Boundary,
        *,
        signal: AbortSignal | None,
        on_stop: Callable[[], Awaitable[None]] | None,
        on_turn_complete: Callable[[int], Awaitable[None]],
    ) -> None:
        self._follower = follower
        self._state = state
        self._boundary = boundary
        self._on_stop = on_stop
        self._on_turn_complete = on_turn_complete
        self._scope: anyio.CancelScope | None = None
        self._aborted = False
        #: Comes after the chunk that was returned last.
        self._next: dict[str, Any] | None = None
        self._has_shown = False
        #: The follower ended before the turn did.
        self._silent = False
        self._undo: Callable[[], None] = lambda: None
        self.complete = False
        self.closed = False
        if signal is not None:
            self._undo = signal.on_abort(self._abort)

    def waiting(self) -> bool:
        """Whether the end of the turn is still to come."""
        return not self.complete

    async def next(self) -> dict[str, Any] | None:
        """The next chunk of the turn; None at its end, however it ended.

        Raises what following raises.
        """
        while not (self.closed or self.complete or self._silent):
            if self._next is not None:
                follows, self._next = self._next, None
                return follows
            if self._aborted:
                await self.settle()
                break
            arrived = await self._arrived()
            if arrived is None:
                continue
            chunk = await self._chunk(arrived)
            if chunk is not None:
                return chunk
        await self.aclose()
        return None

    async def settle(self) -> None:
        """Carry out an abort that came: append the stop record. Once; does nothing otherwise.

        The record is appended by whoever reads next and not in the background, so that no task
        outlives its caller and a message sent after the abort comes after the stop.
        """
        if self._aborted and self._on_stop is not None:
            stop, self._on_stop = self._on_stop, None
            with anyio.move_on_after(STOP_S_MAX, shield=True):
                await stop()

    async def aclose(self) -> None:
        """Stop reading. No stop record is sent, unless the signal was aborted before."""
        if not self.closed:
            self.closed = True
            self._undo()
            await self._follower.aclose()
            await self.settle()

    def _abort(self, _reason: str) -> None:
        self._aborted = True
        if self._scope is not None:
            self._scope.cancel()

    async def _arrived(self) -> Arrived | None:
        """The next record; None when aborted or when there are no more."""
        arrived: Arrived | None = None
        with anyio.CancelScope() as self._scope:
            arrived = await self._follower.next()
            self._silent = arrived is None
        self._scope = None
        return arrived

    async def _chunk(self, arrived: Arrived) -> dict[str, Any] | None:
        """What a record means for the reader: a chunk, or nothing to show."""
        self._state.saw(arrived.record)
        data = arrived.data
        kind = data.get("type") if isinstance(data, dict) else None
        if arrived.record.control == TURN_COMPLETE or kind == _LEGACY_TURN_COMPLETE:
            cursor = InputCursor.of(arrived.record)
            self._state.saw_turn_complete(cursor)
            self.complete = self._boundary.turn_complete(cursor)
            await self._on_turn_complete(arrived.record.seq_num)
            return None if self.complete else self._taken_back()
        if not isinstance(data, dict) or not isinstance(kind, str) or kind.startswith(_LEGACY):
            return None
        return self._shown(data)

    def _taken_back(self) -> dict[str, Any] | None:
        """Another turn has ended. What was shown of it, if anything, was not the answer.

        Our message had joined that turn, which failed without it; or what others had sent before
        it could not be known.
        """
        shown, self._has_shown = self._has_shown, False
        return {"type": RESTARTED_CHUNK, "data": {}} if shown else None

    def _shown(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """What of a chunk the reader is shown; None for what belongs to another message."""
        shown = self._of_ours(chunk)
        self._has_shown = self._has_shown or shown is not None
        return shown

    def _of_ours(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        if chunk["type"] == "start":
            self._state.opened = chunk
        elif chunk["type"] == RESTARTED_CHUNK:
            skipped = self._boundary.skipping
            self._boundary.restarted()
            return None if skipped else chunk
        elif self._boundary.joins(chunk) and self._state.opened is not None:
            self._next = chunk
            return self._state.opened
        return None if self._boundary.skipping else chunk
