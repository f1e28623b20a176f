"""The helpers authors call inside a run: each finds its run through the context (§4.1, §4.13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from everturn.chat import tracing, ui_messages
from everturn.chat.background import Work
from everturn.chat.history import History
from everturn.chat.output import Chunk, Response, Writer
from everturn.chat.state import current_run, current_turn, warn_of_late_output
from everturn.chat.stream_options import UIStreamOptions
from everturn.tasks.durations import Duration, parse
from everturn.tasks.signals import Signal

if TYPE_CHECKING:
    from everturn.chat.adapters.pydantic_ai import AgentStream


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
        run = current_run()
        warn_of_late_output(run, run.turn)
        return run.writer()


response = _Response()
history = History(lambda: current_run().lane)


async def pipe(source: Any, *, signal: Signal | None = None, span_name: str | None = None) -> None:
    """Stream a source now, outside the response; the agent's return value is not streamed then.

    Returns when everything is durable. Raises TypeError for what cannot be streamed.
    """
    await _pipe(source, signal, span_name=span_name)


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
    made = await _pipe(source, signal, seed, span_name=span_name)
    return made.message if made.started else None


async def _pipe(
    source: Any,
    signal: Signal | None,
    seed: Chunk | None = None,
    *,
    span_name: str | None = None,
) -> Response:
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
    stop = Signal()
    # Undone afterwards: the author's signal may live as long as the run.
    undo = [given.on_abort(stop.abort) for given in (turn.signal, signal) if given is not None]
    try:
        with tracing.span(run, span_name or "stream response"):
            await made.pipe(source, stop)
            await run.runtime.flush()
    finally:
        for let_go in undo:
            let_go()
    return made


def stream_agent(agent: Any, **options: Any) -> AgentStream:
    """Prepare a run of a pydantic-ai agent, as chunks; reading it starts the run.

    What `turn.stream` does, for places that have no turn at hand: a tool, an action, a loop of
    one's own. The stream is something an agent may return, or `chat.pipe` takes.

    Args:
        agent: a `pydantic_ai.Agent`.
        options: `messages` (UI messages, or those of the library), `max_steps`, `tools`, `stop`
            and whatever else `everturn.chat.adapters.pydantic_ai.stream_agent` takes.
    """
    from everturn.chat.adapters import pydantic_ai

    return pydantic_ai.stream_agent(agent, **options)


def set_messages(chain: Sequence[Chunk]) -> None:
    """Replace the history at the next checkpoint (`chat.history.set`)."""
    history.set(list(chain))


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
