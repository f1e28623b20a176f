"""Rebuilding a conversation from `.out`: what a boot needs to know after a process was lost.

A log tells its story in groups. A group is the data before one turn-complete, back to the one
before it; that turn-complete *commits* the group, and its cursor says which `.in` records the
group answered. What lies after the newest turn-complete is uncommitted: a turn that died half-way.

Within a group the chunks form segments. `start` opens one, `finish` closes it, and so does the
turn-complete. Each segment is reduced to one assistant message, on top of the message of its id
when the chain being rebuilt holds one (an answer continued after a tool result), never from empty.
Four things make this more than a fold:

* A run that answers again after a crash writes `data-restarted` first. What its group held before
  the newest such mark is discarded (rulings §1.6): a browser saw it, history does not.
* Chunks before the first `start` of a message belong to it: hooks write data before the model
  speaks. After `finish` and before turn-complete they belong to the message just finished.
* A segment left open and followed by a `start` of the same id was superseded. A segment the
  reducer rejects is skipped, its neighbours are kept: one bad chunk must not cost a history.
* Replay is idempotent: when the chain already holds what a segment says (a snapshot that was
  stored before the turn-complete it belongs to), nothing is added twice.

User messages are never on `.out`. They come from `.in`, through `inputs`: the records that a group
answered join the chain before the group's own messages (D-24). Messages that steering injected
are named by a marker inside the answer and stay there.

Nothing here raises for what a log holds, and nothing given is changed.
Spec: chat-agent §2.2 B6, §2.4, D-12, D-24; rulings §1.5-§1.7, §1.9.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from everturn.chat.injected import injected_ids, marked_ids, without_injected
from everturn.chat.parts import Message, Part, parts_of
from everturn.chat.reducer import MessageReducer
from everturn.chat.ui_messages import (
    accumulate,
    clean_aborted_parts,
    find,
    has_content,
    merge_by_id,
)
from everturn.errors import UIMessageStreamError
from everturn.protocol.chunks import RESERVED_PREFIX
from everturn.protocol.records import (
    RESTARTED_CHUNK,
    TURN_COMPLETE,
    Input,
    InputCursor,
    Record,
    open_envelope,
)
from everturn.rules import limits

_log: Final = logging.getLogger("everturn.chat")
_NO_CURSOR: Final = InputCursor()


@dataclass(frozen=True, kw_only=True)
class Group:
    """What one committed turn left behind.

    Attributes:
        turn_complete: seq_num of its turn-complete record.
        after, until: the `.in` cursors of the turn-complete before and of its own. A record
            covered by `until` and not by `after` was decided by this turn.
        answered: those of the given inputs, without what steering injected.
        messages: its assistant messages, settled.
        failed: whether it holds an error chunk.
        has_data: False for a turn whose chunks were trimmed, and for one that wrote none.
    """

    turn_complete: int
    after: InputCursor
    until: InputCursor
    answered: tuple[Input, ...] = ()
    messages: tuple[Message, ...] = ()
    failed: bool = False
    has_data: bool = False


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What `.out` says about a conversation.

    Attributes:
        chain: the settled history: the given chain with every group merged into it.
        groups: the committed turns, oldest first.
        turn_complete: seq_num of the newest turn-complete; None when none was read.
        cursor: the newest `.in` cursor: the given one, or a later turn-complete's.
        last_seq_num: seq_num of the newest record read, of any kind.
        uncommitted: whether data lies after the newest turn-complete.
        partial: the message the uncommitted data builds, cleaned; None when nothing of it is
            worth showing.
        partial_raw: the same before cleaning: unfinished tool calls are still in it.
        partial_finished: whether its stream had ended; only its turn-complete is missing.
        partial_message_id: the id a repeated answer must use; None when no chunk named one.
        open_text_ids, open_reasoning_ids: parts a reader of the log still sees streaming.
        tail_messages: messages of uncommitted segments before the partial, cleaned.
    """

    chain: list[Message]
    groups: tuple[Group, ...] = ()
    turn_complete: int | None = None
    cursor: InputCursor = _NO_CURSOR
    last_seq_num: int | None = None
    uncommitted: bool = False
    partial: Message | None = None
    partial_raw: Message | None = None
    partial_finished: bool = False
    partial_message_id: str | None = None
    open_text_ids: tuple[str, ...] = ()
    open_reasoning_ids: tuple[str, ...] = ()
    tail_messages: tuple[Message, ...] = ()


def replay_out(
    records: Sequence[Record],
    chain: Sequence[Message],
    *,
    inputs: Sequence[Input] = (),
    cursor: InputCursor | None = None,
    has_snapshot: bool | None = None,
) -> Replay:
    """Rebuild history and the open turn from the records of `.out` after a snapshot.

    Args:
        records: in the order of the channel; control and command records included.
        chain: the snapshot's messages; empty without a snapshot.
        inputs: `.in` records after `cursor`, in order. Without them no user message is added.
        cursor: the snapshot's `.in` cursor.
        has_snapshot: whether `chain` and `cursor` came from one; by default, whether either is
            there. Without one, a turn whose chunks were trimmed adds no messages.
    """
    known = bool(chain) or cursor is not None if has_snapshot is None else has_snapshot
    builder = _Builder(list(chain), tuple(inputs), cursor or InputCursor(), known)
    for record in records:
        builder.take(record)
    return builder.finish()


