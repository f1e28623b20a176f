"""One turn: from an input to its turn-complete (chat-agent §2.8, §2.10).

The pipeline is the list of small steps in `_answer`; their numbers are the spec's. A step raises
to take the error path, which is the same for all of them: one error chunk and the turn-complete
in one append, the user's message and whatever was streamed kept in history, the completion hook
told. What never takes it: cancellation, a lost lease, and running out of memory, which end the
attempt (the turn is then answered again by another one).

After the turn-complete nothing more of the turn is written: late exceptions are logged (D-13).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from everturn.chat import commit, hooks, messages
from everturn.chat.hooks import call_declared
from everturn.chat.output import Response, add_usage, is_streamable
from everturn.chat.state import ChatRun, Turn, TurnState, model_messages
from everturn.errors import EverturnError, Fenced, LeaseLost
from everturn.protocol.records import RESTARTED_CHUNK, UPGRADE_REQUIRED, Input, control_record
from everturn.rules import limits
from everturn.tasks.channels import within
from everturn.tasks.signals import Signal, Stopped

log = logging.getLogger("everturn.chat")


async def run_turn(run: ChatRun, item: Input | None) -> bool:
    """Answer the FIFO's head, or `item` from elsewhere. False when it was handed to a successor.

    On return its turn-complete is durable, the completion hook has run and history is stored.
    Raises only what ends the attempt.
    """
    state = begin(run, item, "turn")
    try:
        if not await _answer(run, state):
            return False
    except Exception as error:  # author code: the turn fails, the run lives
        if ends_attempt(error):
            raise
        await fail(run, state, error)
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
    run.turn = state
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
    data = {"runId": run.runtime.info.run_id, "attempt": run.runtime.info.attempt}
    run.out.write({"type": RESTARTED_CHUNK, "data": data}, ours=True)


def end(run: ChatRun) -> None:
    """The turn in progress is over, however it ended."""
    run.intake.done()
    if run.turn is not None:
        run.turn.release()
    run.turn = None


def ends_attempt(error: BaseException) -> bool:
    """Whether an exception is no failure of the turn but the end of this attempt."""
    if isinstance(error, Fenced | LeaseLost | MemoryError):
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(ends_attempt(inner) for inner in error.exceptions)
    return not isinstance(error, Exception)


# --- the pipeline -------------------------------------------------------------------------------


async def _answer(run: ChatRun, state: TurnState) -> bool:
    """Steps T1 to T33. False when the turn was handed over to a newer version."""
    await resolve(run, state)
    await _validate(run, state)
    await _accumulate(run, state)
    await _start_hooks(run, state)
    if run.upgrade_requested:
        await hand_over(run)
        return False
    await _prepare(run, state, turn := Turn[Any](run, state))
    await _run_agent(run, state, turn)
    await drain_deferred(run, state)
    await _before_complete(run, state)
    await _complete(run, state)
    return True


async def resolve(run: ChatRun, state: TurnState) -> None:
    """T1-T4: client data and tools. Both fail the turn."""
    state.client_data = run.agent.client_data(state.item.payload.get("metadata"))
    run.client_data = state.client_data
    tools = run.agent.options.tools
    if callable(tools) and not isinstance(tools, list | tuple | dict):
        tools = await call_declared(
            tools,
            hooks.ResolveToolsEvent(
                chat_id=run.chat_id,
                turn=state.turn,
                continuation=run.continuation,
                client_data=state.client_data,
            ),
        )
    state.tools = tools


async def _validate(run: ChatRun, state: TurnState) -> None:
    """T8-T9: the incoming list, zero or one message, through `on_validate_messages`."""
    message = state.wire_message if state.trigger == "submit-message" else None
    if message is not None:
        if message.get("role") == "assistant":
            message = messages.clean_aborted_parts(message)
        state.incoming = [message]
    if state.incoming and run.agent.hooks.has("on_validate_messages"):
        event = hooks.ValidateMessagesEvent(
            chat_id=run.chat_id,
            messages=list(state.incoming),
            turn=state.turn,
            trigger=state.trigger,
        )
        found = await run.hook("on_validate_messages", event)
        state.incoming = hooks.message_list(found, "on_validate_messages")


async def _accumulate(run: ChatRun, state: TurnState) -> None:
    """T10, T12: the incoming messages join the UI lane."""
    known = {message.get("id") for message in run.lane.messages if message.get("id")}
    if run.agent.hydrates:
        await hydrate(run, state)
        if state.incoming and state.incoming[-1].get("id") not in known:
            state.new_ui_messages.append(state.incoming[-1])
        return
    if state.trigger == "regenerate-message":
        run.lane.replace_all(messages.accumulate(run.lane.messages, None, state.trigger))
    for message in state.incoming:
        before = len(run.lane.messages)
        run.lane.replace_all(messages.accumulate(run.lane.messages, message, "submit-message"))
        if len(run.lane.messages) > before:
            state.new_ui_messages.append(message)


async def hydrate(run: ChatRun, state: TurnState) -> None:
    """The author's history replaces the lane; tool answers are overlaid by id (§2.17)."""
    event = hooks.HydrateMessagesEvent(
        chat_id=run.chat_id,
        turn=state.turn,
        trigger=state.trigger,
        incoming_messages=list(state.incoming),
        previous_messages=run.lane.messages,
        client_data=state.client_data,
        continuation=run.continuation,
        previous_run_id=run.previous_run_id,
    )
    chain = hooks.message_list(await run.hook("hydrate_messages", event), "hydrate_messages")
    run.lane.apply()
    for message in state.incoming:
        stored = messages.find(chain, messages.id_of(message))
        if stored is not None:
            chain = messages.merge_by_id(chain, [messages.overlay(stored, message)])
    run.lane.replace_all(chain)


