"""The helpers authors call inside a run: each finds its run through the context (§4.1, §4.13)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from everturn.chat import messages
from everturn.chat.history import History
from everturn.chat.output import Chunk, Response, Writer
from everturn.chat.state import current_run, current_turn
from everturn.chat.turn import deferred
from everturn.tasks.durations import Duration, parse
from everturn.tasks.signals import Signal


class _Response:
    """`chat.response`: write chunks of the turn in progress, from anywhere in it."""

    def write(self, chunk: Chunk) -> None:
        """Write one chunk; returns at once. Data parts join the turn's response.

        Raises UIMessageStreamError for what is no chunk, ChatChunkTooLargeError for a large one.
        """
        self._writer().write(chunk)

    def data(self, name: str, data: Any, *, id: str | None = None, transient: bool = False) -> None:
        """Write a `data-<name>` chunk."""
        self._writer().data(name, data, id=id, transient=transient)

    def _writer(self) -> Writer:
        return current_run().writer()


class _History:
    """`chat.history`: the history of the run this is called in (§4.7)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current_run().history, name)


response = _Response()
#: Typed as what it forwards to.
history: History = _History()  # type: ignore[assignment]  # forwards by name to the run's own


async def pipe(source: Any, *, signal: Signal | None = None, span_name: str | None = None) -> None:
    """Stream a source now, outside the response; the agent's return value is not streamed then.

    Returns when everything is durable. Raises TypeError for what cannot be streamed.
    """
    await _pipe(source, signal)


async def pipe_and_capture(
    source: Any,
    *,
    signal: Signal | None = None,
    span_name: str | None = None,
    original_messages: Sequence[Chunk] | None = None,
) -> Chunk | None:
    """Stream a source now and return the message it built; None when it streamed nothing.

    With `original_messages` that end in an assistant message, that message is continued.
    """
    last = original_messages[-1] if original_messages else None
    seed = last if last is not None and last.get("role") == "assistant" else None
    made = await _pipe(source, signal, seed)
    return made.message if made.started else None


async def _pipe(source: Any, signal: Signal | None, seed: Chunk | None = None) -> Response:
    run, turn = current_run(), current_turn()
    turn.piped += 1
    message_id = messages.id_of(seed) if seed is not None else ""
    made = Response(
        run.runtime,
        run.out,
        message_id=message_id or messages.new_message_id(run.runtime.ids),
        seed=seed,
    )
    await made.pipe(source, turn.signal if signal is None else Signal.any(turn.signal, signal))
    await run.runtime.flush()
    return made


def set_messages(chain: Sequence[Chunk]) -> None:
    """Replace the history at the next checkpoint (`chat.history.set`)."""
    current_run().history.set(list(chain))


def set_turn_timeout(duration: Duration) -> None:
    """How long later suspended waits of this run last, the preload wait included."""
    current_run().turn_timeout_s = parse(duration)


def set_idle_timeout(duration: Duration) -> None:
    """How long this run stays warm after later turns."""
    current_run().idle_timeout_s = parse(duration)


def is_stopped() -> bool:
    """Whether the turn in progress was stopped; False between turns."""
    turn = current_run().turn
    return turn is not None and turn.stop.aborted


def request_upgrade() -> None:
    """Go on in a run of the newest version: before `run`, at once; later, after this turn."""
    current_run().upgrade_requested = True


def end_run() -> None:
    """End the run after this turn and what is queued; the session stays open."""
    current_run().end_requested = True


def session_id() -> str:
    """The friendly `session_…` id of the session (D-16)."""
    return current_run().session_id


def defer(work: Awaitable[Any] | Callable[[], Any]) -> None:
    """Do `work` beside the turn: it is awaited before the turn completes, for at most 5 s.

    What it raises is logged. Accepts an awaitable or a function.
    """
    run, turn = current_run(), current_turn()

    async def call() -> Any:
        value = work() if callable(work) else work
        return await value if inspect.isawaitable(value) else value

    turn.deferred += 1
    run.tasks.start_soon(deferred, run, turn, call)
