"""What came in and what of it is decided: one FIFO, two cursors (chat-agent §2.14, §2.18).

Every record of `.in` passes `Intake._arrived` exactly once, whatever path it took. Messages that
want a turn, and `close`, go to the end of one FIFO and are *open* until their own turn-complete
is written. Everything else is decided on the spot.

The committed cursor is the number just below the oldest open record, or the tail cursor when
nothing is open. Stops that were used while an older message is still open lie above it: they are
named one by one in the decided set, so that a later boot does not apply them again (rulings §1.7).
A stop that waits for its message is decided with that message's turn and not before: a crash in
between must find it again. Unknown records need no such mark, since a boot drops them anyway.

A handover (head start) is open like a message, but has a slot of its own: it is taken before
anything in the FIFO, once, by a run that expects one. Nobody else's is kept.

A stop counts from the moment its message is taken from the FIFO, and before: without a target it
means the turn in progress, or else the message that is next; with a target, exactly that message.
A stop for a turn that has its answer, or for nothing, is consumed silently (rulings §1.12). Once
the turn-complete is durable clients take the turn for over, while its completion hook may still
run: a message that is sent from then on is the turn in progress to them, and a stop means it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

from anyio.abc import TaskGroup

from everturn.protocol.records import Input, InputCursor, parse_input
from everturn.rules import limits
from everturn.rules.boot import target_of
from everturn.tasks.channels import SessionInput, within
from everturn.tasks.runtime import RunRuntime
from everturn.tasks.signals import Notice, Signal

#: The seq_num of a message that was never on `.in`: from the boot payload, or made by a hook.
NOWHERE = -1
STOPPED = "stopped"
HANDOVERS: Final = ("handover", "handover-skip")


class _Stop(NamedTuple):
    """A stop that waits for the turn of its message."""

    seq_num: int
    reason: str


class Intake:
    """The run's inputs. One per run; the turn loop is its only taker."""

    def __init__(self, runtime: RunRuntime, tasks: TaskGroup, cursor: InputCursor) -> None:
        """`cursor` is the newest committed cursor: nothing it covers is delivered."""
        self._clock = runtime.clock
        self._draining = runtime.draining
        self._base = cursor
        self._floor = cursor.seq_num
        self._decided: set[int] = set(cursor.decided)
        #: A list, because an empty one costs nothing; taking from its front is rare.
        self._fifo: list[Input] = []
        #: Open seq_nums in rising order: received, and not covered by a turn-complete.
        self._open: dict[int, None] = {}
        #: By the number of a message that waits in the FIFO: the stop that means it.
        self._stops: dict[int, _Stop] = {}
        self._current: Input | None = None
        #: The tail cursor when the turn in progress had its turn-complete; None until then.
        self._over_at: int | None = None
        #: Further inputs that the turn in progress answers.
        self._joined: list[Input] = []
        self._stop: Signal | None = None
        self._expects_handover = False
        self._handover: Input | None = None
        self._handed_over = Notice()
        self._watchers: list[Callable[[], object]] = []
        self._listening = False
        self._arrival = Notice()
        self._taken = Notice()
        self.source: SessionInput[Input] = SessionInput(
            runtime, tasks, decode=parse_input, after=cursor.seq_num, room=self._room
        )

    def listen(self) -> None:
        """Follow `.in` from the tail cursor. Calling it again follows on, where that had ended."""
        if self._listening:
            self.source.open()
        else:
            self._listening = True
            self.source.on(self._arrived)

    def seed(
        self,
        items: Iterable[Input],
        *,
        stops: Iterable[Input] = (),
        decided: Iterable[int] = (),
        tail: int | None,
    ) -> None:
        """What a boot read: `items` are queued in order, `decided` need nothing more.

        Called before `listen`; `stops` name messages among the items, `tail` is the highest
        number read.
        """
        for item in items:
            self._fifo.append(item)
            if item.seq_num != NOWHERE:
                self._open[item.seq_num] = None
        self._open = dict.fromkeys(sorted(self._open))
        self._decided.update(decided)
        for stop in stops:
            if not self._stop_arrived(stop):
                self._decided.add(stop.seq_num)
        if tail is not None:
            self.source.advance(tail)

    # --- taking --------------------------------------------------------------------------------

    def head(self) -> Input | None:
        return self._fifo[0] if self._fifo else None

    def drop_head(self) -> None:
        """Take the head without a turn: it needs none."""
        self.decide(self._fifo.pop(0).seq_num)

    def waiting(self) -> tuple[Input, ...]:
        """What is in the FIFO, in order of arrival."""
        return tuple(self._fifo)

    def newest(self) -> Input | None:
        """What joined the FIFO last."""
        return self._fifo[-1] if self._fifo else None

    @property
    def current(self) -> Input | None:
        """What the turn in progress answers."""
        return self._current

    @property
    def open_numbers(self) -> Collection[int]:
        """The numbers of the records that no turn-complete covers yet, in rising order."""
        return self._open.keys()

    def has_stop(self, seq_num: int) -> bool:
        """Whether a stop waits for the turn of this message."""
        return seq_num in self._stops

    def interrupt(self, reason: str) -> None:
        """Stop the turn in progress, if it still can be."""
        if self._stop is not None:
            self._stop.abort(reason)

    @property
    def takes_more(self) -> bool:
        """Whether something may still join the turn in progress: it has no whole answer yet."""
        return self._stop is not None

    def has_work(self) -> bool:
        return bool(self._fifo)

    def begin(self, item: Input | None, stop: Signal) -> Input:
        """Start the turn of the FIFO's head, or of `item` from elsewhere; `stop` is its signal."""
        current = item if item is not None else self._fifo.pop(0)
        self._left()
        self._current, self._stop, self._over_at = current, stop, None
        self._use_stop(current)
        return current

    def join(self, item: Input | None = None) -> Input:
        """Take the FIFO's head, or `item` from inside of it, into the turn in progress.

        A stop meant for it stops that turn. It stays open until the turn is decided, so a crash
        before that leaves it where it was (rulings §1.14).
        """
        if item is None:
            item = self._fifo.pop(0)
        else:
            self._fifo.remove(item)
        self._left()
        self._joined.append(item)
        self._use_stop(item)
        return item

    def decide_turn(self) -> None:
        """Everything the turn in progress took is decided: its turn-complete is being written."""
        for item in (self._current, *self._joined):
            if item is not None:
                self.decide(item.seq_num)

    def committed(self) -> None:
        """The turn-complete of the turn in progress is durable: readers see it as over."""
        if self._current is not None:
            tail = self.source.tail_cursor
            self._over_at = -1 if tail is None else tail

    def unstoppable(self) -> None:
        """From here on a stop comes too late for the turn in progress (§2.8, T25)."""
        self._stop = None

    def done(self) -> None:
        """The turn in progress is over."""
        self._current = self._stop = self._over_at = None
        self._joined.clear()

    def watch(self, arrived: Callable[[], object]) -> Callable[[], None]:
        """Call `arrived()` after each record that joins the FIFO. Returns how to undo it."""
        self._watchers.append(arrived)

        def undo() -> None:
            if arrived in self._watchers:
                self._watchers.remove(arrived)

        return undo

    # --- head start ----------------------------------------------------------------------------

    def expect_handover(self, found: Sequence[Input] = ()) -> None:
        """Keep the first handover that comes. Called before `listen`.

        `found` is the one that lies in the log already, and the stops that mean it.
        """
        self._expects_handover = True
        for item in found:
            if item.kind in HANDOVERS:
                self._handover_arrived(item)
                self._open = dict.fromkeys(sorted(self._open))
            else:
                self._stop_arrived(item)

    async def handover(self, limit_s: float) -> Input | None:
        """The handover, within `limit_s` seconds; None after a skip or when none came.

        It stays open until it is decided. One that comes later is dropped.
        """
        await within(self._clock, limit_s, self._handed_over.wait)
        self._expects_handover = False
        item, self._handover = self._handover, None
        if item is not None and item.kind == "handover-skip":
            self.decide(item.seq_num)
            return None
        return item

    def _handover_arrived(self, item: Input) -> None:
        if self._handover is None:
            self._handover = item
            self._open[item.seq_num] = None
            self._handed_over.set()

    async def arrives(self, limit_s: float | None) -> bool:
        """Wait until the FIFO holds something; False after `limit_s` seconds without, and at
        once when the process is about to go."""
        if self._fifo:
            return True
        undo = self._draining.on_abort(lambda _: self._arrival.set())
        try:
            await within(self._clock, limit_s, self._arrival.wait)
        finally:
            undo()
        return bool(self._fifo)

    def _left(self) -> None:
        """Something left the FIFO."""
        if not self._fifo:
            self._arrival = Notice()
        self._taken.set()

    # --- cursors -------------------------------------------------------------------------------

    def decide(self, seq_num: int) -> None:
        """The record needs nothing more: its turn-complete is being written, or it was dropped."""
        if seq_num == NOWHERE:
            return
        self._open.pop(seq_num, None)
        stop = self._stops.pop(seq_num, None)
        if self._open:
            self._decided.add(seq_num)
            if stop is not None:
                self._decided.add(stop.seq_num)

    def cursor(self) -> InputCursor:
        """The committed cursor now. Monotonic; `seq_num` is None while nothing was received."""
        tail = self.source.tail_cursor
        floor = next(iter(self._open)) - 1 if self._open else tail
        if floor is not None and floor >= 0 and (self._floor is None or floor > self._floor):
            self._floor = floor
        known = -1 if self._floor is None else self._floor
        self._decided = {number for number in self._decided if number > known}
        return InputCursor(self._floor, frozenset(self._decided))

    # --- arriving ------------------------------------------------------------------------------

    def _arrived(self, item: Input) -> bool:
        """One record, synchronously. Returns True: the buffer beneath stays empty."""
        if self._base.covers(item.seq_num):
            return True
        if item.needs_answer or item.trigger == "close":
            self._open[item.seq_num] = None
            self._fifo.append(item)
            self._arrival.set()
            for arrived in list(self._watchers):
                arrived()
        elif item.kind in HANDOVERS and self._expects_handover:
            self._handover_arrived(item)
        elif item.kind == "stop" and not self._stop_arrived(item) and self._open:
            self._decided.add(item.seq_num)
        return True

    def _stop_arrived(self, item: Input) -> bool:
        """Use the stop; True when it waits for the turn of its message instead."""
        message = item.payload.get("message")
        reason = message if isinstance(message, str) and message else STOPPED
        target = target_of(item)
        if self._current is not None and self._means_current(target):
            if self._stop is not None:
                self._stop.abort(reason)
            return False
        if target is None:
            head = self._handover or self.head()
            target = head.seq_num if head is not None else None
        if target is None or target not in self._open or target in self._stops:
            return False
        self._stops[target] = _Stop(item.seq_num, reason)
        return True

    def _means_current(self, target: int | None) -> bool:
        if target is not None:
            return target in self._answered()
        head = self.head()
        return self._over_at is None or head is None or head.seq_num <= self._over_at

    def _use_stop(self, item: Input) -> None:
        """The turn of a message begins: the stop that waited for it counts."""
        stop = self._stops.pop(item.seq_num, None)
        if stop is None:
            return
        if self._open:
            self._decided.add(stop.seq_num)
        if self._stop is not None:
            self._stop.abort(stop.reason)

    def _answered(self) -> list[int]:
        """The numbers of what the turn in progress answers."""
        return [item.seq_num for item in (self._current, *self._joined) if item is not None]

    async def _room(self) -> None:
        while len(self._fifo) >= limits.INPUT_BUFFER_MAX:
            self._taken = Notice()
            await self._taken.wait()
