"""One turn: from an input to its turn-complete (chat-agent §2.8, §2.10).

The pipeline is the list of small steps in `_answer`; their numbers are the spec's. A step raises
to take the error path, which is the same for all of them (`turn_end`). What never takes it:
cancellation, a lost lease, and running out of memory, which end the attempt (the turn is then
answered again by another one).
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from everturn.chat import (
    compaction,
    handover,
    hooks,
    late_answers,
    tracing,
    turn_end,
    ui_messages,
)
from everturn.chat.failures import ends_attempt, means_stopped
from everturn.chat.handover import Handover
from everturn.chat.hooks import call_declared
from everturn.chat.output import Response
from everturn.chat.prepare import prepared
from everturn.chat.state import ChatRun, TurnState
from everturn.chat.steering import keep_joined
from everturn.chat.streamables import is_streamable
from everturn.chat.tools import Tool
from everturn.chat.turn_events import turn_fields
from everturn.chat.turn_view import Turn, model_messages
from everturn.errors import EverturnError, Fenced, InvalidRequest, LeaseLost
from everturn.protocol.records import (
    RESTARTED_CHUNK,
    UPGRADE_REQUIRED,
    Input,
    control_record,
)
from everturn.tasks.signals import Signal

log = logging.getLogger("everturn.chat")


async def run_turn(run: ChatRun, item: Input | None, given: Handover | None = None) -> bool:
    """Answer the FIFO's head, or `item` from elsewhere. False when it was handed to a successor.

    `given` is the first step of the answer, made by a head start.

    On return its turn-complete is durable, the completion hook has run and history is stored.
    Raises only what ends the attempt.
    """
    state = begin(run, item, "turn")
    state.handover = given
    with tracing.turn(run, state):
        return await _answered(run, state)


async def _answered(run: ChatRun, state: TurnState) -> bool:
    try:
        if not await _answer(run, state):
            return False
    except Exception as error:  # author code: the turn fails, the run lives
        if ends_attempt(error):
            raise
        await turn_end.fail(run, state, error)
    finally:
        end(run)
    run.turn_index += 1
    return True


def begin(run: ChatRun, item: Input | None, phase: str) -> TurnState:
    """Take the input and make it the turn in progress; stops count from here."""
    stop = Signal()
    taken = run.intake.begin(item, stop)
    state = TurnState(item=taken, stop=stop, signal=Signal(), turn=run.turn_index)
    stop.on_abort(state.signal.abort)
    # Undone at the end of the turn, or the run's signal would remember every turn there was.
    state.release = run.runtime.cancelled.on_abort(state.signal.abort)
    if run.turns_started == 0:
        state.deferred = run.background.early
        state.stream_options = run.early_stream_options
    run.turn = state
    # What was staged since the last turn does not know of the message that joins now.
    run.lane.apply()
    state.history_changed = run.lane.unsaved
    run.steering.begin()
    run.turns_started += 1
    run.runtime.report(turns=run.turns_started)
    run.observer.phase(phase)
    _restart(run, state)
    return state


def _restart(run: ChatRun, state: TurnState) -> None:
    """Close what a dead attempt left open, and say that its answer is given anew (rulings §1.6).

    Before anything else of the turn: replay discards what lies before the mark. Only the message
    that was being answered is answered under the same id.
    """
    restart, run.restart = run.restart, None
    if restart is None:
        return
    if restart.seq_num == state.item.seq_num:
        state.restarted_id = restart.message_id
    for chunk in restart.ends:
        run.out.write(chunk, ours=True)
    state.restarted = True
    data = {"runId": run.runtime.info.run_id, "attempt": run.runtime.info.attempt}
    run.out.write({"type": RESTARTED_CHUNK, "data": data}, ours=True)


def end(run: ChatRun) -> None:
    """The turn in progress is over, however it ended."""
    run.intake.done()
    if run.turn is not None:
        tracing.end_turn(run, run.turn)
        run.turn.release()
    run.turn = None


# --- the pipeline -------------------------------------------------------------------------------


async def _answer(run: ChatRun, state: TurnState) -> bool:
    """Steps T1 to T33. False when the turn was handed over to a newer version."""
    await resolve(run, state)
    await _validate(run, state)
    before = run.lane.messages
    await _accumulate(run, state)
    late_answers.compare(run, state, before)
    _splice(run, state)
    await _start_hooks(run, state)
    if run.upgrade_requested:
        await hand_over(run)
        return False
    run.background.place(run.lane.messages)
    if state.handover is not None and state.handover.is_final:
        _take_over(run, state)
    elif state.nothing_new:
        _leave_as_it_is(run, state)
    else:
        await _prepare(run, state, turn := Turn[Any](run, state))
        await _run_agent(run, state, turn)
    await turn_end.drain_deferred(run, state)
    await compaction.outer(run, state, lambda: model_messages(run, state))
    await turn_end.before_complete(run, state)
    await turn_end.complete(run, state)
    return True


async def resolve(run: ChatRun, state: TurnState) -> None:
    """T1-T4: client data and tools. Both fail the turn."""
    state.client_data = run.agent.client_data(state.item.payload.get("metadata"))
    run.client_data = state.client_data
    tools = run.agent.options.tools
    if callable(tools) and not isinstance(tools, list | tuple | dict | Tool):
        event = hooks.ResolveToolsEvent(
            chat_id=run.chat_id,
            turn=state.turn,
            continuation=run.continuation,
            client_data=state.client_data,
        )
        run.observer.hook("tools", event)
        tools = await call_declared(tools, event)
    state.tools = [tools] if isinstance(tools, Tool) else tools


async def _validate(run: ChatRun, state: TurnState) -> None:
    """T8-T9: the incoming list, zero or one message, through `on_validate_messages`."""
    sent = state.item.payload.get("message") if state.trigger == "submit-message" else None
    if sent is not None:
        # From a client: whatever is no message, or no part of one, is known to nobody after this.
        state.incoming = ui_messages.repair([sent])
        if not state.incoming:
            raise InvalidRequest("what was sent is no message: it needs a known role")
        if state.incoming[0]["role"] == "assistant":
            late_answers.refuse_unknown(run, state)
            state.incoming = [ui_messages.clean_aborted_parts(state.incoming[0])]
    elif state.handover is not None and run.agent.hydrates:
        state.incoming = handover.head_start_messages(run.payload)
    if state.incoming and run.agent.hooks.has("on_validate_messages"):
        event = hooks.ValidateMessagesEvent(
            chat_id=run.chat_id,
            messages=ui_messages.as_objects(state.incoming),
            turn=state.turn,
            trigger=state.trigger,
        )
        sent = copy.deepcopy(state.incoming)
        found = await run.hook("on_validate_messages", event)
        state.incoming = hooks.message_list(found, "on_validate_messages")
        state.validated = True
        # A replay of the log would find the message as it was sent.
        state.history_changed |= state.incoming != sent
    turn_end.checkpoint(run, state)


async def _accumulate(run: ChatRun, state: TurnState) -> None:
    """T10, T12: the incoming messages join the UI lane."""
    if run.agent.hydrates:
        known = {message.get("id") for message in run.lane.messages if message.get("id")}
        await hydrate(run, state)
        if state.incoming and state.incoming[-1].get("id") not in known:
            state.new_ui_messages.append(state.incoming[-1])
        return
    if state.trigger == "regenerate-message":
        run.lane.replace_all(ui_messages.accumulate(run.lane.messages, None, state.trigger))
    for message in state.incoming:
        before = len(run.lane.messages)
        run.lane.replace_all(ui_messages.accumulate(run.lane.messages, message, "submit-message"))
        if len(run.lane.messages) > before:
            state.new_ui_messages.append(message)


def _splice(run: ChatRun, state: TurnState) -> None:
    """T11: the first step of a head start joins the history."""
    if state.handover is not None:
        handover.splice(run, state, state.handover)


async def hydrate(run: ChatRun, state: TurnState) -> None:
    """The author's history replaces the lane; tool answers are overlaid by id (§2.17)."""
    event = hooks.HydrateMessagesEvent(
        chat_id=run.chat_id,
        turn=state.turn,
        trigger=state.trigger,
        incoming_messages=ui_messages.as_objects(state.incoming),
        previous_messages=run.lane.messages,
        client_data=state.client_data,
        continuation=run.continuation,
        previous_run_id=run.previous_run_id,
    )
    chain = hooks.history(await run.hook("hydrate_messages", event), "hydrate_messages")
    run.lane.apply()
    for message in state.incoming:
        stored = ui_messages.find(chain, ui_messages.id_of(message))
        if stored is not None:
            chain = ui_messages.merge_by_id(chain, [ui_messages.overlay(stored, message)])
    run.lane.replace_all(chain)


