"""`chat.stop_signal()`: stops in a loop the author wrote (chat-agent §4.10).

A managed turn gets its own signal. A hand-written loop asks for one that outlives its turns::

    async with chat.stop_signal() as stop:
        while (message := (await chat.messages.wait("1h")).output) is not None:
            stop.reset()
            await answer(message, stop.signal)
            await chat.write_turn_complete()

A stop belongs to the turn it was sent for (rulings §1.12): from the moment the loop takes a
message until it writes the turn-complete. One that comes in between, while the loop waits for the
next message, is consumed without an effect. One that came while its message still waited in the
queue aborts the signal the moment the message is taken.
"""

from __future__ import annotations

from types import TracebackType

from everturn.chat.state import ChatRun, current_run
from everturn.tasks.signals import Signal


class StopSignal:
    """A signal that is aborted by stops, and can be made fresh. Made by `stop_signal`."""

    def __init__(self, run: ChatRun) -> None:
        self._run = run
        self._signal = Signal()
        run.stop_listeners.append(self._abort)

    @property
    def signal(self) -> Signal:
        """The signal of the turn in progress. Ask again after `reset`."""
        return self._signal

    def reset(self) -> None:
        """A fresh signal for the next turn.

        Where the turn in progress was stopped already, its signal stays aborted: a loop may
        reset before or after it takes a message, and must not lose a stop by that.
        """
        turn = self._run.turn
        if self._signal.aborted and (turn is None or not turn.stop.aborted):
            self._signal = Signal()

    def cleanup(self) -> None:
        """Listen no more; the signal keeps its state."""
        if self._abort in self._run.stop_listeners:
            self._run.stop_listeners.remove(self._abort)

    def _abort(self, reason: str) -> None:
        self._signal.abort(reason)

    async def __aenter__(self) -> StopSignal:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cleanup()


def stop_signal() -> StopSignal:
    """A signal that stops of this chat abort. Raises ChatContextError outside of a run."""
    return StopSignal(current_run())
