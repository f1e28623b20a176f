"""`chat.Turn`: what an author's function sees of its turn, and does with it (chat-agent §3.2).

A view and nothing more: what a turn is and has come to stands in `state.TurnState`.
"""

from __future__ import annotations

from typing import Any, Generic

from everturn.chat import late_answers
from everturn.chat.hooks import ClientT
from everturn.chat.output import Chunk, Writer
from everturn.chat.state import ChatRun, Message, TurnState, warn_of_late_output
from everturn.chat.ui_messages import UIMessage, as_object, text_of
from everturn.tasks.context import TaskContext
from everturn.tasks.signals import Signal


class Turn(Generic[ClientT]):
    """What an agent function receives: one turn (chat-agent §3.2)."""

    def __init__(self, run: ChatRun, state: TurnState) -> None:
        self._run = run
        self._state = state
        self._prepared: list[Any] | None = None

    @property
    def ui_messages(self) -> list[UIMessage]:
        """The history as clients see it, the new message included."""
        return self._run.lane.messages

    @property
    def asked(self) -> list[Message]:
        """The history in the order a model is asked in: what it is to speak to comes last.

        It differs from `ui_messages` when a tool call is answered after other messages have come:
        for adapters of model libraries, which make their requests of it.
        """
        return late_answers.for_model(self._run, self._state)

    @property
    def messages(self) -> list[Any]:
        """The history for the model library; built on first use."""
        if self._prepared is None:
            self._prepared = model_messages(self._run, self._state)
        return list(self._prepared)

    def prepared(self, messages: list[Any]) -> None:
        """Replace the model lane of this turn (`prepare_messages`)."""
        self._prepared = messages

    @property
    def message(self) -> UIMessage | None:
        """The message this turn answers; None for a regenerate."""
        return as_object(self._state.incoming[-1]) if self._state.incoming else None

    @property
    def text(self) -> str:
        """The text of `message`."""
        return text_of(self.message) if self.message is not None else ""

    @property
    def tools(self) -> Any:
        """The agent's tools, resolved for this turn; an empty list when it declares none."""
        return self._state.tools if self._state.tools is not None else []

    @property
    def chat_id(self) -> str:
        """The chat's id, which is the session's external id."""
        return self._run.chat_id

    @property
    def session_id(self) -> str:
        """The friendly `session_…` id, on every turn (D-16)."""
        return self._run.session_id

    @property
    def trigger(self) -> str:
        """submit-message or regenerate-message."""
        return self._state.trigger

    @property
    def message_id(self) -> str | None:
        """The message id the client named: what a regenerate is about."""
        value = self._state.item.payload.get("messageId")
        return value if isinstance(value, str) else None

    @property
    def client_data(self) -> ClientT:
        """The metadata of the message: the agent's model if it declares one, else a dict or None."""
        data: ClientT = self._state.client_data
        return data

    @property
    def continuation(self) -> bool:
        """Whether another run served this session before; the same in every turn of a run."""
        return self._run.continuation

    @property
    def previous_run_id(self) -> str | None:
        """The run before this one; None when there is none."""
        return self._run.previous_run_id

    @property
    def preloaded(self) -> bool:
        """Whether the run was started before its first message."""
        return self._run.preloaded

    @property
    def signal(self) -> Signal:
        """Aborted when the turn is stopped or the run is cancelled."""
        return self._state.signal

    @property
    def stop_signal(self) -> Signal:
        """Aborted when a client stops this turn."""
        return self._state.stop

    @property
    def cancel_signal(self) -> Signal:
        """Aborted when the run is cancelled."""
        return self._run.runtime.cancelled

    @property
    def deferred_tool_results(self) -> Any:
        """Decided approvals, as the model library takes them; None when there are none.

        `turn.stream` passes them on by itself.
        """
        from everturn.chat import conversion

        return conversion.deferred_results(self.asked)

    @property
    def previous_turn_usage(self) -> Any:
        """What the turn before this one cost; None for the first, and where nobody counted."""
        return self._run.previous_turn_usage

    @property
    def total_usage(self) -> Any:
        """Of the turns before this one."""
        return self._run.total_usage

    @property
    def ctx(self) -> TaskContext:
        """What the run knows of itself: ids, attempt, tags, queue, machine."""
        return self._run.ctx

    @property
    def turn(self) -> int:
        """Its index in this run, from 0."""
        return self._state.turn

    def write(self, chunk: Chunk) -> None:
        """`chat.response.write`."""
        warn_of_late_output(self._run, self._state)
        Writer(self._run.out, self._state.kept).write(chunk)

    def stream(self, agent: Any, **overrides: Any) -> Any:
        """Run a pydantic-ai agent on this turn's history; return its stream."""
        from everturn.chat.adapters import pydantic_ai

        return pydantic_ai.stream_agent(agent, turn=self, **overrides)


def model_messages(run: ChatRun, state: TurnState | None) -> list[Any]:
    """The UI lane as messages of the model library, which is imported here first (rulings §5.1)."""
    from everturn.chat import conversion

    tools = state.tools if state is not None else None
    ui_messages = late_answers.for_model(run, state)
    if run.lane_start is not None and not run.lane_start.holds(ui_messages):
        run.lane_start = None
    start = run.lane_start
    return [
        *(start.model if start is not None else ()),
        *run.background.lane(
            ui_messages[len(start.covered) :] if start is not None else ui_messages,
            lambda part, newest: conversion.to_model_messages(part, tools, newest=newest),
        ),
    ]
