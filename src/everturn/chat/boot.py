"""The boot of a run: read what is stored, rebuild history, decide who is answered next.

Only a run with a past reads anything: a continuation, or a further attempt (chat-agent §2.2).
What is committed is said by three places, and the newest of them counts: the newest turn-complete
on `.out`, the snapshot, the session row (rulings §1.5, §1.10). What cannot be read is not taken
for empty where that could lose or double anything: `reading.py`. They differ after a crash:

* The turn-complete is newer: the process died before its snapshot. Replay fills the gap.
* The snapshot is newer: history changed by an author was stored, and the process died before the
  turn-complete that commits it. The missing one is written first (rulings §1.13), and what `.out`
  holds of that turn is not replayed: the snapshot has it, as the author left it.
* The row is newer: a run ended after records that needed no turn.

Data after the newest turn-complete is an answer nobody committed. What becomes of it is decided
by `rules.boot.recover`; an answer that is given again is announced by the turn that gives it
(`Restart`). Data before an `upgrade-required` is no partial answer: that turn was handed over on
purpose and starts anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import anyio

from everturn.chat import commit, handover, hooks, reading, recovery_hook, tracing, ui_messages
from everturn.chat.injected import without_injected
from everturn.chat.intake import Intake
from everturn.chat.output import Chunk
from everturn.chat.policy import CUT_OFF
from everturn.chat.replay import Replay, replay_out
from everturn.chat.state import ChatRun, Message, Restart
from everturn.chat.transcript import Snapshot
from everturn.protocol.records import (
    TOKEN_HEADER,
    TURN_COMPLETE,
    UPGRADE_REQUIRED,
    Input,
    InputCursor,
    Io,
    Record,
    open_envelope,
    parse_input,
)
from everturn.rules.boot import (
    FirstStep,
    Recovery,
    first_step,
    message_of,
    open_inputs,
    recover,
)
from everturn.rules.boot_records import ANSWERS_AGAIN
from everturn.rules.trimming import TrimChain

#: Part ids of runs, `<fence>-<part>`; guests choose others.
_RUN_PART: Final = re.compile(r"\d+-\d+")


class Past(NamedTuple):
    """What a boot read, and what it says."""

    replay: Replay
    inputs: tuple[Input, ...]
    #: What of `.in` is committed.
    cursor: InputCursor
    #: The snapshot covers more than the newest turn-complete.
    missing_turn_complete: bool
    #: What the turn failed with whose turn-complete is missing.
    failure: str | None
    tail: int | None
    #: A run of the session wrote after the newest turn-complete, and not only a guest.
    wrote_ourselves: bool
    #: The first open message came when what follows the newest turn-complete was there already.
    came_later: bool


async def boot(run: ChatRun) -> FirstStep:
    """Everything up to and with `on_boot`. Returns where the run goes first.

    Raises whatever `on_boot`, `before_boot` or the parsing of client data raises: the run fails.
    """
    recovery = Recovery()
    if run.prior:
        past = await _read(run)
        recovery = await _restore(run, past)
    if handover.expected(run.payload) and not run.started:
        if not run.lane.messages and not run.agent.hydrates:
            run.lane.replace_all(handover.head_start_messages(run.payload))
        run.intake.expect_handover(recovery.handover)
    if run.agent.hooks.has("on_boot"):
        run.client_data = run.agent.client_data(run.payload.get("metadata"))
        event = hooks.BootEvent(
            ctx=run.ctx,
            run_id=run.ctx.run.id,
            chat_id=run.chat_id,
            client_data=run.client_data,
            chat_access_token=await run.tokens.current(),
            continuation=run.continuation,
            previous_run_id=run.previous_run_id,
            preloaded=run.payload.get("trigger") == "preload",
        )
        await run.hook("on_boot", event)
    return first_step(
        run.payload,
        attempt=run.runtime.info.attempt,
        started=run.started,
        payload_open=_payload_open(run),
        queued=run.intake.has_work(),
        ends=recovery.ends is not None,
    )


def _payload_open(run: ChatRun) -> bool:
    message = run.payload.get("message")
    if not isinstance(message, dict):
        return False
    return ui_messages.find(run.lane.messages, ui_messages.id_of(message)) is None


# --- reading ------------------------------------------------------------------------------------


async def _read(run: ChatRun) -> Past:
    if run.agent.hydrates:
        return await _read_hydrating(run)
    stored: list[Message] = []
    with tracing.reading(run, "chat.boot.snapshot", stored):
        snapshot = await reading.snapshot(run)
        stored.extend(snapshot.messages if snapshot is not None else ())
    # From the turn-complete the snapshot names, included: its cursor tells whether the snapshot
    # was stored before or after a turn-complete.
    last_out = snapshot.last_out if snapshot is not None else None
    out: list[Record] = []
    incoming: list[Record] = []
    async with anyio.create_task_group() as reads:
        after = None if not last_out else last_out - 1
        reads.start_soon(_read_all, run, "out", after, out)
        seen = snapshot.cursor.seq_num if snapshot is not None else None
        reads.start_soon(_read_all, run, "in", seen, incoming)
    return _past(run, snapshot, out, incoming)


async def _read_hydrating(run: ChatRun) -> Past:
    """History is the author's: only the newest turn-complete and what follows it is read."""
    out: list[Record] = []
    with tracing.reading(run, "chat.boot.replay.out", out):
        out.extend(await reading.back_to_commit(run))
    cursor = _newest(_cursor_of(out), _row(run))
    incoming: list[Record] = []
    await _read_all(run, "in", cursor.seq_num, incoming)
    return _past(run, None, out, incoming)


