"""Compaction by hand: for loops that an author writes around the model (chat-agent §4.6).

The same rules as between the steps of a turn, called by the author: at most once per turn, never
before the first step, never with an open call. What it decides is seen by `chat.compaction_state`
and by later turns of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from everturn.chat import compaction
from everturn.chat.compaction import Compaction, CompactionState, ShouldCompactEvent
from everturn.chat.state import current_run, current_turn
from everturn.chat.steering import Boundary
from everturn.errors import ConfigurationError


@dataclass(frozen=True)
class Skipped:
    """Nothing to do: send the messages as they are."""


@dataclass(frozen=True)
class Rebuilt:
    """The turn was compacted before: send the summary and what came since."""

    messages: list[Any]


@dataclass(frozen=True)
class Compacted:
    """Compacted now: send these."""

    messages: list[Any]
    summary: str


async def compact(
    messages: Sequence[Any],
    steps: Sequence[Any],
    *,
    summarize: Callable[..., Any],
    threshold: int | None = None,
    should_compact: Callable[..., Any] | None = None,
) -> Skipped | Rebuilt | Compacted:
    """Compact the messages of a model run in progress, if it is time to.

    Args:
        messages: the whole history of the run, this turn's responses and tool results included;
            the same list, grown, at every call of a turn.
        steps: the model's responses of this turn so far, out of `messages`.
        summarize: `(SummarizeEvent) -> str`.
        threshold: compact when the last step took more tokens in all than this.
        should_compact: `(ShouldCompactEvent) -> bool`, in place of `threshold`.

    Raises:
        ConfigurationError: neither or both of `threshold` and `should_compact` are given.
        ChatContextError: outside of a turn.
    """
    config = _config(summarize, threshold, should_compact)
    run, state = current_run(), current_turn()
    from everturn.chat.step_hook import shower

    boundary = Boundary(
        history=messages,
        request=list(messages),
        steps=list(steps),
        run_id=steps[0].run_id or "" if steps else "",
        show=shower(run),
    )
    before = state.compacted
    made = await compaction.at_boundary(run, state, config, boundary)
    if made is None:
        return Skipped()
    if before is not None or state.compacted is None:
        return Rebuilt(made)
    return Compacted(made, state.compacted.summary)


def compaction_step(
    *,
    summarize: Callable[..., Any],
    threshold: int | None = None,
    should_compact: Callable[..., Any] | None = None,
) -> Any:
    """A step hook that compacts this way and does nothing else.

    `turn.stream(agent, step_hook=chat.compaction_step(…))`. It takes the place of the standard
    one, so nothing is taken into a turn that uses it. Raises as `compact`.
    """
    from everturn.chat.step_hook import StepHook

    return StepHook(only=_config(summarize, threshold, should_compact))


def compaction_state() -> CompactionState | None:
    """What was compacted in the turn in progress; None when nothing was.

    Raises ChatContextError outside of a turn.
    """
    done = current_turn().compacted
    return None if done is None else CompactionState(done.summary, done.responses)


def _config(
    summarize: Callable[..., Any],
    threshold: int | None,
    should_compact: Callable[..., Any] | None,
) -> Compaction:
    if (threshold is None) == (should_compact is None):
        raise ConfigurationError("compaction takes either `threshold` or `should_compact`")
    if should_compact is not None:
        return Compaction(should_compact=should_compact, summarize=summarize)

    def exceeded(event: ShouldCompactEvent) -> bool:
        return threshold is not None and (event.total_tokens or 0) > threshold

    return Compaction(should_compact=exceeded, summarize=summarize)
