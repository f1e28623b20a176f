"""Actions: inputs that change a chat without being a turn of it (chat-agent §2.12).

An action runs none of the turn's hooks but its own, uses up no turn index when it succeeds, and
ends with a turn-complete like everything that is answered. When it changed history or produced a
response, history is stored *before* the turn-complete (rulings §1.13): nothing else could restore
such a change after a crash. Interrupted by a crash an action runs again, so authors make its side
effects repeatable.
"""

from __future__ import annotations

import logging
from typing import Any

from everturn.chat import commit, hooks, tracing
from everturn.chat.failures import ends_attempt, means_stopped
from everturn.chat.output import Response
from everturn.chat.state import ChatRun, TurnState
from everturn.chat.steering import keep_joined
from everturn.chat.streamables import is_streamable
from everturn.chat.turn import begin, end, hydrate, resolve
from everturn.chat.turn_end import checkpoint, drain_deferred, fail
from everturn.chat.turn_view import model_messages
from everturn.chat.ui_messages import clean_aborted_parts, new_message_id
from everturn.protocol.records import Input

log = logging.getLogger("everturn.chat")
_warned: set[str] = set()


async def run_action(run: ChatRun, item: Input | None) -> None:
    """Handle one action to its turn-complete. A failed one uses up a turn index (§2.10)."""
    state = begin(run, item, "action")
    with tracing.turn(run, state):
        await _answered(run, state)


async def _answered(run: ChatRun, state: TurnState) -> None:
    try:
        await _handle(run, state)
    except Exception as error:  # author code: the action fails, the run lives
        if ends_attempt(error):
            raise
        await fail(run, state, error)
        run.turn_index += 1
    finally:
        end(run)


async def _handle(run: ChatRun, state: TurnState) -> None:
    await resolve(run, state)
    payload = run.agent.action(state.item.payload.get("action"))
    if run.agent.hydrates:
        await hydrate(run, state)
    result = await _call(run, state, payload)
    checkpoint(run, state)
    if state.piped == 0 and is_streamable(result):
        await _respond(run, state, result)
    run.intake.unstoppable()
    await drain_deferred(run, state)
    _keep_parts(run, state)
    checkpoint(run, state)
    if state.joined:
        keep_joined(run, state, state.response)
        state.history_changed = True
    # With what steering took into a model run of the action: nobody else answers it.
    run.intake.decide_turn()
    cursor = run.intake.cursor()
    if state.history_changed:
        await commit.save_history(run, cursor)
    await commit.turn_complete(run, cursor)
    state.completed = True
    if state.history_changed:
        await commit.save_history(run, cursor)


async def _call(run: ChatRun, state: TurnState, payload: Any) -> Any:
    if not run.agent.hooks.has("on_action"):
        if run.agent.task_id not in _warned:
            _warned.add(run.agent.task_id)
            log.warning("action.unhandled: agent %s has no on_action", run.agent.task_id)
        return None
    event = hooks.ActionEvent(
        chat_id=run.chat_id,
        action=payload,
        turn=state.turn,
        client_data=state.client_data,
        ui_messages=run.lane.messages,
        model_lane=lambda: model_messages(run, state),
    )
    try:
        return await run.hook("on_action", event)
    except Exception as error:  # author code, which may say in its way that it was stopped
        if not (means_stopped(error) and state.stop.aborted):
            raise
        return None


async def _respond(run: ChatRun, state: TurnState, result: Any) -> None:
    """Stream what the hook returned, always as a new message; a stop cuts it, without an error."""
    options = run.take_stream_options(state)
    message_id = state.restarted_id or options.new_message_id(run.runtime.ids)
    response = Response(run.runtime, run.out, message_id=message_id, forced=True, options=options)
    failed = True
    try:
        with tracing.span(run, "stream response"):
            await response.pipe(result, state.signal)
        failed = False
    finally:
        if response.started:
            message = response.message
            if failed or state.stop.aborted:
                message = clean_aborted_parts(message)
            state.response = message
            run.lane.upsert(message)
            state.history_changed = True


def _keep_parts(run: ChatRun, state: TurnState) -> None:
    """Data parts written beside the stream join the response (R-144)."""
    if not state.kept:
        return
    base = state.response or {
        "id": new_message_id(run.runtime.ids),
        "role": "assistant",
        "parts": [],
    }
    state.response = state.kept.move_to(base)
    run.lane.upsert(state.response)
    state.history_changed = True