async def _start_hooks(run: ChatRun, state: TurnState) -> None:
    """T13-T15: the token, `on_chat_start` until a turn has committed, `on_turn_start`."""
    state.token = await run.tokens.current()
    if not run.started and run.agent.hooks.has("on_chat_start"):
        event = hooks.ChatStartEvent(**turn_fields(run, state), writer=run.writer())
        await run.hook("on_chat_start", event)
    checkpoint(run, state)
    if run.agent.hooks.has("on_turn_start"):
        start = hooks.TurnStartEvent(
            **turn_fields(run, state),
            previous_turn_usage=run.previous_turn_usage,
            total_usage=run.total_usage,
            writer=run.writer(),
        )
        await run.hook("on_turn_start", start)
    checkpoint(run, state)


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
    if not run.agent.hooks.has("prepare_messages"):
        return
    event = hooks.PrepareMessagesEvent(
        chat_id=run.chat_id,
        turn=state.turn,
        messages=model_messages(run, state),
        reason="run",
        client_data=state.client_data,
    )
    turn.prepared(list(await run.hook("prepare_messages", event)))


async def _run_agent(run: ChatRun, state: TurnState, turn: Turn[Any]) -> None:
    """T19-T26: call the agent, stream what it returns, make the response part of history."""
    response: Response | None = None
    try:
        run.observer.hook("run", turn)
        result = await call_declared(run.agent.function, turn, run.ctx)
        if state.piped == 0 and is_streamable(result):
            response = _response(run, state)
            await response.pipe(result, state.signal)
    except Exception as error:  # author code; what it showed so far is kept
        if not (isinstance(error, Stopped) and state.stop.aborted):
            _capture(run, state, response, failed=True)
            raise
    run.intake.unstoppable()
    state.stopped = state.stop.aborted
    _capture(run, state, response, failed=False)


def _response(run: ChatRun, state: TurnState) -> Response:
    """T20: a trailing assistant message is continued under its id (a tool call was answered)."""
    last = run.lane.last
    seed = last if last is not None and last.get("role") == "assistant" else None
    if seed is not None and messages.id_of(seed):
        return Response(run.runtime, run.out, message_id=messages.id_of(seed), seed=seed)
    if state.restarted_id is not None:
        return Response(run.runtime, run.out, message_id=state.restarted_id, forced=True)
    return Response(run.runtime, run.out, message_id=messages.new_message_id(run.runtime.ids))


