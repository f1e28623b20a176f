"""Who watches a run hears when it changes: the state port, with a hint after each change of a run.

Runs change in many places (claims, links, sweeps, routes), and a watcher must not depend on all of
them remembering it. So the hint is given where all changes pass: the store itself is wrapped, and
every verb that answers a changed run is followed by hints on two topics:

    run/<run id>            somebody follows this run
    runs/<environment id>   somebody follows runs by tag or batch

Hints may be lost, as everywhere; watchers poll as well. The change is durable before the hint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from everturn.storage.ports.rows import OpenedSession, Run

if TYPE_CHECKING:
    from everturn.storage.ports.state import StateStore
    from everturn.storage.ports.wakeups import Wakeups

#: Verbs that change a run and answer it, alone or among others.
_VERBS: Final = frozenset(
    {
        "open_session",
        "continue_session",
        "create_run",
        "reschedule_run",
        "claim_runs",
        "suspend_run",
        "wake_run",
        "requeue_run",
        "finish_run",
        "set_metadata",
        "add_tags",
        "note_stream",
    }
)
#: Verbs that change a run and answer something else; the run's id is their first argument.
_BY_ID: Final = frozenset({"start_run"})


def run_topic(run_id: str) -> str:
    """Where changes of one run are hinted."""
    return f"run/{run_id}"


def runs_topic(environment_id: str) -> str:
    """Where changes of any run of an environment are hinted."""
    return f"runs/{environment_id}"


def observed(state: StateStore, wakeups: Wakeups) -> StateStore:
    """The same store; whoever watches a run hears of its changes."""
    return cast("StateStore", _Observed(state, wakeups))


class _Observed:
    """Hands every verb on; those that change runs are followed by hints."""

    def __init__(self, state: StateStore, wakeups: Wakeups) -> None:
        self._state = state
        self._wakeups = wakeups

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._state, name)
        if name in _VERBS:
            return self._telling(verb)
        if name in _BY_ID:
            return self._telling_by_id(verb)
        return verb

    def _telling(self, verb: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def told(*args: Any, **options: Any) -> Any:
            result = await verb(*args, **options)
            for run in _runs_of(result):
                self._wakeups.notify(run_topic(run.id))
                self._wakeups.notify(runs_topic(run.environment_id))
            return result

        return told

    def _telling_by_id(self, verb: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def told(run_id: str, *args: Any, **options: Any) -> Any:
            result = await verb(run_id, *args, **options)
            self._wakeups.notify(run_topic(run_id))
            return result

        return told


def _runs_of(result: Any) -> Iterator[Run]:
    if isinstance(result, Run):
        yield result
    elif isinstance(result, OpenedSession):
        yield result.run
    elif isinstance(result, Sequence):
        yield from (item for item in result if isinstance(item, Run))