async def _start_hooks(run: ChatRun, state: TurnState) -> None:
    """T13-T15: the token, `on_chat_start` until a turn has committed, `on_turn_start`."""
    state.token = await run.tokens.current()
    if not run.started and run.agent.hooks.has("on_chat_start"):
        event = hooks.ChatStartEvent(**turn_fields(run, state), writer=run.writer())
        await run.hook("on_chat_start", event)
    turn_end.checkpoint(run, state)
    if run.agent.hooks.has("on_turn_start"):
        start = hooks.TurnStartEvent(
            **turn_fields(run, state),
            previous_turn_usage=run.previous_turn_usage,
            total_usage=run.total_usage,
            writer=run.writer(),
        )
        await run.hook("on_turn_start", start)
    turn_end.checkpoint(run, state)


async def hand_over(run: ChatRun) -> None:
    """T16: tell readers, then swap in a successor. The message stays open and is its first."""
    await run.runtime.append([control_record(UPGRADE_REQUIRED)])
    try:
        await run.runtime.end_and_continue("upgrade")
    except (Fenced, LeaseLost):
        raise
    except (EverturnError, OSError):
        # The next append, or the server's look at open records when this run ends, makes the
        # successor instead.
        log.warning("upgrade.swap_failed", exc_info=True)


async def _prepare(run: ChatRun, state: TurnState, turn: Turn[Any]) -> None:
    """T19, first half: `prepare_messages` may transform the model lane."""
    if run.agent.hooks.has("prepare_messages"):
        turn.prepared(await prepared(run, state, model_messages(run, state), "run"))


