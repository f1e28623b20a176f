"""Steering: messages that arrive during a turn join it (chat-agent §4.5; rulings §1.14).

There is one FIFO, and steering is a view of it, never a second queue. Before every request to the
model, the first included, the messages of users that wait are offered to the author as one batch.
Refused, they stay where they are and become turns of their own. Taken, they leave the FIFO and
belong to the turn in progress: its turn-complete decides them, and not before, so that a crash
leaves them open, at the head of the FIFO again. Everything else in the FIFO is never offered.

A loop that its author wrote may take messages from the FIFO by himself and offer them by hand
(`MessageAccumulator.steer`). They belong to the turn already; they join the batch, at its end,
and what was refused of them is his again.

What was taken is in two places. The model run's history holds its model form from that request
on. The answer holds a marker, `data-pending-message-injected`, at the place where it happened,
with the messages whole: from it later turns, and later runs, hear of them again (`conversion`).
What no marker holds, because the author gave it no model form or his stream was not captured,
joins history as plain messages before the answer, which is what a replay of the log makes of it.

A message that joins skips the turn it would have had, but none of what guards it: its client data
and `on_validate_messages` are asked first, and a message that fails either is left to fail
visibly, in its own turn.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from everturn.chat import hooks, tracing
from everturn.chat.failures import ends_attempt, logged
from everturn.chat.hooks import call_declared
from everturn.chat.injected import marked_ids
from everturn.chat.parts import Message
from everturn.chat.ui_messages import (
    UIMessage,
    as_object,
    as_objects,
    id_of,
    index_of,
    repair,
    text_of,
)
from everturn.errors import ConfigurationError
from everturn.protocol.chunks import INJECTED_CHUNK
from everturn.protocol.records import Input
from everturn.rules import limits
from everturn.rules.boot import message_of

if TYPE_CHECKING:
    from everturn.chat.state import ChatRun, TurnState

log = logging.getLogger("everturn.chat")
#: Of a record around a marker: its envelope and part id.
_AROUND_BYTES: Final = 1024


@dataclass(frozen=True, kw_only=True)
class PendingBatch:
    """All messages that wait at a step boundary.

    Attributes:
        messages: UI messages in order of arrival; all are taken, or none.
        model_messages: the conversation as the next request would send it, without them.
        steps: the model's responses of this run so far; empty before the first request.
        step_number: of the last completed step, from 0; -1 before the first.
    """

    messages: list[UIMessage]
    model_messages: list[Any]
    steps: list[Any]
    step_number: int
    chat_id: str
    turn: int
    client_data: Any


@dataclass(frozen=True, kw_only=True)
class PendingReceived:
    """A message arrived during a turn."""

    message: UIMessage
    chat_id: str
    turn: int


@dataclass(frozen=True, kw_only=True)
class PendingInjected:
    """Messages became part of the turn in progress."""

    messages: list[UIMessage]
    injected_model_messages: list[Any]
    chat_id: str
    turn: int
    step_number: int


@dataclass(frozen=True, kw_only=True)
class PendingMessages:
    """What an agent does with messages that arrive during a turn. Functions may be sync or async.

    Attributes:
        should_inject: `(PendingBatch) -> bool`, asked at every step boundary with a message
            waiting. Without it nothing is ever taken in.
        prepare: `(PendingBatch) -> list` of the messages for the model; the last one is a
            request. By default each message is converted on its own. An empty list takes the
            messages without telling the model.
        on_received: `(PendingReceived)`, for each message that arrives, whatever becomes of it.
        on_injected: `(PendingInjected)`, after a batch was taken.
        unconsumed: what becomes of messages that came during a turn and were not taken:
            `next_turn` answers each in its own turn, in order. `drop` forgets them, for clients
            that send again by themselves: nobody answers them.

    What `on_received` and `on_injected` raise is logged.
    """

    should_inject: Callable[..., Any] | None = None
    prepare: Callable[..., Any] | None = None
    on_received: Callable[..., Any] | None = None
    on_injected: Callable[..., Any] | None = None
    unconsumed: Literal["next_turn", "drop"] = "next_turn"

    def __post_init__(self) -> None:
        if self.unconsumed not in ("next_turn", "drop"):
            raise ConfigurationError(f"unconsumed is next_turn or drop, not {self.unconsumed!r}")


class Offered(NamedTuple):
    """A message its author offers by hand; with `model`, in a model form of his own."""

    message: Message
    model: Sequence[Any] | None = None


class Boundary(msgspec.Struct, kw_only=True):
    """A place between two steps of a model run, or before the first."""

    #: The run's whole history, the request being prepared included.
    history: Sequence[Any]
    #: What that request would send.
    request: list[Any]
    #: The model's responses so far.
    steps: list[Any]
    #: Of the model run.
    run_id: str
    #: Shows chunks to the client, between the steps.
    show: Callable[..., None]

    @property
    def step_number(self) -> int:
        return len(self.steps) - 1


class Steering:
    """The view of one run. Made for every run; without a configuration it sees nothing."""

    def __init__(self, config: PendingMessages | None) -> None:
        self.config = config
        #: Numbers of the messages that arrived during the turn in progress.
        self._arrived: dict[int, None] = {}
        #: What is offered by hand; shared with, and bounded by, the accumulator that fills it.
        self.offered: list[Offered] = []

    def begin(self) -> None:
        """A turn begins: what arrives from here on arrived during it."""
        self._arrived.clear()

    def watch(self, run: ChatRun) -> None:
        """Look at what arrives from here on."""
        if self.config is None:
            return

        def arrived() -> None:
            item = run.intake.newest()
            if item is not None and run.turn is not None and is_steerable(item):
                self._received(run, run.turn, item)

        run.intake.watch(arrived)

    def _received(self, run: ChatRun, state: TurnState, item: Input) -> None:
        self._arrived[item.seq_num] = None
        if self.config is not None and self.config.on_received is not None:
            event = PendingReceived(
                message=as_object(dict(message_of(item) or {})),
                chat_id=run.chat_id,
                turn=state.turn,
            )
            # Beside the turn, because it may wait: the record is in the FIFO either way.
            run.tasks.start_soon(_told, self.config.on_received, event)

    async def at_boundary(self, run: ChatRun, state: TurnState, boundary: Boundary) -> list[Any]:
        """Offer what waits; the messages to add to the model run's history, if it was taken."""
        config = self.config
        if config is None or config.should_inject is None or not run.intake.takes_more:
            return []
        batch = _Batch.of(run, state, self.offered)
        if not batch.messages:
            return []
        event = _event(run, state, boundary, batch.messages)
        if not await call_declared(config.should_inject, event):
            return []
        if not await _is_welcome(run, state, batch):
            return []
        event = replace(event, messages=as_objects(batch.messages))
        with tracing.span(
            run, "pending message injected", {"chat.messages.count": len(batch.messages)}
        ):
            made = await _model_form(config, event, batch.models)
        marker = _marker(run, batch.messages)
        if not _fits(marker) or state.signal.aborted:
            return []  # a stopped turn takes nothing more: they get their own
        if run.turn is not state or not run.intake.takes_more or not batch.waits(run, self.offered):
            return []  # while the author decided, the answer became whole, or another run took them
        for item in batch.items:
            run.intake.join(item)
        del self.offered[: batch.by_hand]
        state.joined.extend(batch.messages)
        if made:
            boundary.show(marker)
        if config.on_injected is not None:
            injected = PendingInjected(
                messages=as_objects(batch.messages),
                injected_model_messages=list(made),
                chat_id=run.chat_id,
                turn=state.turn,
                step_number=boundary.step_number,
            )
            await _told(config.on_injected, injected)
        return made

    def drop_unconsumed(self, run: ChatRun) -> None:
        """The turn is about to commit; with `drop`, nobody answers what came too late for it."""
        if self.config is None or self.config.unconsumed != "drop":
            return
        for item in run.intake.waiting():
            if item.seq_num in self._arrived and is_steerable(item):
                run.intake.join(item)
                if run.turn is not None:
                    # A replay of the log would take it for a message that was answered.
                    run.turn.history_changed = True