@dataclass
class _Builder:
    """Walks the log once, group by group."""

    chain: list[Message]
    inputs: tuple[Input, ...]
    cursor: InputCursor
    has_snapshot: bool
    groups: list[Group] = field(default_factory=list)
    data: list[tuple[int, Part]] = field(default_factory=list)
    seen_parts: dict[str, None] = field(default_factory=dict)
    last_seq_num: int | None = None

    def take(self, record: Record) -> None:
        self.last_seq_num = record.seq_num
        if record.control == TURN_COMPLETE and not record.is_command:
            self._commit(record)
        elif record.is_data:
            chunk = self._chunk(record)
            if chunk is not None:
                self.data.append((record.seq_num, chunk))

    def _chunk(self, record: Record) -> Part | None:
        """The chunk of a data record; None for a repeated one and for what is no chunk."""
        opened = open_envelope(record.body)
        if opened is None:
            return None
        chunk, part_id = opened
        if part_id:
            if part_id in self.seen_parts:
                return None
            self.seen_parts[part_id] = None
            if len(self.seen_parts) > limits.DEDUPE_WINDOW:
                self.seen_parts.pop(next(iter(self.seen_parts)))
        if not isinstance(chunk, dict) or not isinstance(chunk.get("type"), str):
            return None
        return None if chunk["type"].startswith(RESERVED_PREFIX) else chunk

    def _commit(self, record: Record) -> None:
        after, until = self.cursor, self.cursor.newest(InputCursor.of(record))
        data, self.data = self.data, []
        answered = self._answered(after, until, data)
        if data or self.has_snapshot:
            for item in answered:
                self.chain = accumulate(self.chain, _message_of(item), item.trigger)
        messages: list[Message] = []
        for segment in _segments(_since_restart(data)):
            built = _reduce(segment, self.chain)
            if built is None:
                continue
            settled = built.message
            if not segment.finished:
                settled = clean_aborted_parts(settled, self.chain)
            if has_content(settled):
                messages.append(settled)
                for joined in marked_ids(settled):  # a dead turn may have had it before
                    self.chain = without_injected(self.chain, joined)
                self.chain = merge_by_id(self.chain, [settled])
        self.cursor = until
        self.groups.append(
            Group(
                turn_complete=record.seq_num,
                after=after,
                until=until,
                answered=answered,
                messages=tuple(messages),
                failed=any(chunk["type"] == "error" for _, chunk in data),
                has_data=bool(data),
            )
        )

    def _answered(
        self, after: InputCursor, until: InputCursor, data: list[tuple[int, Part]]
    ) -> tuple[Input, ...]:
        injected = _injected_ids(chunk for _, chunk in data)
        return tuple(
            item
            for item in self.inputs
            if item.kind == "message"
            and until.covers(item.seq_num)
            and not after.covers(item.seq_num)
            and (_message_of(item) or {}).get("id") not in injected
        )

    def finish(self) -> Replay:
        open_text, open_reasoning = _open_ids(chunk for _, chunk in self.data)
        base: dict[str, Any] = {
            "chain": self.chain,
            "groups": tuple(self.groups),
            "turn_complete": self.groups[-1].turn_complete if self.groups else None,
            "cursor": self.cursor,
            "last_seq_num": self.last_seq_num,
            "uncommitted": bool(self.data),
            "partial_message_id": _newest_id(chunk for _, chunk in self.data),
            "open_text_ids": open_text,
            "open_reasoning_ids": open_reasoning,
        }
        segments = _segments(_since_restart(self.data))
        chain, tail = self._tail_chain(), []
        for segment in segments[:-1]:
            built = _reduce(segment, chain)
            if built is not None and has_content(built.message):
                tail.append(clean_aborted_parts(built.message, chain))
                chain = merge_by_id(chain, tail[-1:])
        last = _reduce(segments[-1], chain) if segments else None
        if last is None or not _says_something(segments[-1]):
            return Replay(**base, tail_messages=tuple(tail))
        cleaned = clean_aborted_parts(last.message, chain)
        return Replay(
            **base,
            tail_messages=tuple(tail),
            partial=cleaned if cleaned["parts"] else None,
            partial_raw=last.message,
            partial_finished=segments[-1].finished,
        )

    def _tail_chain(self) -> list[Message]:
        """The chain as the open turn found it: with the message it answers (R-140).

        That is the oldest undecided record that wants an answer. Without it, a tool result that a
        client had supplied would be missing from the message the partial continues.
        """
        for item in self.inputs:
            if item.needs_answer and not self.cursor.covers(item.seq_num):
                return accumulate(self.chain, _message_of(item), item.trigger)
        return self.chain


