"""Turn-complete, trim and snapshot: how a turn becomes a fact (chat-agent §2.14-§2.16).

Order, and what a crash between two steps leaves:

1. History that an author changed is stored *before* the turn-complete that commits it (rulings
   §1.13), with the error of a turn that failed. A crash here: the snapshot covers more than the
   newest turn-complete; the next boot writes the missing one first, with that error, and the
   turn is not run again.
2. The turn-complete, with an error chunk in the same append when the turn failed (§1.21). It
   carries what of `.in` is decided. From here the turn is answered. A crash here: the log holds
   the answer, and replay puts it into the history.
3. The trim command, to the turn-complete before this one, or as far as a stored snapshot goes.
4. The snapshot after the completion hook. A crash or failure here: the next boot replays more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from everturn.chat import tracing
from everturn.protocol.records import (
    TOKEN_HEADER,
    TURN_COMPLETE,
    InputCursor,
    NewRecord,
    control_record,
    trim_record,
)

if TYPE_CHECKING:
    from everturn.chat.state import ChatRun


async def turn_complete(
    run: ChatRun, cursor: InputCursor, *, token: str = "", error: str | None = None
) -> int:
    """Write a turn-complete and the trim behind it. Returns its seq_num, durable.

    `token` is left out when empty; `error` is the text of an error chunk in the same append.
    """
    records: list[NewRecord] = []
    if error is not None:
        records.append(run.out.record({"type": "error", "errorText": error}, ours=True))
    headers: Sequence[tuple[str, str]] = ((TOKEN_HEADER, token),) if token else ()
    records.append(control_record(TURN_COMPLETE, (*headers, *cursor.headers())))
    seq_num = (await run.runtime.append(records))[-1]
    run.intake.committed()
    run.runtime.report(cursor=cursor, turns=run.turns_started)
    target = run.trim.advance(seq_num)
    if target is not None:
        # Not awaited: the runtime keeps the order, and a trim that fails is only a later trim.
        run.runtime.append([trim_record(target)])
    return seq_num


async def save_history(run: ChatRun, cursor: InputCursor, *, failure: str | None = None) -> None:
    """Store the UI lane with both cursors; a hydrating agent keeps its own history.

    `failure` is the error of the turn-complete that follows. Awaited wherever it is called, because the run may be suspended or evicted next.
    """
    if run.agent.hydrates:
        return
    last_out = run.trim.slot
    messages = run.lane.messages
    with tracing.span(run, "snapshot.write", {"chat.messages.count": len(messages)}):
        stored = await run.transcript.save(
            messages, last_out=last_out, cursor=cursor, failure=failure
        )
    if stored:
        run.lane.unsaved = False
        run.trim.stored(last_out)