async def _read_all(run: ChatRun, io: Io, after: int | None, found: list[Record]) -> None:
    with tracing.reading(run, f"chat.boot.replay.{io}", found):
        await reading.everything(run, io, after, found)


# --- what it says -------------------------------------------------------------------------------


def _past(
    run: ChatRun, snapshot: Snapshot | None, out: Sequence[Record], incoming: Sequence[Record]
) -> Past:
    inputs = tuple(parse_input(record) for record in incoming if record.is_data)
    committed = _cursor_of(out)
    stored = snapshot.cursor if snapshot is not None else InputCursor()
    missing = snapshot is not None and _misses_turn_complete(snapshot, out, committed)
    fresh = [] if missing else _after_snapshot(snapshot, out)
    replay = replay_out(
        _without_handed_over(fresh),
        ui_messages.repair(snapshot.messages) if snapshot is not None else [],
        inputs=inputs,
        cursor=snapshot.cursor if snapshot is not None else None,
        has_snapshot=snapshot is not None,
    )
    if snapshot is not None:
        run.trim = TrimChain(snapshot.last_out, bounded=True)
    run.started = _has_started(run, out, replay)
    cursor = _newest(stored, committed, _row(run))
    return Past(
        replay=replay,
        inputs=inputs,
        cursor=cursor,
        missing_turn_complete=missing,
        failure=snapshot.failure if snapshot is not None else None,
        tail=incoming[-1].seq_num if incoming else None,
        wrote_ourselves=_wrote_ourselves(out),
        came_later=_came_later(out, incoming, cursor),
    )


def _came_later(out: Sequence[Record], incoming: Sequence[Record], cursor: InputCursor) -> bool:
    """Whether what nobody committed on `.out` is older than the message it would answer.

    It is then no answer of a lost run but what an author wrote when his turn was over. By the
    stamps of the server, which servers with different clocks make unequal: where they are wrong,
    a message is answered that has half an answer, and none is left without.
    """
    began_ms: int | None = None
    for record in reversed(out):
        if record.control == TURN_COMPLETE:
            break
        if record.is_data:
            began_ms = record.timestamp_ms
    if began_ms is None:
        return False
    for record in incoming:
        if (
            record.is_data
            and not cursor.covers(record.seq_num)
            and parse_input(record).needs_answer
        ):
            return record.timestamp_ms > began_ms
    return False