# --- segments ---------------------------------------------------------------------------------


@dataclass
class _Segment:
    """The chunks of one message. `number` is where it begins, for a message without an id."""

    number: int
    chunks: list[Part] = field(default_factory=list)
    message_id: str = ""
    started: bool = False
    finished: bool = False

    def add(self, chunk: Part) -> None:
        self.chunks.append(chunk)
        if chunk["type"] == "start":
            self.started = True
            if isinstance(chunk.get("messageId"), str):
                self.message_id = chunk["messageId"]
        elif chunk["type"] == "finish":
            self.finished = True


def _since_restart(data: list[tuple[int, Part]]) -> list[tuple[int, Part]]:
    """What follows the newest `data-restarted`: the rest was answered again (rulings §1.6)."""
    for index in range(len(data) - 1, -1, -1):
        if data[index][1]["type"] == RESTARTED_CHUNK:
            return data[index + 1 :]
    return data


def _segments(data: list[tuple[int, Part]]) -> list[_Segment]:
    segments: list[_Segment] = []
    for seq_num, chunk in data:
        if not segments or (chunk["type"] == "start" and segments[-1].started):
            _supersede(segments, chunk)
            segments.append(_Segment(seq_num))
        segments[-1].add(chunk)
    return segments


def _supersede(segments: list[_Segment], start: Part) -> None:
    """Drop an open segment that a `start` of the same id answers again."""
    if not segments or segments[-1].finished or not segments[-1].message_id:
        return
    if segments[-1].message_id == start.get("messageId"):
        segments.pop()


def _reduce(segment: _Segment, chain: Sequence[Message]) -> MessageReducer | None:
    """The message of a segment, on top of the chain's message of its id. None when rejected."""
    seed = find(chain, segment.message_id)
    reducer = _fed(segment, seed)
    if reducer is None:
        return None
    if seed is not None:
        alone = _fed(segment, None, quiet=True)
        if alone is not None and _holds(seed, alone.message):
            reducer = MessageReducer(seed)
    if not reducer.message["id"]:
        # Nothing named the message (a turn that wrote data parts only). The same record always
        # gives the same id, so that replaying twice does not append it twice.
        reducer.message["id"] = f"out-{segment.number}"
    return reducer


def _fed(segment: _Segment, seed: Message | None, *, quiet: bool = False) -> MessageReducer | None:
    reducer = MessageReducer(seed)
    try:
        for chunk in segment.chunks:
            reducer.feed(chunk)
    except UIMessageStreamError as error:
        if not quiet:
            _log.warning("replay.segment_skipped at %d: %s", segment.number, error)
        return None
    return reducer


def _holds(message: Message, addition: Message) -> bool:
    """Whether a message already has all parts of another, in their order."""
    wanted = [_comparable(part) for part in parts_of(addition) if part["type"] != "step-start"]
    have = iter([_comparable(part) for part in parts_of(message)])
    return bool(wanted) and all(part in have for part in wanted)


def _comparable(part: Part) -> Part:
    return {key: value for key, value in part.items() if key != "state" or "toolCallId" in part}


def _says_something(segment: _Segment) -> bool:
    """Whether a cut-off segment added anything of its own to what it continued (R-122)."""
    silent = ("start", "start-step", "finish-step", "finish", "message-metadata", "error", "abort")
    return any(
        chunk["type"] not in silent and not chunk.get("transient") for chunk in segment.chunks
    )


# --- plain scans ------------------------------------------------------------------------------


def _message_of(item: Input) -> Message | None:
    message = item.payload.get("message")
    return message if isinstance(message, dict) else None


def _injected_ids(chunks: Iterable[Part]) -> set[str]:
    """Ids of the messages that steering put into the answer (chat-agent §4.5)."""
    return {message_id for chunk in chunks for message_id in injected_ids(chunk)}


def _newest_id(chunks: Iterable[Part]) -> str | None:
    """The id the newest `start` gave. Unlike content it outlives a restart mark."""
    newest: str | None = None
    for chunk in chunks:
        if chunk["type"] == "start" and isinstance(chunk.get("messageId"), str):
            newest = chunk["messageId"]
    return newest


def _open_ids(chunks: Iterable[Part]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parts started and not ended, whatever segment they are in: as a browser keeps count."""
    open_: dict[str, dict[str, None]] = {"text": {}, "reasoning": {}}
    for chunk in chunks:
        family, _, event = chunk["type"].partition("-")
        if chunk["type"] in ("finish-step", "reset-step"):
            open_["text"].clear()
            open_["reasoning"].clear()
        elif family in open_ and isinstance(chunk.get("id"), str):
            if event == "start":
                open_[family][chunk["id"]] = None
            elif event == "end":
                open_[family].pop(chunk["id"], None)
    return tuple(open_["text"]), tuple(open_["reasoning"])