def is_steerable(item: Input) -> bool:
    """Whether a record is a user's message: what steering and message policies are about.

    Answers to tool calls are submitted too, by an assistant message: they continue an answer and
    are never taken for something new that a user says.
    """
    message = message_of(item)
    return (
        item.trigger == "submit-message" and message is not None and message.get("role") == "user"
    )


# --- a batch ------------------------------------------------------------------------------------


class _Batch:
    """The records that wait and what is offered by hand, and their messages, each id once.

    Attributes:
        by_hand: how many of those offered by hand were looked at.
        models: by message id, the model form that the author gave.
    """

    def __init__(self, items: list[Input], found: list[Message]) -> None:
        self.items = items
        self.messages = found
        self.by_hand = 0
        self._offered: tuple[Offered, ...] = ()
        self.models: dict[str, Sequence[Any]] = {}

    @classmethod
    def of(cls, run: ChatRun, state: TurnState, offered: Sequence[Offered] = ()) -> _Batch:
        batch = cls([], [])
        known = {id_of(message) for message in state.joined}
        for item in run.intake.waiting():
            # A stop that names a waiting message means that message's own turn.
            if not is_steerable(item) or run.intake.has_stop(item.seq_num):
                continue
            if run.policy.refuses(item):
                continue
            if batch._take(message_of(item), known):
                batch.items.append(item)
        batch._offered = tuple(offered)
        for message, model in offered:
            batch.by_hand += 1
            if batch._take(message, known) and model is not None:
                batch.models[id_of(message)] = model
        if not batch.messages:
            batch.items.clear()
        return batch

    def waits(self, run: ChatRun, offered: Sequence[Offered]) -> bool:
        """Whether all of it is where it was found: two model runs of a turn may ask at once."""
        waiting = {item.seq_num for item in run.intake.waiting()}
        return waiting.issuperset(item.seq_num for item in self.items) and self._offered == tuple(
            offered[: self.by_hand]
        )

    def _take(self, message: Any, known: set[str]) -> bool:
        """Whether it is a message at all; one that is known already is no second message."""
        repaired = repair([message])
        if repaired:
            message_id = id_of(repaired[0])
            if not message_id or message_id not in known:
                known.add(message_id)
                self.messages.append(repaired[0])
        return bool(repaired)


