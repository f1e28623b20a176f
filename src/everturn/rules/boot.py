"""What a chat run does when it starts: decisions only (chat-agent §2.2, §2.3; rulings §1.5-1.12).

The facts come from three reads: the snapshot, the records of `.out` after it, the records of
`.in` after the committed cursor. From them follows

* who is answered (`recover`): open submit, regenerate and action records keep their arrival
  order. On a further attempt of the same run the first of them is answered again. On a
  continuation that finds an unfinished answer, the message it belongs to counts as answered by
  that partial (the server normally closes such a turn itself; this is the defence behind it).
* which message a stop meant: a stop that nobody decided, newer than the first open message,
  stops that message; a stop that names another open message waits for the turn of that one,
  because the turn of the first is not over.
* whether the run ends at once: a `close` that is the newest and only thing left.
* where the run goes first (`first_step`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from everturn.protocol.records import Input, InputCursor

#: The boot trigger of a run whose first answer begins elsewhere (head start).
HANDOVER_PREPARE: Final = "handover-prepare"


class Recovery(NamedTuple):
    """The row of §2.3 that applies."""

    #: Records to be handled, in order, before anything new.
    turns: tuple[Input, ...] = ()
    #: A message the unfinished answer is kept for: seeded before the partial, not run again.
    spliced: Input | None = None
    #: Whether the partial joins history.
    keeps_partial: bool = False
    #: Whether `on_recovery_boot` fires.
    asks_hook: bool = False
    #: The first message, when a stop ended it while nobody ran it: its turn-complete is due at
    #: boot.
    stopped: Input | None = None
    #: Stops that name later messages of `turns`.
    stops: tuple[Input, ...] = ()
    #: Seq numbers that need no turn: stale stops, closes, unknown records.
    dropped: tuple[int, ...] = ()
    #: A lone, newest `close`: the run ends right after `on_boot`.
    ends: Input | None = None
    #: What a head start handed over already, and the stops that came after it.
    handover: tuple[Input, ...] = ()


def open_inputs(inputs: Iterable[Input], cursor: InputCursor) -> list[Input]:
    """Inputs that no turn-complete and no snapshot decided, oldest first."""
    return [item for item in inputs if not cursor.covers(item.seq_num)]


def message_of(item: Input) -> Mapping[str, Any] | None:
    """The UI message a record carries, None when it carries none."""
    message = item.payload.get("message")
    return message if isinstance(message, dict) else None


def target_of(stop: Input) -> int | None:
    """The `.in` number of the message a stop means; None for the turn in progress."""
    target = stop.payload.get("targetSeq")
    return target if isinstance(target, int) and not isinstance(target, bool) else None


def recover(
    *,
    prior: bool,
    attempt: int,
    has_partial: bool,
    undecided: Sequence[Input],
    expects_handover: bool = False,
) -> Recovery:
    """The recovery decision table.

    Args:
        prior: a continuation, or attempt > 1.
        has_partial: `.out` ends in an unfinished answer that holds more than step marks.
        undecided: what `open_inputs` answered.
        expects_handover: the first answer begins with a head start: what lies on `.out` is the
            warm side's and no answer of a dead attempt, and a stop without a target means it.
    """
    if not prior:
        return Recovery()
    if expects_handover:
        handed = _handed_over(undecided)
        others = [i for i in undecided if i not in handed and not _stops_anything(i)]
        found = recover(prior=True, attempt=attempt, has_partial=False, undecided=others)
        return found._replace(handover=handed)
    wanted = [item for item in undecided if item.needs_answer]
    stopped = _stopped(wanted, undecided)
    closes = [item for item in undecided if item.trigger == "close"]
    newest = next((item for item in reversed(undecided) if item.kind == "message"), None)
    ends = newest if newest is not None and newest in closes and not wanted else None
    stops = tuple(stop for stop in undecided if any(_stops(stop, item) for item in wanted[1:]))
    kept = (ends, *stops)
    dropped = tuple(
        item.seq_num for item in undecided if not item.needs_answer and item not in kept
    )
    base = Recovery(turns=tuple(wanted), dropped=dropped, ends=ends, stopped=stopped, stops=stops)
    if stopped is not None:
        return base._replace(turns=tuple(wanted[1:]), keeps_partial=True)
    if not has_partial:
        return base
    if attempt > 1:
        return base._replace(asks_hook=True)
    submits = [item for item in wanted if item.trigger == "submit-message"]
    if not submits:
        return base._replace(asks_hook=True)
    spliced = submits[0]
    rest = tuple(item for item in wanted if item is not spliced)
    return base._replace(turns=rest, spliced=spliced, keeps_partial=True, asks_hook=True)


def _handed_over(undecided: Sequence[Input]) -> tuple[Input, ...]:
    """The first handover, and the stops after it that mean its turn."""
    for index, item in enumerate(undecided):
        if item.kind in ("handover", "handover-skip"):
            later = undecided[index + 1 :]
            return (item, *(i for i in later if _stops_anything(i) or _stops(i, item)))
    return ()


def _stops_anything(item: Input) -> bool:
    return item.kind == "stop" and target_of(item) is None


def _stops(stop: Input, item: Input) -> bool:
    """Whether a stop names this message. One that names a message which came after it was made up,
    and means nothing: a run that was there to see it ignored it too."""
    return stop.kind == "stop" and target_of(stop) == item.seq_num and item.seq_num < stop.seq_num


def _stopped(wanted: Sequence[Input], undecided: Sequence[Input]) -> Input | None:
    """The first open message, when an undecided stop means it (rulings §1.12)."""
    if not wanted:
        return None
    first = wanted[0]
    for stop in undecided:
        if _stops(stop, first) or (_stops_anything(stop) and stop.seq_num > first.seq_num):
            return first
    return None


class FirstStep(StrEnum):
    """Where a run goes after `on_boot`."""

    QUEUE = "queue"  # something recovered waits to be handled
    HANDOVER = "handover"  # a head start: wait for what the warm side made
    PRELOAD = "preload"  # on_preload, then wait
    WAIT_PRELOAD = "wait-preload"  # a further attempt of a preloaded run: wait, without the hook
    WAIT = "wait"  # a continuation, or a first run whose message travels in the log
    PAYLOAD = "payload"  # the boot payload itself is the first turn
    END = "end"


def first_step(
    payload: Mapping[str, Any],
    *,
    attempt: int,
    started: bool,
    payload_open: bool,
    queued: bool,
    ends: bool,
) -> FirstStep:
    """Branch B12 of §2.2, first match wins.

    A first message normally travels in the log (rulings §1.4); a boot payload that still holds
    one drives turn 0 itself.

    Args:
        started: whether a turn of this session has committed: until then a preload is due, on
            whatever attempt (rulings §1.15).
        payload_open: the boot payload holds a message that history does not hold yet.
        queued: recovered records wait to be handled.
        ends: a lone `close` ends the run.
    """
    trigger = payload.get("trigger")
    if trigger == HANDOVER_PREPARE and not started:
        return FirstStep.HANDOVER
    if payload_open:
        return FirstStep.PAYLOAD
    if queued:
        return FirstStep.QUEUE
    if ends or trigger == "close":
        return FirstStep.END
    if trigger == "preload":
        return FirstStep.WAIT_PRELOAD if started else FirstStep.PRELOAD
    if payload.get("continuation") is True or attempt > 1:
        return FirstStep.WAIT
    if trigger == "regenerate-message" or (trigger == "action" and "action" in payload):
        return FirstStep.PAYLOAD
    return FirstStep.WAIT
