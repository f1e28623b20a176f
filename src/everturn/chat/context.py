"""The helpers authors call inside a run: each finds its run through the context (§4.1, §4.13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everturn.chat import ui_messages
from everturn.chat.background import Work
from everturn.chat.history import History
from everturn.chat.output import Chunk, Response, Writer
from everturn.chat.state import current_run, current_turn
from everturn.chat.stream_options import UIStreamOptions
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
    options = run.take_stream_options(turn)
    message_id = ui_messages.id_of(seed) if seed is not None else ""
    made = Response(
        run.runtime,
        run.out,
        message_id=message_id or options.new_message_id(run.runtime.ids),
        seed=seed,
        options=options,
    )
    await made.pipe(source, turn.signal if signal is None else Signal.any(turn.signal, signal))
    await run.runtime.flush()
    return made


def set_messages(chain: Sequence[Chunk]) -> None:
    """Replace the history at the next checkpoint (`chat.history.set`)."""
    current_run().history.set(list(chain))


def set_stream_options(**options: Any) -> None:
    """Change what is shown of the turn's next stream; names and values of `UIStreamOptions`.

    They win over the agent's options key by key, several calls add up, and the stream that uses
    them uses them up. Called before the first turn they are for that one; a turn that streams
    nothing drops them.

    Raises TypeError for a name that is no option.
    """
    run = current_run()
    changes = run.turn.stream_options if run.turn is not None else run.early_stream_options
    UIStreamOptions().over(options)
    changes.update(options)


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


def defer(work: Work) -> None:
    """Do `work` beside the turn, starting now: something to await, or a function.

    What is deferred during a turn is waited for before the turn completes, for at most 5 s; before
    the first turn, with the first one. In `on_turn_complete` and between turns nobody waits: a run
    that suspends or ends may leave it unfinished. What it raises is logged. So whatever the next
    page load must find is awaited in a hook, not deferred.

    Raises TooLarge when limits.DEFERRED_MAX pieces are running.
    """
    run = current_run()
    turn = run.turn
    if turn is None:
        joins = run.background.early if run.turns_started == 0 else None
    else:
        joins = None if turn.completed else turn.deferred
    run.background.defer(work, joins)


def inject(*messages: Any) -> None:
    """Tell the model something before its next request, without anybody else seeing it.

    The messages go after the history when the next turn starts, or in front of the next step of
    the turn in progress. They are in no UI message and not in the snapshot: later turns of this
    run hear of them too, the next run does not.

    Args:
        messages: text (as said by the user), `{"role": "system", "content": "…"}`, UI messages,
            or messages of the model library.

    Raises:
        TypeError, ValueError: what is no message, or a last one of the assistant's.
        TooLarge: more than limits.INJECTED_MAX wait.
    """
    current_run().background.inject(messages)