def _event(
    run: ChatRun, state: TurnState, boundary: Boundary, found: Iterable[Message]
) -> PendingBatch:
    return PendingBatch(
        messages=as_objects(found),
        model_messages=list(boundary.request),
        steps=list(boundary.steps),
        step_number=boundary.step_number,
        chat_id=run.chat_id,
        turn=state.turn,
        client_data=state.client_data,
    )


async def _is_welcome(run: ChatRun, state: TurnState, batch: _Batch) -> bool:
    """Whether the batch passes what guards a turn. `on_validate_messages` may change it."""
    try:
        for item in batch.items:
            run.agent.client_data(item.payload.get("metadata"))
        if run.agent.hooks.has("on_validate_messages"):
            event = hooks.ValidateMessagesEvent(
                chat_id=run.chat_id,
                messages=as_objects(batch.messages),
                turn=state.turn,
                trigger="submit-message",
            )
            sent = copy.deepcopy(batch.messages)
            found = await run.hook("on_validate_messages", event)
            batch.messages = hooks.message_list(found, "on_validate_messages")
            # A replay of the log would find the messages as they were sent.
            state.history_changed |= batch.messages != sent
    except Exception as error:  # author code: these messages fail in turns of their own
        if ends_attempt(error):
            raise
        log.info("steering.refused: %s", type(error).__name__)
        return False
    return True


async def _model_form(
    config: PendingMessages, event: PendingBatch, given: Mapping[str, Sequence[Any]]
) -> list[Any]:
    if config.prepare is not None:
        made = list(await call_declared(config.prepare, event) or ())
        if made and getattr(made[-1], "kind", None) != "request":
            raise TypeError("what PendingMessages.prepare returns must end with a ModelRequest")
        return made
    from everturn.chat import conversion

    forms = (
        given.get(id_of(message)) or conversion.to_model_messages([message])
        for message in event.messages
    )
    return [made for form in forms for made in form]


async def _told(function: Callable[..., Any], event: Any) -> None:
    await logged(lambda: call_declared(function, event), getattr(function, "__name__", "steering"))


# --- the marker ---------------------------------------------------------------------------------


def _marker(run: ChatRun, found: list[Message]) -> dict[str, Any]:
    """The chunk that stands for messages taken into an answer (X-03)."""
    return {
        "type": INJECTED_CHUNK,
        "id": run.runtime.ids.part(16),
        "data": {
            "messageIds": [id_of(message) for message in found],
            "messages": [{"id": id_of(message), "text": text_of(message)} for message in found],
            "uiMessages": found,
        },
    }


def _fits(marker: dict[str, Any]) -> bool:
    """Whether the marker can be a record: a batch of very large messages cannot."""
    size = len(msgspec.json.encode(marker)) + _AROUND_BYTES
    if size > limits.CHUNK_BYTES_MAX:
        log.warning("steering.refused: the batch is %d bytes", size)
        return False
    return True


def keep_joined(run: ChatRun, state: TurnState, response: Message | None) -> None:
    """Messages that joined the turn and that no marker holds become plain ones (P-8).

    Called just before `response` joins the lane; they come before it.
    """
    if not state.joined:
        return
    kept = set(marked_ids(response)) if response is not None else set()
    for message in run.lane.messages:
        kept.add(id_of(message))
        kept |= marked_ids(message)
    fresh = [message for message in state.joined if id_of(message) not in kept]
    lane: list[Message] = list(run.lane.messages)
    place = index_of(lane, id_of(response)) if response is not None else None
    end = len(lane) if place is None else place
    if fresh:
        run.lane.replace_all([*lane[:end], *fresh, *lane[end:]])
        state.new_ui_messages.extend(fresh)
