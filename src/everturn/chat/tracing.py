"""Spans of a chat run (chat-agent §4.14, *Observability*).

One span per boot, turn, action, hook, streamed answer, compaction, injection, tool call of ours,
stored snapshot and wait, named as the paper names them, all with `gen_ai.conversation.id`. A turn
is the current span while it is worked on: what the model library, an HTTP client or an author
records hangs under it. Usage stands on the turn's span, its own and that of the run so far, in the
names of OpenTelemetry's conventions. What people and models say is recorded by none of them.

Nothing here sets tracing up. Whoever does it (an SDK, Logfire, an agent of some vendor) installs a
tracer provider in the process; as long as nobody has, a span is one look-up and no object, and
OpenTelemetry is not even imported.

The spans of turns in a loop that its author wrote begin and end in different calls. They cannot be
current in between, so they are kept with the turn, and are the parent of what has no other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from everturn.chat.state import ChatRun, TurnState

CONVERSATION: Final = "gen_ai.conversation.id"
_API: Final = "opentelemetry.trace"
_USAGE: Final = ("input_tokens", "output_tokens", "total_tokens")


class Span(Protocol):
    """What code of ours does with a span."""

    def set_attribute(self, key: str, value: Any, /) -> None: ...

    def record_exception(self, exception: BaseException, /) -> None: ...


class _NoSpan:
    def set_attribute(self, key: str, value: Any, /) -> None:
        pass

    def record_exception(self, exception: BaseException, /) -> None:
        pass


_NO_SPAN: Final[Span] = _NoSpan()
#: Entered again and again: it keeps nothing.
_OFF: Final[AbstractContextManager[Span]] = nullcontext(_NO_SPAN)


class _Tracers:
    """The tracer of the provider that is installed, made once per provider."""

    def __init__(self) -> None:
        self._provider: Any = None
        self._tracer: Tracer | None = None

    def current(self) -> Tracer | None:
        """None while nobody has set tracing up."""
        api = sys.modules.get(_API)
        if api is None:
            return None
        provider = api.get_tracer_provider()
        if provider is not self._provider:
            idle = isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider)
            self._tracer = None if idle else provider.get_tracer("everturn")
            self._provider = provider
        return self._tracer


_tracers: Final = _Tracers()


def span(
    run: ChatRun, name: str, attributes: Mapping[str, Any] | None = None
) -> AbstractContextManager[Span]:
    """A span of a run around a block; an exception that leaves the block is recorded on it."""
    tracer = _tracers.current()
    if tracer is None:
        return _OFF
    return tracer.start_as_current_span(
        name, context=_parent(run), attributes={CONVERSATION: run.chat_id, **(attributes or {})}
    )


def waiting(run: ChatRun) -> AbstractContextManager[Span]:
    """The span of a wait for messages, warm and suspended."""
    first = run.turns_started == 0
    return span(run, f"waiting for {'first' if first else 'next'} message")


@contextmanager
def reading(run: ChatRun, name: str, found: Sized) -> Iterator[None]:
    """Say on the current span how long a read took, and how much it found."""
    if _tracers.current() is None:
        yield
        return
    from opentelemetry import trace

    started_ms = run.runtime.clock.now_ms()
    yield
    made = trace.get_current_span()
    made.set_attribute(f"{name}.duration_ms", run.runtime.clock.now_ms() - started_ms)
    made.set_attribute(f"{name}.count", len(found))


def failed(error: BaseException) -> None:
    """What the current span is about has failed, without an exception leaving it."""
    if _tracers.current() is not None:
        from opentelemetry import trace

        current = trace.get_current_span()
        current.record_exception(error)
        current.set_status(trace.StatusCode.ERROR, type(error).__name__)


def _parent(run: ChatRun) -> Any:
    """None for what is current; else the turn of an author's loop, which cannot be."""
    kept = run.turn.span if run.turn is not None else None
    if kept is None:
        return None
    from opentelemetry import trace

    if trace.get_current_span().get_span_context().is_valid:
        return None
    return trace.set_span_in_context(kept)


# --- turns ----------------------------------------------------------------------------------------


@contextmanager
def turn(run: ChatRun, state: TurnState) -> Iterator[None]:
    """The span of a turn or action of the managed loop."""
    tracer = _tracers.current()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(_name(state), attributes=_begun(run, state)) as made:
        try:
            yield
        finally:
            _ended(made, run, state)


def begin_turn(run: ChatRun, state: TurnState) -> None:
    """The same for a turn of an author's loop, until `end_turn`."""
    tracer = _tracers.current()
    if tracer is not None:
        state.span = tracer.start_span(_name(state), attributes=_begun(run, state))


def end_turn(run: ChatRun, state: TurnState) -> None:
    """The turn is over, or given up. Nothing for a turn without a span of its own."""
    made, state.span = state.span, None
    if made is not None:
        _ended(made, run, state)
        made.end()


def _name(state: TurnState) -> str:
    return "chat action" if state.trigger == "action" else f"chat turn {state.turn + 1}"


def _begun(run: ChatRun, state: TurnState) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        CONVERSATION: run.chat_id,
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.name": run.agent.task_id,
        "chat.trigger": state.trigger,
        "everturn.session.id": run.session_id,
        "everturn.run.id": run.runtime.info.run_id,
        "everturn.run.attempt": run.runtime.info.attempt,
    }
    if state.trigger != "action":
        attributes["turn.number"] = state.turn + 1
    return attributes


def _ended(made: Any, run: ChatRun, state: TurnState) -> None:
    made.set_attribute("chat.stopped", state.stopped)
    if state.finish_reason is not None:
        made.set_attribute("gen_ai.response.finish_reasons", [state.finish_reason])
    for prefix, usage in (("", state.usage), ("cumulative_", run.total_usage)):
        for name in _USAGE:
            count = getattr(usage, name, None)
            if count is not None:
                made.set_attribute(f"gen_ai.usage.{prefix}{name}", count)
