"""How a turn ends: the last hooks, its turn-complete, or the error path (chat-agent §2.8, §2.10).

The error path is the same for all steps: one error chunk and the turn-complete in one append, the
user's message and whatever was streamed kept in history, the completion hook told. After the
turn-complete nothing more of the turn is written: late exceptions are logged (D-13).
"""

from __future__ import annotations

import logging
from typing import Any

from everturn.chat import commit, hooks, tracing, ui_messages
from everturn.chat.failures import logged
from everturn.chat.output import add_usage
from everturn.chat.state import ChatRun, TurnState
from everturn.chat.turn_events import end_fields
from everturn.protocol.records import InputCursor

log = logging.getLogger("everturn.chat")


def empty_response(run: ChatRun) -> dict[str, Any]:
    """An assistant message that holds data parts only (R-146)."""
    return {"id": ui_messages.new_message_id(run.runtime.ids), "role": "assistant", "parts": []}


async def drain_deferred(run: ChatRun, state: TurnState) -> None:
    """T28: wait for deferred work, at most 5 s."""
    await state.deferred.settle(run.runtime.clock)


async def before_complete(run: ChatRun, state: TurnState) -> None:
    """T30: the last hook whose chunks belong to this turn."""
    total = add_usage(run.total_usage, state.usage)
    if run.agent.hooks.has("on_before_turn_complete"):
        event = hooks.BeforeTurnCompleteEvent(
            **end_fields(run, state), total_usage=total, writer=run.writer()
        )
        await run.hook("on_before_turn_complete", event)
    checkpoint(run, state)
    if state.kept:
        _fold_late_parts(run, state)


def _fold_late_parts(run: ChatRun, state: TurnState) -> None:
    """Data parts written since the capture join the response."""
    fresh = state.response is None
    state.response = state.kept.move_to(state.response or empty_response(run))
    run.lane.upsert(state.response)
    if run.lane_start is not None:
        # It may have been made of this very response, a moment ago.
        run.lane_start = run.lane_start.following(state.response)
    if fresh:
        state.new_ui_messages.append(state.response)
    else:
        state.new_ui_messages[-1] = state.response


async def complete(run: ChatRun, state: TurnState) -> None:
    """T31-T33: the turn-complete, the completion hook, the snapshot."""
    run.total_usage = add_usage(run.total_usage, state.usage)
    run.previous_turn_usage = state.usage
    cursor = decided(run)
    if state.history_changed:
        await commit.save_history(run, cursor)
    words = run.policy.closing_words(run, state)
    seq_num = await commit.turn_complete(run, cursor, token=state.token, error=words)
    state.completed = True
    run.started = True
    await _completed(run, state, seq_num, error=None)
    await commit.save_history(run, cursor)


def decided(run: ChatRun) -> InputCursor:
    """What of `.in` the turn's turn-complete decides: its message, and those that joined it."""
    run.steering.drop_unconsumed(run)
    run.intake.decide_turn()
    return run.intake.cursor()


# --- the error path -----------------------------------------------------------------------------


async def fail(run: ChatRun, state: TurnState, error: BaseException) -> None:
    """§2.10: the turn failed. A failure after the turn-complete is only logged (D-13)."""
    log.warning(
        "turn.failed: turn %d of agent %s, %s",
        state.turn,
        run.agent.task_id,
        run.runtime.info.run_id,
        exc_info=error,
    )
    tracing.failed(error)
    if state.completed:
        return
    run.intake.unstoppable()
    checkpoint(run, state)
    # What validation has changed or taken out does not come back.
    sent = state.incoming if state.validated else [state.wire_message]
    message = next(reversed(ui_messages.repair(sent)), None)
    if (
        message is not None
        and ui_messages.find(run.lane.messages, ui_messages.id_of(message)) is None
    ):
        run.lane.replace_all([*run.lane.messages, message])
    cursor, words = decided(run), run.error_text(error)
    if state.history_changed:
        await commit.save_history(run, cursor, failure=words)
    seq_num = await commit.turn_complete(run, cursor, error=words)
    state.completed = True
    run.started = run.started or state.trigger != "action"
    state.token, state.client_data, state.stopped = "", None, False
    state.response = state.raw_response = state.usage = None
    state.finish_reason = "error"
    state.new_ui_messages = [message] if message is not None else []
    await _completed(run, state, seq_num, error=error)
    await commit.save_history(run, cursor)


async def _completed(
    run: ChatRun, state: TurnState, seq_num: int, *, error: BaseException | None
) -> None:
    """T32: `on_turn_complete`; what it raises is logged, and nothing more is written."""
    if run.agent.hooks.has("on_turn_complete"):
        event = hooks.TurnCompleteEvent(
            **end_fields(run, state),
            total_usage=run.total_usage,
            last_event_id=str(seq_num),
            error=error,
        )
        await logged(lambda: run.hook("on_turn_complete", event), "on_turn_complete")
    run.lane.apply()


# --- shared -------------------------------------------------------------------------------------


def checkpoint(run: ChatRun, state: TurnState) -> None:
    """Staged history becomes the lane, and has to be stored before the turn-complete."""
    if run.lane.apply():
        state.history_changed = True
