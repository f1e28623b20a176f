"""What becomes of a run whose process is gone, and of a session whose run has ended.

Pure decisions; `server/services/recovery.py` and `finishing.py` gather the facts and carry them
out. The facts are read *after* the fence was raised and *after* the state was set, so nothing
can change under the decision (rulings §1.1, §1.2).

A process that is gone (rulings §1.8)

* An agent's run with nothing open is finalised COMPLETED. It is not queued again, or a lost
  worker with a thousand warm chats would boot a thousand runs that have nothing to do.
* With something open it is queued again at once. A death counts, and so does an attempt that
  gave up because it could not read what it needs; a turn-complete written under the dead
  attempt's fence is progress and starts the count anew. Drains, fences and upgrades do not
  count. The third death in a row without progress ends the run CRASHED, visibly.
* A run that was parked did not die of its own work. A session's is finalised, and open input
  starts its successor; another goes on with its journal and no death is counted.
* A run that was superseded ends COMPLETED: the session goes on without it (rulings §1.11).

A run that has ended (rulings §1.9, §1.10)

* If it ended badly with a turn begun and not committed, that turn is closed with an error.
* If it failed before its first turn, the oldest open message is failed and no successor starts:
  a failing import would otherwise circle for ever.
* Otherwise open input starts the successor.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from everturn.rules import limits
from everturn.rules.run_states import RunState

_S = RunState

#: Endings after which the first open message counts as the one that was being answered.
_BROKEN = frozenset({_S.FAILED, _S.CRASHED, _S.SYSTEM_FAILURE, _S.TIMED_OUT, _S.EXPIRED})


class LostRun(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a run whose holder is gone."""

    state: RunState
    #: It is a turn loop on a session: chat agents and custom agents, not raw tasks.
    is_agent: bool
    on_session: bool = False
    #: It is still its session's current run. True for runs without a session.
    is_current: bool = True
    #: Submit, regenerate or action records wait that no turn-complete has committed, or its
    #: boot payload asks for a turn of its own (a head start).
    open_input: bool = False
    #: Data lies on `.out` after the newest turn-complete.
    open_data: bool = False
    #: The newest turn-complete was written under this attempt's fence.
    progress: bool = False
    #: Deaths in a row so far.
    interruptions: int = 0
    #: False for a drain or a claim nobody confirmed; true too for an attempt that gave up.
    died: bool = True


class Finalise(msgspec.Struct, frozen=True):
    """End it COMPLETED; open input, if any, starts a successor."""


class Requeue(msgspec.Struct, frozen=True):
    """Queue it again as INTERRUPT, with this many deaths on its account."""

    interruptions: int


class FailVisibly(msgspec.Struct, frozen=True):
    """It died too often: end it CRASHED and tell whoever waits."""

    deaths: int


def decide_lost(run: LostRun) -> Finalise | Requeue | FailVisibly:
    """What becomes of a run whose process is gone."""
    if run.on_session and not run.is_current:
        return Finalise()
    parked = run.state in (_S.SUSPENDED, _S.RESUMING)
    if run.is_agent:
        if parked and not run.open_data:
            return Finalise()
        if run.state is not _S.CLAIMED and not (run.open_input or run.open_data):
            return Finalise()
    so_far = 0 if run.progress else run.interruptions
    if parked or not run.died:
        return Requeue(so_far)
    if so_far + 1 >= limits.INTERRUPTIONS_MAX:
        return FailVisibly(so_far + 1)
    return Requeue(so_far + 1)


class EndedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a session's current run that has become final."""

    state: RunState
    is_agent: bool
    #: Something was begun: its code was running (not parked, not queued) when it ended.
    was_working: bool
    #: It wrote at least one record, or says that it started a turn.
    began_a_turn: bool
    open_data: bool
    #: A first open message exists; a further one exists behind it.
    open_first: bool
    open_more: bool
    #: An earlier pass of this very decision has failed a message already.
    failed_already: bool = False


class Ending(msgspec.Struct, frozen=True):
    """What to do, in this order."""

    fail_first: bool
    start_successor: bool


def decide_ended(run: EndedRun) -> Ending:
    """What a session needs after its current run became final. Safe to ask again."""
    if not run.is_agent:
        # Raw tasks answer nobody: only the next append starts another (rulings §1.16).
        return Ending(fail_first=False, start_successor=False)
    ended_badly = run.state in _BROKEN
    fail = _must_fail(run, ended_badly)
    left = run.open_more if fail else run.open_first
    if ended_badly and not run.began_a_turn and run.state is not _S.CRASHED:
        # Whatever stopped it stops its successor too; the next append tries anew.
        return Ending(fail_first=fail, start_successor=False)
    return Ending(fail_first=fail, start_successor=left)


def _must_fail(run: EndedRun, ended_badly: bool) -> bool:
    if run.failed_already or run.state is _S.COMPLETED:
        return False
    if run.open_data:
        return True
    if not run.open_first:
        return False
    return ended_badly or (run.state is _S.CANCELED and run.was_working)


RequeueReason = Literal["worker_gone", "unstarted", "orphaned", "drained", "gave_up", "not_held"]