async def _run_agent(run: ChatRun, state: TurnState, turn: Turn[Any]) -> None:
    """T19-T26: call the agent, stream what it returns, make the response part of history."""
    response: Response | None = None
    try:
        run.observer.hook("run", turn)
        result = await call_declared(run.agent.function, turn, run.ctx)
        if state.piped == 0 and is_streamable(result):
            response = response_of(run, state)
            with tracing.span(run, "stream response"):
                await response.pipe(result, state.signal)
        turn_end.checkpoint(run, state)
        if state.compacted is not None:
            await compaction.settle(run, state, response.message if response else None)
    except Exception as error:  # author code; what it showed so far is kept
        if not (means_stopped(error) and state.stop.aborted):
            _capture(run, state, response, failed=True)
            raise
    run.intake.unstoppable()
    state.stopped = state.stop.aborted
    _capture(run, state, response, failed=False)


def _take_over(run: ChatRun, state: TurnState) -> None:
    """T18: the first step of a head start was the whole answer; nothing is run."""
    run.intake.unstoppable()
    state.stopped = state.stop.aborted
    if state.restarted:
        run.out.write({"type": "finish", "finishReason": "stop"})
    _capture(run, state, None, failed=False)
    state.finish_reason = "stop"


def _leave_as_it_is(run: ChatRun, state: TurnState) -> None:
    """The message repeats an answer that was given before: nothing is run, nothing is said."""
    run.intake.unstoppable()
    state.stopped = state.stop.aborted
    _capture(run, state, None, failed=False)


def response_of(run: ChatRun, state: TurnState) -> Response:
    """T20: a message whose tool call was answered is continued under its id, a trailing one too."""
    seed = late_answers.continued(run, state)
    options = run.take_stream_options(state)
    if seed is not None:
        return Response(
            run.runtime,
            run.out,
            message_id=ui_messages.id_of(seed),
            seed=seed,
            is_open=state.handover is not None,
            options=options,
        )
    if state.restarted_id is not None:
        return Response(
            run.runtime, run.out, message_id=state.restarted_id, forced=True, options=options
        )
    message_id = options.new_message_id(run.runtime.ids)
    return Response(run.runtime, run.out, message_id=message_id, options=options)


def _capture(run: ChatRun, state: TurnState, response: Response | None, *, failed: bool) -> None:
    """T24-T26: history changed during the run is the base; the response goes on top of it.

    Also on the way out of a failing turn: what was shown is kept, made whole (P-8).
    """
    turn_end.checkpoint(run, state)
    message: dict[str, Any] | None = None
    if response is not None and response.started:
        state.raw_response = message = response.message
        state.finish_reason, state.usage = response.finish_reason, response.usage
    elif state.handover is not None:
        message = state.raw_response = run.lane.last or state.handover.partial
    elif state.kept:
        message = state.raw_response = turn_end.empty_response(run)
    if message is None:
        keep_joined(run, state, None)
        return
    message = handover.without_markers(message, state.handover)
    if failed or state.stopped:
        message = ui_messages.clean_aborted_parts(message, run.lane.messages)
    state.response = message = state.kept.move_to(message)
    keep_joined(run, state, message)
    if failed and not ui_messages.has_content(message):
        return
    run.lane.upsert(message)
    state.new_ui_messages.append(message)