def _capture(run: ChatRun, state: TurnState, response: Response | None, *, failed: bool) -> None:
    """T24-T26: history changed during the run is the base; the response goes on top of it.

    Also on the way out of a failing turn: what was shown is kept, made whole (P-8).
    """
    checkpoint(run, state)
    message: dict[str, Any] | None = None
    if response is not None and response.started:
        state.raw_response = message = response.message
        state.finish_reason, state.usage = response.finish_reason, response.usage
        if failed or state.stopped:
            message = messages.clean_aborted_parts(message)
    elif state.kept:
        message = state.raw_response = empty_response(run)
    if message is None:
        return
    state.response = message = state.kept.move_to(message)
    if failed and not messages.has_content(message):
        return
    run.lane.upsert(message)
    state.new_ui_messages.append(message)


def empty_response(run: ChatRun) -> dict[str, Any]:
    """An assistant message that holds data parts only (R-146)."""
    return {"id": messages.new_message_id(run.runtime.ids), "role": "assistant", "parts": []}


async def drain_deferred(run: ChatRun, state: TurnState) -> None:
    """T28: wait for deferred work, at most 5 s."""
    if state.deferred > 0:
        await within(run.runtime.clock, limits.DEFERRED_S_MAX, state.deferred_done.wait)


async def _before_complete(run: ChatRun, state: TurnState) -> None:
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
    if fresh:
        state.new_ui_messages.append(state.response)
    else:
        state.new_ui_messages[-1] = state.response


async def _complete(run: ChatRun, state: TurnState) -> None:
    """T31-T33: the turn-complete, the completion hook, the snapshot."""
    run.total_usage = add_usage(run.total_usage, state.usage)
    run.previous_turn_usage = state.usage
    run.intake.decide(state.item.seq_num)
    cursor = run.intake.cursor()
    if state.history_changed:
        await commit.save_history(run, cursor)
    seq_num = await commit.turn_complete(run, cursor, token=state.token)
    state.completed = True
    run.started = True
    await _completed(run, state, seq_num, error=None)
    await commit.save_history(run, cursor)


# --- the error path -----------------------------------------------------------------------------


async def fail(run: ChatRun, state: TurnState, error: BaseException) -> None:
    """§2.10: the turn failed. A failure after the turn-complete is only logged (D-13)."""
    log.warning("turn.failed", exc_info=error)
    if state.completed:
        return
    run.intake.unstoppable()
    message = state.wire_message
    if message is not None and messages.find(run.lane.messages, messages.id_of(message)) is None:
        run.lane.replace_all([*run.lane.messages, message])
    run.intake.decide(state.item.seq_num)
    cursor = run.intake.cursor()
    seq_num = await commit.turn_complete(run, cursor, error=run.agent.error_text(error))
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


async def logged(call: Callable[[], Any], name: str) -> None:
    """Await a hook whose failure changes nothing (D-13)."""
    try:
        await call()
    except Exception as error:  # author code
        if ends_attempt(error):
            raise
        log.exception("hook.failed: %s", name)


def checkpoint(run: ChatRun, state: TurnState) -> None:
    """Staged history becomes the lane, and has to be stored before the turn-complete."""
    if run.lane.apply():
        state.history_changed = True


def turn_fields(run: ChatRun, state: TurnState) -> dict[str, Any]:
    """The fields that all turn events share."""
    return {
        "ctx": run.ctx,
        "run_id": run.ctx.run.id,
        "chat_id": run.chat_id,
        "client_data": state.client_data,
        "chat_access_token": state.token,
        "turn": state.turn,
        "ui_messages": run.lane.messages,
        "continuation": run.continuation,
        "previous_run_id": run.previous_run_id,
        "preloaded": run.preloaded,
    }


def end_fields(run: ChatRun, state: TurnState) -> dict[str, Any]:
    """The fields that both completion events share."""
    return {
        **turn_fields(run, state),
        "new_ui_messages": list(state.new_ui_messages),
        "response_message": state.response,
        "raw_response_message": state.raw_response,
        "stopped": state.stopped,
        "usage": state.usage,
        "finish_reason": state.finish_reason,
    }


async def deferred(run: ChatRun, state: TurnState, work: Callable[[], Any]) -> None:
    """A task of the run: author's work beside the turn; its failure is logged."""
    try:
        await logged(work, "defer")
    finally:
        state.deferred -= 1
        if state.deferred == 0:
            state.deferred_done.set()