def _wrote_ourselves(out: Sequence[Record]) -> bool:
    for record in reversed(out):
        if record.control == TURN_COMPLETE:
            return False
        opened = open_envelope(record.body) if record.is_data else None
        if opened is not None and _RUN_PART.fullmatch(opened[1]):
            return True
    return False


def _row(run: ChatRun) -> InputCursor:
    return InputCursor(run.runtime.info.cursor, frozenset(run.runtime.info.decided))


def _cursor_of(records: Sequence[Record]) -> InputCursor:
    """The cursor of the newest turn-complete that carries one."""
    for record in reversed(records):
        if record.control == TURN_COMPLETE:
            cursor = InputCursor.of(record)
            if cursor.seq_num is not None:
                return cursor
    return InputCursor()


def _newest(*cursors: InputCursor) -> InputCursor:
    """The latest of cursors of one session; equal ones join what they know to be decided."""
    newest = InputCursor()
    for cursor in cursors:
        decided = newest.decided | cursor.decided
        newest = newest.newest(cursor)
        floor = -1 if newest.seq_num is None else newest.seq_num
        newest = InputCursor(newest.seq_num, frozenset(n for n in decided if n > floor))
    return newest


def _misses_turn_complete(
    snapshot: Snapshot, out: Sequence[Record], committed: InputCursor
) -> bool:
    """Whether history was stored for a turn-complete that was never written (rulings §1.13)."""
    if snapshot.cursor.seq_num is None:
        return False
    if committed.seq_num is not None:
        return snapshot.cursor.seq_num > committed.seq_num
    # Nothing on `.out` says so: only believable when the snapshot names no turn-complete either.
    return snapshot.last_out is None and not any(r.control == TURN_COMPLETE for r in out)


def _after_snapshot(snapshot: Snapshot | None, out: Sequence[Record]) -> list[Record]:
    """The records of turns the snapshot does not cover."""
    if snapshot is None:
        return list(out)
    start = 0
    for index, record in enumerate(out):
        if record.control != TURN_COMPLETE:
            continue
        cursor = InputCursor.of(record)
        named = snapshot.last_out is not None and record.seq_num <= snapshot.last_out
        stored = (
            cursor.seq_num is not None
            and snapshot.cursor.seq_num is not None
            and cursor.seq_num <= snapshot.cursor.seq_num
        )
        if named or stored:
            start = index + 1
    return list(out[start:])


def _without_handed_over(records: Sequence[Record]) -> list[Record]:
    """Leave out what an upgraded turn wrote before it was handed over."""
    kept: list[Record] = []
    commit_at = 0
    for record in records:
        if record.control == UPGRADE_REQUIRED:
            del kept[commit_at:]
        kept.append(record)
        if record.control == TURN_COMPLETE:
            commit_at = len(kept)
    return kept


def _has_started(run: ChatRun, out: Iterable[Record], replay: Replay) -> bool:
    """Whether a turn of this session has committed; an action is none (rulings §1.15)."""
    commits = [record for record in out if record.control == TURN_COMPLETE]
    if any(record.header(TOKEN_HEADER) is not None for record in commits):
        return True
    if run.agent.hydrates:
        return bool(commits)
    return any(message.get("role") == "user" for message in replay.chain)


# --- acting on it -------------------------------------------------------------------------------


