"""`chat.create_session`: the turns of a chat, one after another, in an author's loop (§4.9).

    @chat.custom_agent("support")
    async def support(payload, ctx):
        async with chat.create_session(payload) as session:
            async for turn in session:
                await turn.complete(turn.stream(model))

The session does for the loop what the managed agent does for its function: it waits (warm, then
suspended), takes messages in the order of `.in`, gives each its turn with a stop signal, and ends
the turn with one turn-complete. What stays the author's: history over runs (`turn.set_messages`),
hooks, and errors. An exception leaves the loop and fails the run; the server then closes the open
turn with an error chunk.

Iteration ends on `close`, when nobody wrote for `timeout`, at `max_turns`, after `chat.end_run` or
`chat.request_upgrade`, and when `signal` is aborted. The session stays open: messages that wait
are answered by a successor run.

A turn that the author neither completed nor marked as done when he asks for the next one is done
then: every message that was taken gets its turn-complete (P-3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Generic

from everturn.chat import compaction, late_answers, tracing, ui_messages
from everturn.chat import handover as handovers
from everturn.chat.accumulator import MessageAccumulator
from everturn.chat.compaction import Compaction
from everturn.chat.custom import CustomAgent, complete_turn, wait_for_handover
from everturn.chat.handover import Handover
from everturn.chat.hooks import ClientT
from everturn.chat.message_input import arrives, begin_turn
from everturn.chat.output import Response, add_usage
from everturn.chat.state import ChatRun, TurnState, current_run
from everturn.chat.steering import PendingMessages, Steering, keep_joined
from everturn.chat.turn import end, hand_over, response_of
from everturn.chat.turn_end import checkpoint
from everturn.chat.turn_view import Turn, model_messages
from everturn.errors import ChatContextError, InvalidRequest
from everturn.rules import limits
from everturn.tasks.durations import Duration
from everturn.tasks.durations import parse as seconds
from everturn.tasks.signals import Signal

Message = dict[str, Any]


class LoopTurn(Turn[ClientT], Generic[ClientT]):
    """One turn of `chat.create_session`.

    Attributes:
        handover: the first step of the answer, when a head start made it; `handover.is_final`
            says whether that is the whole answer.
    """

    def __init__(self, session: ChatSession, run: ChatRun, state: TurnState) -> None:
        super().__init__(run, state)
        self._session = session
        self.handover: Handover | None = state.handover

    @property
    def number(self) -> int:
        """Its index in this run, from 0."""
        return self._state.turn

    @property
    def payload(self) -> Mapping[str, Any]:
        """The message record as it came: `action`, `metadata`, `messageId`, …"""
        return self._state.item.payload

    @property
    def messages(self) -> list[Any]:
        """The history for the model library, as it is now."""
        return model_messages(self._run, self._state)

    @property
    def stopped(self) -> bool:
        """Whether a client stopped this turn."""
        return self._state.stop.aborted and not self._session.cancelled

    async def complete(self, source: Any = None) -> Message | None:
        """Stream `source` as the answer, keep it in the history, end the turn.

        A stopped stream is cut: what was shown is kept, made whole.

        Args:
            source: a streamable (str, UI message, iterator of text or chunks, stream of the
                model library). Left out only for a handover that is the whole answer.

        Returns the answer; None when it showed nothing, or the session's `signal` was aborted,
        which keeps nothing.

        Raises:
            InvalidRequest: there is no source, and the handover is not final.
            What `source` raises: nothing is written then, and the turn stays open.
        """
        self._check_open()
        run, state = self._run, self._state
        if source is None:
            if self.handover is None or not self.handover.is_final:
                raise InvalidRequest("complete() needs a source: this turn has no final handover")
            response = None
            if state.restarted:
                run.out.write({"type": "finish", "finishReason": "stop"})
        else:
            response = response_of(run, state)
            with tracing.span(run, "stream response"):
                await response.pipe(source, self.signal)
        run.intake.unstoppable()
        made = None
        if not self._session.cancelled:
            checkpoint(run, state)
            await compaction.settle(run, state, response.message if response else None)
            made = self._kept(response)
            state.stopped = self.stopped
            await compaction.outer(run, state, lambda: model_messages(run, state))
        await self._end()
        return made

    def add_response(self, message: Mapping[str, Any]) -> Message:
        """Keep an answer that the author streamed by himself (`chat.pipe_and_capture`)."""
        made = self._session.accumulator.add_response(message)
        self._state.response = made
        return made

    async def done(self) -> None:
        """End the turn; for answers that were not streamed by `complete`."""
        self._check_open()
        self._keep_data()
        await self._end()

    def set_messages(self, ui_messages: Sequence[Mapping[str, Any]]) -> None:
        """Replace the history, for this turn and the later ones of this run."""
        self._session.accumulator.set_messages(ui_messages)

    def prepare_step(self) -> Any:
        """The step hook of compaction and steering, for a model run of one's own making.

        A capability of the model library; None when the session has neither. `turn.stream`
        brings it by itself.
        """
        return self._session.accumulator.prepare_step()

    # --- inside ----------------------------------------------------------------------------------

    def _kept(self, response: Response | None) -> Message | None:
        """The answer, cleaned where it was cut, with its data parts, in the history."""
        run, state = self._run, self._state
        message = None
        if response is not None and response.started:
            state.usage, state.finish_reason = response.usage, response.finish_reason
            message = response.message
        elif self.handover is not None:
            message = run.lane.last or self.handover.partial
        if message is None:
            return self._keep_data()
        message = handovers.without_markers(message, self.handover)
        state.raw_response = message
        if state.stop.aborted:
            message = ui_messages.clean_aborted_parts(message, run.lane.messages)
        return self.add_response(state.kept.move_to(message))

    def _keep_data(self) -> Message | None:
        """Data parts written beside the answer join it, or are one."""
        if not self._state.kept:
            return self._state.response
        base = self._state.response or {"role": "assistant", "parts": []}
        return self.add_response(self._state.kept.move_to(base))

    async def _end(self) -> None:
        run, state = self._run, self._state
        keep_joined(run, state, state.response)
        run.steering.drop_unconsumed(run)
        run.total_usage = add_usage(run.total_usage, state.usage)
        run.previous_turn_usage = state.usage
        await complete_turn(run)

    def _check_open(self) -> None:
        if self._state.completed:
            raise ChatContextError(f"turn {self.number} has its turn-complete already")


class ChatSession:
    """The turns of a chat. Made by `create_session`; iterate it inside its `async with` block."""

    def __init__(
        self,
        run: ChatRun,
        payload: Mapping[str, Any],
        *,
        signal: Signal | None,
        idle_timeout_s: float,
        timeout_s: float,
        max_turns: int,
    ) -> None:
        self._run = run
        self._payload = payload
        self._signal = signal
        self._idle_s = idle_timeout_s
        self._timeout_s = timeout_s
        self._max_turns = max_turns
        self._turn: LoopTurn[Any] | None = None
        self._turns = 0
        self._ended = False
        #: The history, in both forms.
        self.accumulator = MessageAccumulator()

    @property
    def cancelled(self) -> bool:
        """Whether the session's own `signal`, or the run, was aborted."""
        own = self._signal is not None and self._signal.aborted
        return own or self._run.runtime.cancelled.aborted

    async def __aenter__(self) -> ChatSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End a turn that was left open; after an exception it stays open, and the run fails."""
        self._ended = True
        if kind is None:
            await self._finish()

    def __aiter__(self) -> ChatSession:
        return self

    async def __anext__(self) -> LoopTurn[Any]:
        """The next turn, when there is one."""
        await self._finish()
        state = None if self._is_over() else await self._next()
        if state is None:
            self._ended = True
            raise StopAsyncIteration
        if self._signal is not None:
            # Undone with the turn: the signal is the author's, and may live as long as the run.
            undo, release = self._signal.on_abort(state.signal.abort), state.release
            state.release = lambda: (undo(), release())
        turn = self._prepared(state)
        if self._run.upgrade_requested:
            # The message stays open: it is the successor's first.
            await hand_over(self._run)
            end(self._run)
            self._ended = True
            raise StopAsyncIteration
        self._turn = turn
        self._turns += 1
        return turn

    # --- inside ----------------------------------------------------------------------------------

    async def _finish(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and not turn._state.completed:
            await turn.done()

    def _is_over(self) -> bool:
        run = self._run
        if self._ended or self.cancelled or self._turns >= self._max_turns:
            return True
        return self._turns > 0 and (run.upgrade_requested or run.end_requested)

    async def _next(self) -> TurnState | None:
        """The state of the next turn; None when iteration is over."""
        run = self._run
        if self._turns == 0:
            if run.turn is not None:
                return run.turn
            if self._payload.get("trigger") == "close":
                return None
            if handovers.expected(self._payload) and not run.started:
                if await wait_for_handover(self._payload) is not None:
                    return run.turn
                return None
        if not await self._arrives():
            return None
        head = run.intake.head()
        if head is not None and head.trigger == "close":
            run.intake.drop_head()
            return None
        return begin_turn(run, None)

    async def _arrives(self) -> bool:
        """Wait for a message; False when time is up or the session was cancelled."""
        run = self._run
        idle_s = self._idle_s if run.idle_timeout_s is None else run.idle_timeout_s
        timeout_s = self._timeout_s if run.turn_timeout_s is None else run.turn_timeout_s
        return await arrives(run, idle_s, timeout_s) and not self.cancelled

    def _prepared(self, state: TurnState) -> LoopTurn[Any]:
        """Client data, and the history with what came in."""
        run, given = self._run, state.handover
        state.client_data = run.agent.client_data(state.item.payload.get("metadata"))
        run.client_data = state.client_data
        if given is not None:
            if not run.lane.messages:
                self.accumulator.set_messages(handovers.head_start_messages(self._payload))
            handovers.splice(run, state, given)
        else:
            message = state.wire_message
            incoming = [message] if message is not None else []
            state.incoming = [dict(item) for item in incoming]
            before = run.lane.messages
            self.accumulator.add_incoming(incoming, state.trigger, self._turns)
            late_answers.compare(run, state, before)
        run.background.place(run.lane.messages)
        return LoopTurn(self, run, state)


def create_session(
    payload: Mapping[str, Any],
    *,
    signal: Signal | None = None,
    idle_timeout: Duration = limits.IDLE_TIMEOUT_S,
    timeout: Duration = limits.TURN_TIMEOUT_S,
    max_turns: int = limits.MAX_TURNS,
    compaction: Compaction | None = None,
    pending_messages: PendingMessages | None = None,
) -> ChatSession:
    """The turns of this chat, for use inside `chat.custom_agent`.

    Args:
        payload: what the agent's function was given.
        signal: ends the turn in progress and the iteration when it is aborted.
        idle_timeout: how long the run stays warm after a turn.
        timeout: how long the suspended run waits then.
        max_turns: turns of this run; the session goes on in another one.
        compaction, pending_messages: as of `chat.agent`.

    Raises ChatContextError outside of a custom agent.
    """
    run = current_run()
    if not isinstance(run.agent, CustomAgent):
        raise ChatContextError("chat.create_session belongs into a chat.custom_agent")
    if max_turns < 1:
        raise InvalidRequest("max_turns is at least 1")
    run.compaction = compaction
    run.steering = Steering(pending_messages)
    run.steering.watch(run)
    return ChatSession(
        run,
        payload,
        signal=signal,
        idle_timeout_s=seconds(idle_timeout),
        timeout_s=seconds(timeout),
        max_turns=max_turns,
    )
