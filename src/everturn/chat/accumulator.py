"""`chat.MessageAccumulator`: the history of a loop its author wrote (chat-agent §4.10).

It keeps one list of UI messages and derives the model's messages from it, as a managed agent
does. Nothing is stored: a loop loads its history from where it keeps it, and says so with
`set_messages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from everturn.chat import compaction as compactions
from everturn.chat import handover as handovers
from everturn.chat.compaction import Compaction
from everturn.chat.handover import Handover
from everturn.chat.history import Lane
from everturn.chat.state import current_run, current_run_or_none, current_turn
from everturn.chat.steering import Offered, PendingMessages, Steering, keep_joined
from everturn.chat.turn_view import model_messages
from everturn.chat.ui_messages import (
    UIMessage,
    accumulate,
    clean_aborted_parts,
    id_of,
    new_message_id,
    repair,
)
from everturn.errors import TooLarge
from everturn.rules import limits
from everturn.tasks.durations import Duration

Message = dict[str, Any]
_CONTEXT: Final = frozenset({"chat_id", "turn", "client_data", "total_usage"})


class MessageAccumulator:
    """The messages of one chat, in both forms."""

    def __init__(
        self,
        *,
        tools: Any = None,
        compaction: Compaction | None = None,
        pending_messages: PendingMessages | None = None,
    ) -> None:
        """In a custom agent this is the history of the run: `chat.history` sees it too.

        Args:
            tools: asked how the model should see stored results (§4.2.5).
            compaction: when and how a long conversation goes on from a summary.
            pending_messages: what becomes of messages that arrive during a turn. They are taken
                from the run's FIFO by the step hook; no handler has to collect them.

        Raises ChatContextError for the last two outside of a run.
        """
        run = current_run_or_none()
        self._run = run if run is not None and run.agent.kind == "custom-agent" else None
        self._lane = Lane() if self._run is None else self._run.lane
        self._tools = tools
        self._converted: tuple[int, list[Any]] | None = None
        self._steered: list[Offered] = []
        if compaction is not None:
            current_run().compaction = compaction
        if pending_messages is not None:
            run = current_run()
            run.steering = Steering(pending_messages)
            run.steering.watch(run)
        if self._run is not None:
            self._run.steering.offered = self._steered

    @property
    def ui_messages(self) -> list[UIMessage]:
        """The history as clients see it."""
        return self._lane.messages

    @property
    def model_messages(self) -> list[Any]:
        """The history for the model library; derived again only after a change."""
        if self._run is not None and self._tools is None:
            return model_messages(self._run, self._run.turn)
        if self._converted is None or self._converted[0] != self._lane.version:
            from everturn.chat import conversion

            made = conversion.to_model_messages(self._lane.messages, self._tools)
            self._converted = (self._lane.version, made)
        return list(self._converted[1])

    def add_incoming(
        self, incoming: Iterable[Mapping[str, Any]], trigger: str, turn: int
    ) -> list[Any]:
        """Take what came in; returns the messages for the model.

        On turn 0 and on a regenerate, messages replace the history; a regenerate without any
        drops the trailing answer instead. Otherwise they are added: answers to tool calls go
        onto the message that holds the calls, everything else to the end.
        """
        given = [_cleaned(message) for message in repair(list(incoming))]
        if trigger == "regenerate-message" and not given:
            self._lane.replace_all(accumulate(self._lane.messages, None, trigger))
        elif given and (turn == 0 or trigger == "regenerate-message"):
            self._lane.replace_all(given)
        else:
            for message in given:
                chain = accumulate(self._lane.messages, message, "submit-message")
                self._lane.replace_all(chain)
        return self.model_messages

    def add_response(self, message: Mapping[str, Any]) -> Message:
        """Take an answer: in place where its id is known, else at the end. Returns it, with an id.

        Messages that joined the turn, and of which the answer holds no mark, are taken before it.

        Raises ChatContextError for a message without an id outside of a run.
        """
        made = dict(message)
        if not id_of(made):
            made["id"] = new_message_id(current_run().runtime.ids)
        if self._run is not None and self._run.turn is not None:
            keep_joined(self._run, self._run.turn, made)
        self._lane.upsert(made)
        return made

    def set_messages(self, ui_messages: Sequence[Mapping[str, Any]]) -> None:
        """Replace the history. What is no message is left out."""
        self._lane.replace_all(repair(list(ui_messages)))

    # --- steering --------------------------------------------------------------------------------

    def steer(self, message: Mapping[str, Any], model: Sequence[Any] | None = None) -> None:
        """Offer a message to the turn in progress; one of an id that is offered is ignored.

        For messages the loop took by itself (`chat.messages.on`). The step hook asks
        `pending_messages.should_inject` about them, together with those that wait in the FIFO.

        Args:
            model: its form for the model; by default it is converted.

        Raises TooLarge when limits.INPUT_BUFFER_MAX wait already.
        """
        made = dict(message)
        message_id = id_of(made)
        if message_id and any(id_of(offered.message) == message_id for offered in self._steered):
            return
        if len(self._steered) >= limits.INPUT_BUFFER_MAX:
            raise TooLarge(f"{len(self._steered)} messages wait already, which is the most")
        self._steered.append(Offered(made, model))

    def drain_steering(self) -> list[Message]:
        """What was offered and not taken; it is gone from here, and its answer is the loop's."""
        drained = [offered.message for offered in self._steered]
        self._steered.clear()
        return drained

    def prepare_step(self) -> Any:
        """The step hook of compaction and steering; None when there is neither.

        A capability of the model library: `Agent(…, capabilities=[history.prepare_step()])`.
        """
        run = self._run
        if run is None or (run.compaction is None and run.steering.config is None):
            return None
        from everturn.chat.step_hook import StepHook

        return StepHook()

    async def compact_if_needed(self, usage: Any, **context: Any) -> bool:
        """Compact after an answer that cost `usage`, if the author wants it. True if it was.

        Args:
            **context: what the functions of `compaction` are told instead of what the run knows:
                chat_id, turn, client_data, total_usage.

        Raises ChatContextError outside of a turn of a custom agent, and TypeError for other names.
        """
        unknown = sorted(set(context) - _CONTEXT)
        if unknown:
            raise TypeError(f"compact_if_needed is told nothing called {unknown[0]!r}")
        state = current_turn()
        run = current_run()
        before = run.lane_start
        state.usage = usage
        await compactions.outer(run, state, lambda: self.model_messages, context)
        return run.lane_start is not before

    # --- head start ------------------------------------------------------------------------------

    def apply_handover(self, given: Handover) -> None:
        """Take the first step of an answer; one that is there already is replaced."""
        self._lane.upsert(given.partial)

    async def consume_handover(
        self,
        payload: Mapping[str, Any],
        *,
        idle_timeout: Duration | None = None,
        timeout: Duration | None = None,
    ) -> tuple[bool, bool]:
        """Wait for a head start and take it and its history: `(is_final, skipped)`.

        `(False, True)` when this is no boot of a head start, or nothing came.
        """
        from everturn.chat.custom import wait_for_handover

        given = await wait_for_handover(payload, idle_timeout=idle_timeout, timeout=timeout)
        if given is None:
            return False, True
        self.set_messages(handovers.head_start_messages(payload))
        self.apply_handover(given)
        return given.is_final, False


def _cleaned(message: Message) -> Message:
    if message.get("role") == "assistant":
        return clean_aborted_parts(message)
    return message