async def _restore(run: ChatRun, past: Past) -> Recovery:
    """History, cursors and the FIFO as they should be; writes what a crash left out."""
    replay = past.replay
    has_partial = (
        not run.agent.hydrates
        and replay.partial is not None
        and not replay.partial_finished
        and replay.partial_message_id is not None
        and not past.came_later
    )
    undecided = open_inputs(past.inputs, past.cursor)
    recovery = recover(
        prior=True,
        attempt=2 if _answers_again(run, past) else run.runtime.info.attempt,
        has_partial=has_partial,
        undecided=undecided,
        expects_handover=handover.expected(run.payload) and not run.started,
    )
    run.lane.replace_all(_seed_chain(replay, recovery))
    run.intake = Intake(run.runtime, run.tasks, past.cursor)
    if past.missing_turn_complete:
        await commit.turn_complete(run, past.cursor, error=past.failure)
        await commit.save_history(run, past.cursor)
    turns = _without_payload(run, recovery.turns)
    if recovery.asks_hook and run.agent.hooks.has("on_recovery_boot"):
        turns, recovery = await recovery_hook.ask(run, replay, turns, recovery)
    kept = [item.seq_num for item in (*turns, *recovery.handover[:1], *recovery.stops)]
    decided = [item.seq_num for item in undecided if item.seq_num not in kept]
    run.intake.seed(turns, stops=recovery.stops, decided=decided, tail=past.tail)
    await _close_uncommitted(run, past, recovery)
    return recovery


def _answers_again(run: ChatRun, past: Past) -> bool:
    """Whether a lost run of ours left the answer unfinished: like an attempt before this one."""
    return past.wrote_ourselves and run.payload.get(ANSWERS_AGAIN) is True


def _seed_chain(replay: Replay, recovery: Recovery) -> list[Message]:
    """Settled history, and where the table says so the message and what was said to it.

    A partial answer that is kept names no message that is still to be answered: it had joined the
    turn that died, and is said again in its own, or in another one that it joins.
    """
    chain = list(replay.chain)
    kept = recovery.spliced or recovery.stopped
    if kept is not None:
        message = message_of(kept)
        chain = ui_messages.accumulate(chain, dict(message) if message else None, kept.trigger)
        if recovery.keeps_partial and replay.partial is not None:
            chain = ui_messages.merge_by_id(chain, [replay.partial])
    for item in recovery.turns:
        chain = without_injected(chain, ui_messages.id_of(message_of(item) or {}))
    return chain


def _without_payload(run: ChatRun, turns: Sequence[Input]) -> list[Input]:
    """The boot payload drives its own message: a record of the same message does not (R-124)."""
    message = run.payload.get("message")
    own = ui_messages.id_of(message) if isinstance(message, dict) else ""
    if not own or not _payload_open(run):
        return list(turns)
    return [item for item in turns if (message_of(item) or {}).get("id") != own]


async def _close_uncommitted(run: ChatRun, past: Past, recovery: Recovery) -> None:
    """What readers see of the unfinished answer: closed now, or announced as given again."""
    replay = past.replay
    ends = tuple(_end_chunks(replay))
    if recovery.stopped is not None:
        for chunk in ends:
            run.out.write(chunk, ours=True)
        cursor = run.intake.cursor()
        await commit.turn_complete(run, cursor)
        await commit.save_history(run, cursor)
    elif recovery.spliced is not None:
        for chunk in ends:
            run.out.write(chunk, ours=True)
        if not run.intake.has_work():
            await _give_up(run)
    elif replay.uncommitted and (past.wrote_ourselves or not handover.expected(run.payload)):
        first = next((item.seq_num for item in (*recovery.handover, *recovery.turns)), None)
        run.restart = Restart(first, replay.partial_message_id, ends, replay.partial)


async def _give_up(run: ChatRun) -> None:
    """The message of the partial gets no other answer, and no turn follows whose turn-complete
    would cover it: its readers are told now, or they would wait for the next message (P-3).

    The server has normally closed such a turn long before; then nothing here is uncommitted.
    """
    cursor = run.intake.cursor()
    if run.lane.unsaved:
        await commit.save_history(run, cursor, failure=CUT_OFF)
    await commit.turn_complete(run, cursor, error=CUT_OFF)
    await commit.save_history(run, cursor)


def _end_chunks(replay: Replay) -> Iterable[Chunk]:
    for part_id in replay.open_reasoning_ids:
        yield {"type": "reasoning-end", "id": part_id}
    for part_id in replay.open_text_ids:
        yield {"type": "text-end", "id": part_id}
