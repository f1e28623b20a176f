"""The transition table of a run.

Only states, events and the table may live here. Legal transitions are data; an illegal event
raises. The diagram in ARCHITECTURE.md is drawn from this table.

Public statuses (wire-protocol §9.4) are another thing: `PUBLIC_STATUS` maps to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from everturn.errors import IllegalTransition


class RunState(StrEnum):
    QUEUED = "QUEUED"  # waits for a slot and a worker
    CLAIMED = "CLAIMED"  # handed to a worker; slot held; not confirmed yet
    RUNNING = "RUNNING"  # a worker runs it; slot held
    SUSPENDED = "SUSPENDED"  # parked or evicted; no slot; something is waited for
    RESUMING = "RESUMING"  # its wait is over; waits for a slot to go on where it is parked
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    CRASHED = "CRASHED"
    SYSTEM_FAILURE = "SYSTEM_FAILURE"
    EXPIRED = "EXPIRED"
    TIMED_OUT = "TIMED_OUT"


class RunEvent(StrEnum):
    CLAIM = "claim"
    START = "start"
    SUSPEND = "suspend"
    WAKE = "wake"
    RESUME = "resume"
    RETRY = "retry"  # the author's code failed and another attempt is due
    INTERRUPT = "interrupt"  # its process died, drained or lost its lease
    COMPLETE = "complete"
    FAIL = "fail"
    CRASH = "crash"
    BREAK = "break"  # the platform could not run it
    CANCEL = "cancel"
    EXPIRE = "expire"
    TIME_OUT = "time_out"


_S, _E = RunState, RunEvent

FINAL: Final = frozenset(
    {_S.COMPLETED, _S.FAILED, _S.CANCELED, _S.CRASHED, _S.SYSTEM_FAILURE, _S.EXPIRED, _S.TIMED_OUT}
)
#: States that hold a slot of their queue.
SLOTTED: Final = frozenset({_S.CLAIMED, _S.RUNNING})
#: States in which a worker process has the run in its hands.
RESIDENT: Final = frozenset({_S.CLAIMED, _S.RUNNING, _S.SUSPENDED, _S.RESUMING})

#: Ends that free an idempotency key: the work was not done (tasks-and-runs §9).
KEY_FREEING: Final = frozenset({_S.FAILED, _S.CRASHED, _S.SYSTEM_FAILURE, _S.EXPIRED, _S.TIMED_OUT})

TRANSITIONS: Final[Mapping[tuple[RunState, RunEvent], RunState]] = {
    (_S.QUEUED, _E.CLAIM): _S.CLAIMED,
    (_S.QUEUED, _E.EXPIRE): _S.EXPIRED,
    (_S.QUEUED, _E.CANCEL): _S.CANCELED,
    (_S.QUEUED, _E.COMPLETE): _S.COMPLETED,  # superseded before anybody ran it
    (_S.QUEUED, _E.BREAK): _S.SYSTEM_FAILURE,
    (_S.CLAIMED, _E.START): _S.RUNNING,
    (_S.CLAIMED, _E.INTERRUPT): _S.QUEUED,  # never confirmed, or its worker is gone
    (_S.CLAIMED, _E.COMPLETE): _S.COMPLETED,
    (_S.CLAIMED, _E.FAIL): _S.FAILED,
    (_S.CLAIMED, _E.CRASH): _S.CRASHED,
    (_S.CLAIMED, _E.BREAK): _S.SYSTEM_FAILURE,
    (_S.CLAIMED, _E.CANCEL): _S.CANCELED,
    (_S.CLAIMED, _E.RETRY): _S.QUEUED,
    (_S.CLAIMED, _E.TIME_OUT): _S.TIMED_OUT,
    (_S.RUNNING, _E.SUSPEND): _S.SUSPENDED,
    (_S.RUNNING, _E.RETRY): _S.QUEUED,
    (_S.RUNNING, _E.INTERRUPT): _S.QUEUED,
    (_S.RUNNING, _E.COMPLETE): _S.COMPLETED,
    (_S.RUNNING, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.CRASH): _S.CRASHED,
    (_S.RUNNING, _E.BREAK): _S.SYSTEM_FAILURE,
    (_S.RUNNING, _E.CANCEL): _S.CANCELED,
    (_S.RUNNING, _E.TIME_OUT): _S.TIMED_OUT,
    (_S.SUSPENDED, _E.WAKE): _S.RESUMING,
    (_S.SUSPENDED, _E.INTERRUPT): _S.QUEUED,  # its process is gone; the journal starts it again
    (_S.SUSPENDED, _E.COMPLETE): _S.COMPLETED,  # a session's run evicted or timed out
    (_S.SUSPENDED, _E.CANCEL): _S.CANCELED,
    # Its worker never heard that it was suspended, and reports how the attempt ended instead.
    (_S.SUSPENDED, _E.FAIL): _S.FAILED,
    (_S.SUSPENDED, _E.CRASH): _S.CRASHED,
    (_S.SUSPENDED, _E.RETRY): _S.QUEUED,
    (_S.RESUMING, _E.RESUME): _S.RUNNING,
    (_S.RESUMING, _E.INTERRUPT): _S.QUEUED,
    (_S.RESUMING, _E.COMPLETE): _S.COMPLETED,
    (_S.RESUMING, _E.CANCEL): _S.CANCELED,
    (_S.RESUMING, _E.FAIL): _S.FAILED,
    (_S.RESUMING, _E.CRASH): _S.CRASHED,
    (_S.RESUMING, _E.RETRY): _S.QUEUED,
}


def next_state(state: RunState, event: RunEvent) -> RunState:
    """The state after `event`. Raises IllegalTransition for a pair the table does not hold."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a {state} run cannot take {event.value!r}") from None


def sources(event: RunEvent) -> frozenset[RunState]:
    """The states from which `event` is legal: what a guarded UPDATE names in its WHERE."""
    return frozenset(state for (state, e) in TRANSITIONS if e is event)


PUBLIC_STATUS: Final[Mapping[RunState, str]] = {
    _S.QUEUED: "QUEUED",
    _S.CLAIMED: "DEQUEUED",
    _S.RUNNING: "EXECUTING",
    _S.SUSPENDED: "WAITING",
    _S.RESUMING: "WAITING",
    _S.COMPLETED: "COMPLETED",
    _S.FAILED: "FAILED",
    _S.CANCELED: "CANCELED",
    _S.CRASHED: "CRASHED",
    _S.SYSTEM_FAILURE: "SYSTEM_FAILURE",
    _S.EXPIRED: "EXPIRED",
    _S.TIMED_OUT: "TIMED_OUT",
}


def public_status(state: RunState, *, delayed: bool = False, version_known: bool = True) -> str:
    """The status clients see. A queued run may be DELAYED or wait for a version."""
    if state is RunState.QUEUED and delayed:
        return "DELAYED"
    if state is RunState.QUEUED and not version_known:
        return "PENDING_VERSION"
    return PUBLIC_STATUS[state]
