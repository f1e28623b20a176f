"""The judge of a recorded history: were the promises kept?

Reads what is left of a session after everything was done to it, the records of both channels
from the first to the last (trimmed ones included), and looks for every way a promise may be
broken. It knows nothing of engines, runs or workers: only what is in the log counts (P-7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from everturn.errors import EverturnError
from everturn.protocol.records import (
    RESTARTED_CHUNK,
    TRIM_COMMAND,
    TURN_COMPLETE,
    Input,
    InputCursor,
    Record,
    input_body,
    open_envelope,
    parse_input,
    trim_record,
    trim_target,
)


class PromiseBroken(EverturnError):
    """A history that must not be. The message begins with the promise, such as `P-3`."""

    code = "promise_broken"


@dataclass
class Turn:
    """What lies between two turn-complete records."""

    cursor: InputCursor
    seq_num: int
    chunks: list[dict[str, Any]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text a reader ends up with: what an attempt that died had written is left out."""
        return "".join(c["delta"] for c in self._last_attempt if c["type"] == "text-delta")

    @property
    def error(self) -> str | None:
        errors = [c["errorText"] for c in self._last_attempt if c["type"] == "error"]
        return errors[-1] if errors else None

    @property
    def stopped(self) -> bool:
        """Whether the answer says that somebody stopped it."""
        return any(c["type"] == "abort" for c in self._last_attempt)

    @property
    def restarts(self) -> int:
        return sum(1 for c in self.chunks if c["type"] == RESTARTED_CHUNK)

    @property
    def _last_attempt(self) -> list[dict[str, Any]]:
        starts = [i for i, c in enumerate(self.chunks) if c["type"] == RESTARTED_CHUNK]
        return self.chunks[starts[-1] :] if starts else self.chunks


def check_history(
    inputs: Sequence[Record], outputs: Sequence[Record], *, settled: bool = True
) -> list[Turn]:
    """Check both channels of a chat session and return its turns in order.

    Args:
        settled: nothing is being answered any more, so every message must have its turn.

    Raises:
        PromiseBroken: naming the promise and the records.
    """
    _check_order("in", inputs)
    _check_order("out", outputs)
    _check_writers(outputs)
    turns = _turns(outputs)
    _check_answers([parse_input(r) for r in inputs], turns, settled=settled)
    return turns


class Acknowledged(NamedTuple):
    """An append that a client was told is stored."""

    session: str
    io: str
    part_id: str
    seq_num: int
    text: str


def check_acknowledged(records: Sequence[Record], told: Sequence[Acknowledged]) -> None:
    """Every acknowledged append is stored once, where the client was told (P-1, P-5)."""
    bodies = {record.seq_num: record.body for record in records}
    for one in told:
        if bodies.get(one.seq_num) != input_body(one.text, one.part_id):
            raise PromiseBroken(
                f"P-1: {one.io} record {one.seq_num} of {one.session} was acknowledged as part "
                f"{one.part_id!r} and is not that part"
            )


def stops_meant_for(turn: Turn, inputs: Sequence[Record]) -> list[int]:
    """The stop records that mean this turn, by number.

    A stop that names a message means its turn. One that names none means the turn in progress when
    it arrives, so it stands behind a message of that turn.
    """
    meant = []
    for stop in map(parse_input, inputs):
        if stop.kind != "stop":
            continue
        target = stop.payload.get("targetSeq")
        if target in turn.answers or (
            target is None and turn.answers and stop.seq_num > turn.answers[0]
        ):
            meant.append(stop.seq_num)
    return meant


def check_stops(inputs: Sequence[Record], turns: Sequence[Turn]) -> None:
    """Every turn that was cut off has a stop of its own, and no stop has two (P-6).

    For agents without a policy that cuts turns off by itself (`latest`, `interrupt`).

    Raises:
        PromiseBroken: naming the turn.
    """
    used: set[int] = set()
    for turn in turns:
        if not turn.stopped:
            continue
        own = [seq for seq in stops_meant_for(turn, inputs) if seq not in used]
        if not own:
            raise PromiseBroken(
                f"P-6: the turn that ends with out record {turn.seq_num}, of messages "
                f"{turn.answers}, was stopped, and no stop was meant for it"
            )
        used.add(own[0])


