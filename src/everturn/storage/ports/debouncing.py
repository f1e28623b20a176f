"""Debounced triggers: many calls within a while become one run, started when they pause.

The first call makes a delayed run under a key of its task. A further call finds that run while it
is still delayed, and moves it: later, never earlier (tasks-and-runs §4.6). Every engine decides by
`pushed`, inside the transaction that would otherwise make a new run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everturn.rules.run_states import RunState
from everturn.storage.ports.texts import Texts

if TYPE_CHECKING:
    from everturn.storage.ports.rows import NewRun, Run


class Debounce(Texts, frozen=True, kw_only=True):
    """How a trigger is debounced."""

    #: Names the run within its environment and task.
    key: str
    delay_ms: int
    #: Whether a further call replaces the payload and options of the first one.
    trailing: bool = False
    #: The run starts at most this long after it was made; None: no such bound.
    delay_ms_max: int | None = None


def pushed(run: Run, new: NewRun, *, now_ms: int) -> dict[str, Any] | None:
    """What a further call changes of the run its key names, by field of `Run`.

    None when the call begins a new round: the run has started or ended, it is due, or it cannot
    be moved that far.
    """
    debounce = new.debounce
    assert debounce is not None
    if run.state is not RunState.QUEUED or run.attempt > 0:
        return None
    if run.not_before_ms is None or run.not_before_ms <= now_ms:
        return None
    # Whole seconds, so that calls of one second write the same time.
    due_ms = max(run.not_before_ms, (now_ms + debounce.delay_ms) // 1000 * 1000)
    latest_ms = debounce.delay_ms_max
    if latest_ms is not None and due_ms > run.created_at_ms + latest_ms:
        return None
    changes: dict[str, Any] = {
        "not_before_ms": due_ms,
        "expire_at_ms": expiry_ms(run.ttl_ms, due_ms),
    }
    if debounce.trailing:
        changes |= {"payload": new.payload, "payload_type": new.payload_type}
        replaced = ("metadata", "tags", "max_attempts", "max_duration_s", "machine")
        changes |= {name: value for name in replaced if (value := getattr(new, name))}
    return changes


def expiry_ms(ttl_ms: int | None, from_ms: int) -> int | None:
    """When a run expires that may be started from `from_ms` on; None for one that never does."""
    return None if ttl_ms is None else from_ms + ttl_ms