def check_reader(seen: Sequence[Record], records: Sequence[Record]) -> None:
    """What one reader saw, over all its connections, against the log read afterwards (P-2).

    It may have missed only what was trimmed while it was away: then it went on at the first
    record that was visible, which some trim had asked for.
    """
    stored = {record.seq_num: record for record in records}
    trims = [record for record in records if record.is_command]
    last = -1
    for record in seen:
        if record.seq_num <= last:
            raise PromiseBroken(f"P-2: a reader got record {record.seq_num} after {last}")
        original = stored.get(record.seq_num)
        if original is None or original.wire != record.wire:
            raise PromiseBroken(f"P-2: a reader got a record {record.seq_num} that is not stored")
        if record.seq_num != last + 1 and not any(_trims_to(t, record.seq_num) for t in trims):
            raise PromiseBroken(f"P-2: a reader got {record.seq_num} after {last}")
        last = record.seq_num
    if records and last != records[-1].seq_num:
        raise PromiseBroken(f"P-2: a reader saw nothing after {last} of {records[-1].seq_num}")


def _trims_to(record: Record, seq_num: int) -> bool:
    """Whether a command asked for the log to begin at that record.

    Over HTTP the bytes of a command are a lossy string (wire-protocol §6.5), so there a number
    with a byte that is no text can only be told apart from those without one.
    """
    target = trim_target(record.headers, record.body)
    if target is not None:
        return target == seq_num
    lossy = trim_record(seq_num).body.decode("utf-8", "replace")
    return record.headers[0] == ("", TRIM_COMMAND) and record.body == lossy.encode()


def _check_order(io: str, records: Sequence[Record]) -> None:
    seen: set[str] = set()
    last = -1
    for record in records:
        if record.seq_num <= last:
            raise PromiseBroken(f"P-2: {io} record {record.seq_num} came after {last}")
        last = record.seq_num
        opened = open_envelope(record.body) if record.is_data else None
        if opened is not None and opened[1]:
            if opened[1] in seen:
                raise PromiseBroken(f"P-5: part {opened[1]!r} was stored twice on {io}")
            seen.add(opened[1])


def _check_writers(outputs: Sequence[Record]) -> None:
    """Parts of runs are `<fence>-<part>`: fences never fall, parts never repeat or go back."""
    newest = (0, -1)
    for record in outputs:
        opened = open_envelope(record.body) if record.is_data else None
        fence, dash, part = opened[1].partition("-") if opened is not None else ("", "", "")
        if not (dash and fence.isdigit() and part.isdigit()):
            continue  # a guest's
        place = (int(fence), int(part))
        if place <= newest:
            raise PromiseBroken(
                f"P-4: out record {record.seq_num} is part {part} of fence {fence}, "
                f"after part {newest[1]} of fence {newest[0]}"
            )
        newest = place


def _turns(outputs: Sequence[Record]) -> list[Turn]:
    turns: list[Turn] = []
    chunks: list[dict[str, Any]] = []
    for record in outputs:
        if record.control == TURN_COMPLETE:
            turns.append(Turn(InputCursor.of(record), record.seq_num, chunks))
            chunks = []
        elif record.is_data:
            opened = open_envelope(record.body)
            if opened is not None and isinstance(opened[0], dict):
                chunks.append(opened[0])
    return turns


def _check_answers(inputs: Sequence[Input], turns: Sequence[Turn], *, settled: bool) -> None:
    before = InputCursor()
    for turn in turns:
        if (turn.cursor.seq_num or 0) < (before.seq_num or 0):
            raise PromiseBroken(
                f"P-3: the committed cursor fell from {before.seq_num} to {turn.cursor.seq_num} "
                f"at out record {turn.seq_num}"
            )
        turn.answers = [
            i.seq_num
            for i in inputs
            if i.needs_answer and turn.cursor.covers(i.seq_num) and not before.covers(i.seq_num)
        ]
        before = turn.cursor
    empty = [turn.seq_num for turn in turns if not turn.answers]
    if empty:
        raise PromiseBroken(f"P-3: turn-complete {empty} answer no message of their own")
    if settled:
        open_ones = [i.seq_num for i in inputs if i.needs_answer and not before.covers(i.seq_num)]
        if open_ones:
            raise PromiseBroken(f"P-3: messages {open_ones} were never answered")
